// cuda_names.h - what a CUDA compiler knows without a header, for g++.
#pragma once
#include <math.h>  // not <cmath>: the overloads for float stand in the global namespace, as in CUDA
#include <type_traits>
#include "matrices.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __cluster_dims__(...)  // read by module.py, which also rewrites __shared__
#define threadIdx (emu::current->index)
#define blockIdx (emu::current->block->index)
#define blockDim (emu::block_shape)
#define gridDim (emu::grid_shape)
#define warpSize 32

// Vectors and not structs of four: g++ moves a vector in one access, as the card does, and checks its
// alignment. They have no .x; the kernels move them whole.
using uint4 = unsigned __attribute__((vector_size(16)));
using uint2 = unsigned __attribute__((vector_size(8)));

EMU_BARE inline void __syncthreads() { emu::block_barrier(false); }
EMU_BARE inline int __syncthreads_count(int p) { return int(emu::block_barrier(p != 0)); }
EMU_BARE inline int __syncthreads_or(int p) { return emu::block_barrier(p != 0) != 0; }
EMU_BARE inline int __syncthreads_and(int p) { return emu::block_barrier(p == 0) == 0; }
EMU_BARE inline void __syncwarp(unsigned mask = ~0u) { emu::warp_barrier(mask, "__syncwarp", true); }
inline void __threadfence() {}

EMU_BARE inline unsigned __clusterRelativeBlockRank() { return emu::current->block->rank; }
EMU_BARE inline unsigned __clusterSizeInBlocks() { return emu::cluster_size; }
EMU_BARE inline void __cluster_barrier_arrive() { emu::cluster_arrive(); }
EMU_BARE inline void __cluster_barrier_wait() { emu::cluster_wait(); }
EMU_BARE inline void* __cluster_map_shared_rank(const void* p, unsigned rank) { return emu::map_shared_rank(p, rank); }

#define __pipeline_memcpy_async(to, from, bytes) emu::copy_async<bytes>(to, from)
EMU_BARE inline void __pipeline_commit() { emu::commit_copies(); }
inline void __pipeline_wait_prior(unsigned pending) { emu::wait_for_copies(pending); }

namespace emu {

EMU_BARE inline unsigned lane() { return current->number % 32; }

// Every lane of the mask leaves its value; each takes that of lane `source`.
template <class T> EMU_BARE T exchange(unsigned mask, T value, unsigned source, const char* what) {
    static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    Warp& warp = current->block->warps[current->number / 32];
    uint64_t* slot = warp.slot[warp.round[__builtin_ctz(mask)] % 2];
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    slot[lane()] = word;
    warp_barrier(mask, what, false);
    if (!(mask >> source & 1)) {
        fprintf(stderr, "emulator: %s takes from lane %u, which is not in mask %08x\n", what, source, mask);
        abort();
    }
    memcpy(&value, &slot[source], sizeof value);
    return value;
}

// A real atomic operation, so that ThreadSanitizer knows it as one.
template <class T, class F> T modify(T* p, F change) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED), next;
    do next = change(old);
    while (!__atomic_compare_exchange_n(p, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

template <class... A> constexpr size_t argument_bytes(void (*)(A...)) { return (sizeof(A) + ... + 0); }

}  // namespace emu

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned base = emu::lane() & ~unsigned(width - 1);
    return emu::exchange(mask, value, base | (unsigned(source) & unsigned(width - 1)), "__shfl_sync");
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    unsigned me = emu::lane(), source = me ^ unsigned(bits), group = ~unsigned(width - 1);
    return emu::exchange(mask, value, (source & group) > (me & group) ? me : source, "__shfl_xor_sync");
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned me = emu::lane(), in_group = me & unsigned(width - 1);
    return emu::exchange(mask, value, in_group + by < unsigned(width) ? me + by : me, "__shfl_down_sync");
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    unsigned me = emu::lane(), in_group = me & unsigned(width - 1);
    return emu::exchange(mask, value, in_group >= by ? me - by : me, "__shfl_up_sync");
}
EMU_BARE inline unsigned __ballot_sync(unsigned mask, int vote) {
    emu::Warp& warp = emu::current->block->warps[emu::current->number / 32];
    uint64_t* slot = warp.slot[warp.round[__builtin_ctz(mask)] % 2];
    unsigned alive = mask & warp.alive, result = 0;
    slot[emu::lane()] = vote != 0;
    emu::warp_barrier(mask, "__ballot_sync", false);
    for (unsigned n = 0; n < 32; ++n)
        if (alive >> n & 1) result |= unsigned(slot[n] & 1) << n;
    return result;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

template <class T> T atomicAdd(T* p, T v) { return emu::modify(p, [v](T old) { return T(old + v); }); }
template <class T> T atomicMax(T* p, T v) { return emu::modify(p, [v](T old) { return old > v ? old : v; }); }
template <class T> T atomicMin(T* p, T v) { return emu::modify(p, [v](T old) { return old < v ? old : v; }); }
template <class T> T atomicExch(T* p, T v) { return emu::modify(p, [v](T) { return v; }); }
template <class T> T atomicCAS(T* p, T want, T v) {
    return emu::modify(p, [want, v](T old) { return old == want ? v : old; });
}

// Rounded correctly: CUDA's tanhf is right to 1 unit, glibc's to 2, and not alike on every CPU.
inline float emu_tanh(float x) { return float(::tanh(double(x))); }
inline double emu_tanh(double x) { return ::tanh(x); }
#define tanh(x) emu_tanh(x)

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

// The entry `name`, exported with cuLaunchKernel's convention of arguments, and the bytes of these.
#define EMU_EXPORT(name, cluster)                                                                  \
    extern "C" __attribute__((visibility("default"))) void emu_##name(                             \
        const unsigned* shape, size_t shared, unsigned rotation, void** arguments) {               \
        static_assert(1 <= (cluster) && (cluster) <= emu::MAX_CLUSTER, "blocks of a cluster");     \
        emu::launch(&name, cluster, dim3(shape[0], shape[1], shape[2]),                            \
                    dim3(shape[3], shape[4], shape[5]), shared, rotation, arguments);              \
    }                                                                                              \
    extern "C" __attribute__((visibility("default"))) size_t emu_bytes_##name() {                  \
        return emu::argument_bytes(&name);                                                         \
    }
