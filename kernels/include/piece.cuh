// piece.cuh - W bytes of rows in shared memory: one access, its elements widened and rounded once.
#pragma once
#include "tile.cuh"

// W bytes of a row.
template <class T, int W> struct Piece {
    static constexpr int E = W / int(sizeof(T));
    typename word<W>::type bits;

    template <class C> __device__ __forceinline__ void widen_to(C* v) const {
        Words<T, E> both;
        both.words[0] = bits;
        if constexpr (sizeof(T) == 2 && E >= 2) {
            union { typename word<W>::type all; uint32 pairs[W / 4]; } read;
            read.all = bits;
#pragma unroll
            for (int i = 0; i < W / 4; ++i) widen_pair<T>(read.pairs[i], v[2 * i], v[2 * i + 1]);
        } else {
#pragma unroll
            for (int e = 0; e < E; ++e) v[e] = C(widen(both.pack.v[e]));
        }
    }
    template <class C> static __device__ __forceinline__ Piece of(const C* v) {
        Piece made;
        if constexpr (sizeof(T) == 2 && E >= 2) {
            union { typename word<W>::type all; uint32 pairs[W / 4]; } both;
#pragma unroll
            for (int i = 0; i < W / 4; ++i) both.pairs[i] = to_storage_pair<T>(v[2 * i], v[2 * i + 1]);
            made.bits = both.all;
        } else {
            Words<T, E> both;
#pragma unroll
            for (int e = 0; e < E; ++e) both.pack.v[e] = to_storage<T>(v[e]);
            made.bits = both.words[0];
        }
        return made;
    }
};
