// dropout.cuh - inverted dropout as a template parameter of a kernel over a matrix, forward and back.
//   d(i) = keep(i) ? scale * x(i) : 0,  keep(i) = word(i) >= threshold; word(i): include/philox.cuh
//   i = (dropout_row + row) * cols + column in 64 bits: dropout_row is 0, or where a rank's rows begin
//   threshold = p * 2^32, scale = 1 / (1 - p); layer: its number
//   state = {seed, step} on the device: prepare_update counts the step, so a replayed graph draws anew
//   No mask is stored: the backward pass computes the words again. A NaN that is dropped is 0.
#pragma once
#include "philox.cuh"

struct NoDropout {
    static constexpr bool ON = false;
    template <class A> __device__ __forceinline__ explicit NoDropout(const A&) {}
    template <int E, class C> __device__ __forceinline__ void draw(int64, C (&)[E]) const {}
};

template <class C> struct Dropout {
    static constexpr bool ON = true;
    uint64 seed, offset;
    int64 base;
    uint32 threshold;
    C scale;

    // A: the arguments of a kernel, with fields dropout_...
    template <class A> __device__ __forceinline__ explicit Dropout(const A& a)
        : seed(a.dropout_state[0]), offset(stream(a.dropout_state[1], uint64(a.dropout_layer))),
          base(a.dropout_row * a.cols), threshold(uint32(a.dropout_threshold)), scale(a.dropout_scale) {}
    // What elements `first`, first + 1, ... of the arrays are multiplied by: scale, or 0 where dropped.
    template <int E> __device__ __forceinline__ void draw(int64 first, C (&factor)[E]) const {
        uint32 words[E];
        random_words<E>(base + first, offset, seed, words);
#pragma unroll
        for (int e = 0; e < E; ++e) factor[e] = words[e] >= threshold ? scale : C(0);
    }
};

// x * factor, and 0 where that is 0 whatever x is.
template <class Drop, class C> __device__ __forceinline__ C dropped(C x, C factor) {
    return !Drop::ON ? x : factor == C(0) ? C(0) : x * factor;
}
