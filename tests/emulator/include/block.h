// block.h - runs a grid: clusters one after another, all threads of a cluster's blocks as fibers.
//   A thread runs until it waits at a barrier or ends; then the next takes over. A barrier that can
//   never be complete is reported with the place where each thread waits. A kernel without
//   __cluster_dims__ is one of clusters of one block.
#pragma once
#include <type_traits>
#include <utility>
#include "copies.h"

// traffic.cpp, where it is linked in, is told when a cluster is done: it counts by its warps.
extern "C" EMU_WEAK void emu_traffic_cluster_ended();

namespace emu {

inline Fiber caller;
inline const void* caller_stack;
inline size_t caller_stack_size;
inline unsigned alive_count, arrived_count, barrier_round;  // of the cluster, at its barrier
inline unsigned clusters_run;  // in this launch
inline unsigned long idle_switches;
inline void (*kernel_body)(void*);
inline void* kernel_arguments;

EMU_BARE inline Thread* next_alive(Thread* thread) {
    Thread* next = thread;
    do {
        if (++next == threads + thread_count) next = threads;
    } while (next->ended && next != thread);
    return next;
}

EMU_BARE inline void report_deadlock() {
    const uint3& first = blocks[0].index;
    fprintf(stderr, "emulator: deadlock in block (%u, %u, %u)", first.x, first.y, first.z);
    fprintf(stderr, cluster_size > 1 ? " and the others of its cluster\n" : "\n");
    for (const Thread* thread = threads; thread < threads + thread_count; ++thread)
        if (!thread->ended)
            fprintf(stderr, "  thread (%u, %u, %u) of block (%u, %u, %u) waits in %s\n", thread->index.x,
                    thread->index.y, thread->index.z, thread->block->index.x, thread->block->index.y,
                    thread->block->index.z, thread->waits_in);
    abort();
}

// Let the others run; a whole round of switches in which nobody got anywhere is a deadlock.
EMU_BARE inline void wait_in(const char* what) {
    current->waits_in = what;
    Thread *me = current, *next = next_alive(me);
    if (next == me || ++idle_switches > 2ul * thread_count + 4) report_deadlock();
    current = next;
    switch_fiber(*me->fiber, *next->fiber, false);
}

// The others need not wait any longer for a thread that ended.
EMU_BARE inline void leave_barriers(Thread* me) {
    Block& block = *me->block;
    block.warps[me->number / 32].alive &= ~(1u << me->number % 32);
    if (--block.alive > 0 && block.arrived == block.alive) {
        block.arrived = 0;
        ++block.round;
    }
    arrived_count -= me->arrived && me->cluster_round == barrier_round;
    if (--alive_count > 0 && arrived_count == alive_count) {
        arrived_count = 0;
        ++barrier_round;
    }
    release(&block);
    if (block.alive == 0) {
        acquire(&block);
        block_memory_ends(block.rank);
    }
}

EMU_BARE inline void thread_entry() {
    if (__sanitizer_finish_switch_fiber) {
        const void* bottom;
        size_t size;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
        if (caller_stack == nullptr) caller_stack = bottom, caller_stack_size = size;
    }
    Thread* me = current;
    acquire(&kernel_body);
    kernel_body(kernel_arguments);
    me->ended = true;
    idle_switches = 0;
    leave_barriers(me);
    release(&caller);
    if (alive_count > 0) {
        current = next_alive(me);
        switch_fiber(*me->fiber, *current->fiber, true);
    } else {
        caller.stack = static_cast<char*>(const_cast<void*>(caller_stack));
        caller.size = caller_stack_size;
        switch_fiber(*me->fiber, caller, true);
    }
}

// ThreadSanitizer sees no race between two blocks' threads that run on one fiber, so each cluster's are
// moved on by some, and few pairs of threads are on one more than once.
EMU_BARE inline unsigned first_fiber() {
    unsigned spare = MAX_CLUSTER * MAX_THREADS - thread_count;
    return __tsan_create_fiber && spare > 0 ? clusters_run % 16 * 7 % spare : 0;
}

EMU_BARE inline void prepare_thread(unsigned place, unsigned number) {
    Block& block = blocks[number / block_threads];
    unsigned n = number % block_threads;
    Thread& thread = threads[place];
    thread = Thread{};
    thread.fiber = &fibers()[place + first_fiber()];
    thread.block = &block;
    thread.number = n;
    thread.index = {n % block_shape.x, n / block_shape.x % block_shape.y, n / (block_shape.x * block_shape.y)};
    thread.fiber->prepare(thread_entry, place);
    block.warps[n / 32].alive |= 1u << n % 32;
}

// The cluster whose first block is at `first`. `rotation` starts with another thread; an odd one also
// runs them backwards: what depends on the order in which threads run then gives another result.
EMU_BARE inline void run_cluster(uint3 first, unsigned rotation) {
    alive_count = thread_count = cluster_size * block_threads;
    arrived_count = 0;
    idle_switches = 0;
    caller_stack = nullptr;
    forget_copies();
    cluster_memory_begins();
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
        blocks[rank] = Block{{first.x + rank, first.y, first.z}, rank, block_threads};
        block_memory_begins(rank);
    }
    unsigned stride = rotation % 2 ? thread_count - 1 : 1;
    for (unsigned place = 0; place < thread_count; ++place)
        prepare_thread(place, unsigned((uint64_t(place) * stride + rotation) % thread_count));
    if (__tsan_get_current_fiber) caller.tsan = __tsan_get_current_fiber();
    release(&kernel_body);  // the caller acquires at the end of the launch: nothing orders clusters
    current = &threads[0];
    switch_fiber(caller, *threads[0].fiber, false);
    current = nullptr;
    cluster_memory_ends();
    ++clusters_run;
    if (emu_traffic_cluster_ended) emu_traffic_cluster_ended();
}

