// shared.h - the shared memory of each block of a cluster, as a window of its own.
//   Dynamic shared memory at its start, then the __shared__ variables, which module.py rewrites into
//   references into the window: x = emu::shared<float[32]>(place). What has one place in every window
//   is the same variable in each block, so mapping an address to another block is a difference of
//   windows. Around each variable AddressSanitizer forbids some bytes; a variable is no better aligned
//   than its declaration promises.
//   Memory of a block is NaN when it begins and again when it has ended: on the card its shared memory
//   is another's then, and a block that still reads it needs a cluster barrier before the end.
#pragma once
#include "thread.h"

namespace emu {

constexpr size_t MAX_DYNAMIC = 232448;  // bytes, on the largest card
constexpr size_t MAX_STATIC = 49152, RED_ZONE = 32, MAX_VARIABLES = 64;
constexpr size_t STATIC_START = MAX_DYNAMIC + RED_ZONE;
constexpr size_t WINDOW = STATIC_START + MAX_STATIC + MAX_VARIABLES * 2 * RED_ZONE;

struct Variable { size_t offset, size; };

// Where a __shared__ variable is in the window; found anew in each launch.
struct Place {
    unsigned long launch;
    size_t offset;
};

using Window = unsigned char[(WINDOW + 1023) / 1024 * 1024];
alignas(1024) inline Window own_windows[MAX_CLUSTER];
inline Window* windows = own_windows;
inline Variable variables[MAX_VARIABLES + 1];  // [0]: dynamic shared memory
inline unsigned variable_count;
inline size_t static_end, static_bytes;
inline unsigned long launch_number;

// Blocks run one after another, but on the card at once. ThreadSanitizer takes them so if nothing orders
// them: neither a barrier's address nor shared memory may be those of a cluster before.
struct ClusterMemory {
    Block blocks[MAX_CLUSTER];
    alignas(1024) Window windows[MAX_CLUSTER];
};

EMU_BARE inline void cluster_memory_begins() {
    if (!__tsan_create_fiber) return;
    void* memory = mmap(nullptr, sizeof(ClusterMemory), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("emulator: no memory for a cluster");
        abort();
    }
    blocks = static_cast<ClusterMemory*>(memory)->blocks;
    windows = static_cast<ClusterMemory*>(memory)->windows;
}

// ThreadSanitizer forgets what it knew of the memory.
EMU_BARE inline void cluster_memory_ends() {
    if (blocks != own_blocks) munmap(blocks, sizeof(ClusterMemory));
}

// Unseen by the sanitizers, unlike memset: what comes first in a block is no access of a thread's.
EMU_BARE inline void fill_with_nan(unsigned char* p, size_t size) {
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(size) : "a"(0xff) : "memory");
}

EMU_BARE inline void variable_begins(unsigned rank, const Variable& variable) {
    unsigned char* p = windows[rank] + variable.offset;
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, variable.size);
    fill_with_nan(p, variable.size);
}

EMU_BARE inline void block_memory_begins(unsigned rank) {
    for (unsigned n = 0; n < variable_count; ++n) variable_begins(rank, variables[n]);
}

EMU_BARE inline void block_memory_ends(unsigned rank) {
    for (unsigned n = 0; n < variable_count; ++n) {
        unsigned char* p = windows[rank] + variables[n].offset;
        memset(p, 0xff, variables[n].size);  // seen by ThreadSanitizer: who still reads it is in a race
        if (__asan_poison_memory_region) __asan_poison_memory_region(p, variables[n].size);
    }
}

EMU_BARE inline void launch_memory_begins(size_t dynamic) {
    ++launch_number;
    variables[0] = {0, dynamic};
    variable_count = 1;
    static_end = STATIC_START;
    static_bytes = 0;
    if (__asan_poison_memory_region) __asan_poison_memory_region(own_windows, sizeof own_windows);
}

// The first thread that comes to a variable finds it a place, in all blocks of the cluster.
EMU_BARE inline void* locate(Place& place, size_t size, size_t alignment) {
    if (place.launch != launch_number) {
        if (alignment < 8) alignment = 8;  // AddressSanitizer's grain
        size_t offset = (static_end + RED_ZONE + alignment - 1) / alignment * alignment;
        if (offset % (2 * alignment) == 0) offset += alignment;
        static_bytes += size;
        if (static_bytes > MAX_STATIC || variable_count > MAX_VARIABLES || offset + size > WINDOW)
            EMU_FAIL("more than %zu bytes or %zu variables of static shared memory", MAX_STATIC, MAX_VARIABLES);
        place = {launch_number, offset};
        static_end = offset + size;
        variables[variable_count++] = {offset, size};
        for (unsigned rank = 0; rank < cluster_size; ++rank)
            if (blocks[rank].alive > 0) variable_begins(rank, {offset, size});
    }
    return windows[current->block->rank] + place.offset;
}

template <class T, size_t ALIGNMENT = alignof(T)> EMU_BARE T& shared(Place& place) {
    return *static_cast<T*>(locate(place, sizeof(T), ALIGNMENT));
}

EMU_BARE inline void* shared_memory() { return windows[current->block->rank]; }

EMU_BARE inline bool in_own_window(const void* p) {
    const unsigned char *byte = static_cast<const unsigned char*>(p), *own = windows[current->block->rank];
    return byte >= own && byte < own + WINDOW;
}

// What a kernel without cluster dimensions may not use: before sm_90 it is not there.
EMU_BARE inline void demand_cluster(const char* what) {
    if (cluster_size == 1) EMU_FAIL("%s in a kernel without a cluster", what);
}

// mapa: the same variable in block `rank` of the cluster.
EMU_BARE inline void* map_shared_rank(const void* p, unsigned rank) {
    demand_cluster("shared_of_rank");
    if (rank >= cluster_size) EMU_FAIL("shared memory of rank %u in a cluster of %u", rank, cluster_size);
    if (!in_own_window(p)) EMU_FAIL("shared_of_rank of an address outside the block's own shared memory");
    return windows[rank] + (static_cast<const unsigned char*>(p) - windows[current->block->rank]);
}

}  // namespace emu
