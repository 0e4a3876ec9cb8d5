// block.h - runs a grid: blocks one after another, the threads of a block as fibers.
//   A thread runs until it waits at a barrier or ends; then the next takes over. A barrier that can
//   never be complete is reported with the place where each thread waits.
#pragma once
#include <cstring>
#include <utility>
#include "fiber.h"

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// traffic.cpp, where it is linked in, is told when a block is done: it counts by warps of a block.
extern "C" EMU_WEAK void emu_traffic_block_ended();

namespace emu {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 232448;  // bytes of dynamic shared memory on the largest card

struct Thread {
    Fiber fiber;
    uint3 index;
    unsigned number = 0;  // in the block; number / 32 is its warp
    bool ended = false;
    const char* waits_in = "";
};

struct Warp {
    uint64_t slot[2][32];  // values in exchange, two sets in turn: no second barrier needed
    unsigned arrived[32];  // lanes that wait, and how often that was complete, for each mask,
    unsigned round[32];    // which goes by its lowest lane
    unsigned alive;
};

inline Thread threads[MAX_THREADS];
inline Thread* current;
inline Fiber caller;
inline const void* caller_stack;
inline size_t caller_stack_size;
inline Warp warps[MAX_THREADS / 32];
inline uint3 block_index;
inline dim3 block_shape, grid_shape;
inline unsigned thread_count, alive_count, arrived_count, barrier_round, votes[2];
inline unsigned long idle_switches;
inline void (*kernel_body)(void*);
inline void* kernel_arguments;
alignas(128) inline unsigned char dynamic_shared[MAX_SHARED];
inline void* shared_memory() { return dynamic_shared; }

EMU_BARE inline Thread* next_alive(Thread* thread) {
    Thread* next = thread;
    do {
        if (++next == threads + thread_count) next = threads;
    } while (next->ended && next != thread);
    return next;
}

EMU_BARE inline void report_deadlock() {
    fprintf(stderr, "emulator: deadlock in block (%u, %u, %u)\n", block_index.x, block_index.y, block_index.z);
    for (unsigned n = 0; n < thread_count; ++n)
        if (!threads[n].ended)
            fprintf(stderr, "  thread (%u, %u, %u) waits in %s\n", threads[n].index.x, threads[n].index.y,
                    threads[n].index.z, threads[n].waits_in);
    abort();
}

// Let the others run; a whole round of switches in which nobody got anywhere is a deadlock.
EMU_BARE inline void wait_in(const char* what) {
    current->waits_in = what;
    Thread *me = current, *next = next_alive(me);
    if (next == me || ++idle_switches > 2ul * thread_count + 4) report_deadlock();
    current = next;
    switch_fiber(me->fiber, next->fiber, false);
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
    release(&caller);
    me->ended = true;
    idle_switches = 0;
    warps[me->number / 32].alive &= ~(1u << me->number % 32);
    if (--alive_count > 0 && arrived_count == alive_count) {  // the others need not wait for it
        arrived_count = 0;
        ++barrier_round;
    }
    if (alive_count > 0) {
        current = next_alive(me);
        switch_fiber(me->fiber, current->fiber, true);
    } else {
        caller.stack = static_cast<char*>(const_cast<void*>(caller_stack));
        caller.size = caller_stack_size;
        switch_fiber(me->fiber, caller, true);
    }
}

// `rotation` starts with another thread; an odd one also runs them backwards: what depends on the
// order in which threads run then gives another result.
EMU_BARE inline void run_block(unsigned rotation) {
    alive_count = thread_count;
    arrived_count = 0;
    idle_switches = 0;
    caller_stack = nullptr;
    memset(warps, 0, sizeof warps);
    unsigned stride = rotation % 2 ? thread_count - 1 : 1;
    for (unsigned place = 0; place < thread_count; ++place) {
        Thread& thread = threads[place];
        unsigned n = thread.number = unsigned((uint64_t(place) * stride + rotation) % thread_count);
        thread.ended = false;
        thread.index = {n % block_shape.x, n / block_shape.x % block_shape.y, n / (block_shape.x * block_shape.y)};
        thread.fiber.prepare(thread_entry, place);
        warps[n / 32].alive |= 1u << n % 32;
    }
    if (__tsan_get_current_fiber) caller.tsan = __tsan_get_current_fiber();
    release(&kernel_body);
    current = &threads[0];
    switch_fiber(caller, threads[0].fiber, false);
    acquire(&caller);
    if (emu_traffic_block_ended) emu_traffic_block_ended();
}

// How many threads said yes; every thread of the block that is still alive must come.
EMU_BARE inline unsigned block_barrier(bool vote) {
    unsigned round = barrier_round;
    if (arrived_count == 0) votes[round % 2] = 0;
    votes[round % 2] += vote;
    release(&barrier_round);
    if (++arrived_count == alive_count) {
        arrived_count = 0;
        ++barrier_round;
    } else {
        while (round == barrier_round) wait_in("__syncthreads");
    }
    idle_switches = 0;
    acquire(&barrier_round);
    return votes[round % 2];
}

EMU_BARE inline void warp_barrier(unsigned mask, const char* what) {
    Warp& warp = warps[current->number / 32];
    unsigned lane = current->number % 32, key = unsigned(__builtin_ctz(mask)), round = warp.round[key];
    if (!(mask >> lane & 1)) {
        fprintf(stderr, "emulator: %s: lane %u is not in its own mask %08x\n", what, lane, mask);
        abort();
    }
    release(&warp.round[key]);
    warp.arrived[key] |= 1u << lane;
    if ((warp.arrived[key] & warp.alive) == (mask & warp.alive)) {
        warp.arrived[key] = 0;
        ++warp.round[key];
    } else {
        while (round == warp.round[key]) wait_in(what);
    }
    idle_switches = 0;
    acquire(&warp.round[key]);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

// cuLaunchKernel's convention: `arguments` points to each argument's value.
template <class... A>
void launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, unsigned rotation, void** arguments) {
    struct Bound { void (*kernel)(A...); void** arguments; } bound{kernel, arguments};
    kernel_arguments = &bound;
    kernel_body = [](void* p) {
        auto* bound = static_cast<Bound*>(p);
        call(bound->kernel, bound->arguments, std::index_sequence_for<A...>{});
    };
    grid_shape = grid;
    block_shape = block;
    thread_count = block.x * block.y * block.z;
    if (__asan_unpoison_memory_region) {  // what the launch asked for may be touched, and no more
        __asan_unpoison_memory_region(dynamic_shared, MAX_SHARED);
        size_t used = (shared + 7) / 8 * 8;
        __asan_poison_memory_region(dynamic_shared + used, MAX_SHARED - used);
    }
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                memset(dynamic_shared, 0xff, shared);  // NaN: what was never written shows
                block_index = {x, y, z};
                run_block(rotation);
            }
}

}  // namespace emu