// How many threads said yes; every thread of the block that is still alive must come.
//   ThreadSanitizer is told of a barrier by a release and an acquire of one address. Two barriers in
//   turn must not share it: the thread that completes one goes on, and may arrive at the next before
//   another has left the first, which would then be ordered behind all that the quicker one did since.
EMU_BARE inline unsigned block_barrier(bool vote) {
    Block& block = *current->block;
    unsigned round = block.round, *votes = &block.votes[round % 2];
    if (block.arrived == 0) *votes = 0;
    *votes += vote;
    release(votes);
    if (++block.arrived == block.alive) {
        block.arrived = 0;
        ++block.round;
    } else {
        while (round == block.round) wait_in("__syncthreads");
    }
    idle_switches = 0;
    acquire(votes);
    return *votes;
}

// The cluster's barrier is in two halves; a thread takes them in turn.
EMU_BARE inline void cluster_arrive() {
    demand_cluster("cluster_arrive");
    if (current->arrived) EMU_FAIL("cluster_arrive twice without cluster_wait");
    current->arrived = true;
    current->cluster_round = barrier_round;
    release(&blocks[0].cluster_order[barrier_round % 2]);
    if (++arrived_count == alive_count) {
        arrived_count = 0;
        ++barrier_round;
    }
}

EMU_BARE inline void cluster_wait() {
    if (!current->arrived) EMU_FAIL("cluster_wait without cluster_arrive");
    while (current->cluster_round == barrier_round) wait_in("cluster_wait");
    current->arrived = false;
    idle_switches = 0;
    acquire(&blocks[0].cluster_order[current->cluster_round % 2]);
}

// A shuffle or a vote waits for the lanes of its mask, but orders none of their accesses to memory, so
// ThreadSanitizer is told of __syncwarp only.
EMU_BARE inline void warp_barrier(unsigned mask, const char* what, bool orders_memory) {
    Warp& warp = current->block->warps[current->number / 32];
    unsigned lane = current->number % 32, key = unsigned(__builtin_ctz(mask)), round = warp.round[key];
    if (!(mask >> lane & 1)) {
        fprintf(stderr, "emulator: %s: lane %u is not in its own mask %08x\n", what, lane, mask);
        abort();
    }
    uint64_t* order = &warp.slot[round % 2][key];
    if (orders_memory) release(order);
    warp.arrived[key] |= 1u << lane;
    if ((warp.arrived[key] & warp.alive) == (mask & warp.alive)) {
        warp.arrived[key] = 0;
        ++warp.round[key];
    } else {
        while (round == warp.round[key]) wait_in(what);
    }
    idle_switches = 0;
    if (orders_memory) acquire(order);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

// cuLaunchKernel's convention: `arguments` points to each argument's value. The grid is a multiple of
// the cluster (module.py).
template <class... A>
void launch(void (*kernel)(A...), unsigned cluster, dim3 grid, dim3 block, size_t shared, unsigned rotation,
            void** arguments) {
    struct Bound { void (*kernel)(A...); void** arguments; } bound{kernel, arguments};
    kernel_arguments = &bound;
    kernel_body = [](void* p) {
        auto* bound = static_cast<Bound*>(p);
        call(bound->kernel, bound->arguments, std::index_sequence_for<A...>{});
    };
    grid_shape = grid;
    block_shape = block;
    cluster_size = cluster;
    block_threads = block.x * block.y * block.z;
    launch_memory_begins(shared);
    clusters_run = 0;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; x += cluster) run_cluster({x, y, z}, rotation);
    acquire(&caller);
}

}  // namespace emu
