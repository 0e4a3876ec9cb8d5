// thread.h - what is known of each CUDA thread, warp and block of the cluster that runs.
#pragma once
#include <cstring>
#include "fiber.h"

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

constexpr unsigned MAX_CLUSTER = 8;  // blocks; what every card with clusters can run

struct Block;

struct Thread {
    Fiber* fiber;
    Block* block;
    uint3 index;
    unsigned number = 0;  // in the block; number / 32 is its warp
    bool ended = false;
    bool arrived = false;  // at the cluster's barrier, and has not waited there yet
    unsigned cluster_round = 0;
    struct Copy *copies, *last_copy;  // asynchronous ones in flight, in order: copies.h
    unsigned copy_group;
    const char* waits_in = "";

    // Within the cluster.
    unsigned place() const;
};

struct Warp {
    uint64_t slot[2][32];  // values in exchange, two sets in turn: no second barrier needed
    unsigned arrived[32];  // lanes that wait, and how often that was complete, for each mask,
    unsigned round[32];    // which goes by its lowest lane
    unsigned alive;
    unsigned fragments[2][32][6];  // of matrices, likewise: matrices.h
};

struct Block {
    uint3 index;
    unsigned rank, alive, arrived, round, votes[2];
    char cluster_order[2];  // of the cluster's barrier and the next, in its first block: block_barrier
    Warp warps[MAX_THREADS / 32];
};

inline Thread threads[MAX_CLUSTER * MAX_THREADS];
inline Block own_blocks[MAX_CLUSTER], *blocks = own_blocks;  // of the cluster
inline Thread* current;
inline dim3 block_shape, grid_shape;
inline unsigned cluster_size, block_threads, thread_count;  // thread_count: of the cluster

EMU_BARE inline unsigned Thread::place() const { return block->rank * MAX_THREADS + number; }

// What a card would answer with undefined behaviour ends the process, with the thread's name.
#define EMU_FAIL(...)                                                                             \
    do {                                                                                          \
        const uint3 &b = emu::current->block->index, &t = emu::current->index;                    \
        fprintf(stderr, "emulator: ");                                                            \
        fprintf(stderr, __VA_ARGS__);                                                             \
        fprintf(stderr, "; thread (%u, %u, %u) of block (%u, %u, %u)\n", t.x, t.y, t.z, b.x, b.y, b.z); \
        abort();                                                                                  \
    } while (false)

}  // namespace emu
