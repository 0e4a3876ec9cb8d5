// tile.cuh - whole rows that lie one after another: to shared memory and back in packs of 16 bytes.
//   A tile in shared memory begins as far beyond a multiple of 16 bytes as it does in global memory. Every
//   thread of a block calls; the first and the last pack are moved element by element where they are not whole.
#pragma once
#include "last_block.cuh"
#include "vector.cuh"

constexpr int TILE_THREADS = 128;  // of a block

// How much of the pack at `at` lies in [0, count).
template <int E> struct Part {
    int lo, hi;
    __device__ __forceinline__ Part(int at, int count)
        : lo(at < 0 ? -at : 0), hi(count - at < E ? count - at : E) {}
};

// Every TILE_THREADS-th of `left` packs, four at a time: their distances are constants of the code.
template <class F> __device__ __forceinline__ void for_packs(int left, F&& move) {
    int at = 0;
#pragma unroll 1
    for (; left > 3 * TILE_THREADS; left -= 4 * TILE_THREADS, at += 4 * TILE_THREADS) {
#pragma unroll
        for (int i = 0; i < 4; ++i) move(at + i * TILE_THREADS);
    }
#pragma unroll 1
    for (; left > 0; left -= TILE_THREADS, at += TILE_THREADS) move(at);
}

// Request `count` elements as a group of asynchronous copies; what is not whole packs is there at once.
template <class T> __device__ __forceinline__ void request_tile(const T* from, T* tile, int count) {
    constexpr int E = PACK<T>;
    int thread = thread_of_block(), head = misalignment(from);
    if (head == 0) {
        const uint4* packs = reinterpret_cast<const uint4*>(from) + thread;
        uint4* to = reinterpret_cast<uint4*>(tile) + thread;
        for_packs(count / E - thread, [&](int at) { ptx::copy_async<16>(to + at, packs + at); });
        int last = count / E * E + thread;
        if (last < count) tile[last] = from[last];
    } else {
        for (int at = thread * E - head; at < count; at += TILE_THREADS * E) {
            Part<E> part(at, count);
            if (part.hi - part.lo == E) ptx::copy_async<16>(tile + at, from + at);
            else
                for (int e = part.lo; e < part.hi; ++e) tile[at + e] = from[at + e];
        }
    }
    ptx::copy_async_commit();
}

template <class T> __device__ __forceinline__ void return_tile(const T* tile, T* to, int count) {
    constexpr int E = PACK<T>;
    int thread = thread_of_block(), head = misalignment(to);
    if (head == 0 && aligned<T, E>(tile)) {
        uint4* packs = reinterpret_cast<uint4*>(to) + thread;
        const uint4* from = reinterpret_cast<const uint4*>(tile) + thread;
        for_packs(count / E - thread, [&](int at) { ptx::store_global(packs + at, from[at]); });
        int last = count / E * E + thread;
        if (last < count) to[last] = tile[last];
        return;
    }
    for (int at = thread * E - head; at < count; at += TILE_THREADS * E) {
        Part<E> part(at, count);
        Words<T, E> both;
        both.pack = load_part<T, E>(tile + at, part.lo, part.hi);
        store_words<T>(to + at, both, part.lo, part.hi);
    }
}
