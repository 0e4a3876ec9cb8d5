// reduce.cuh - sums and maxima over a group of threads, in a fixed order.
//   A group is blockDim.x threads: a power of two up to 32 within one warp (several groups then share
//   a warp), or a whole block of a multiple of 32 threads. Every thread of the block must call.
#pragma once
#include "types.cuh"

struct Sum {
    template <class C> static __device__ __forceinline__ C of(C a, C b) { return a + b; }
    template <class C> static __device__ __forceinline__ C neutral() { return C(0); }
};
struct Maximum {  // a NaN is not kept: the sum of exponentials that follows brings it back
    template <class C> static __device__ __forceinline__ C of(C a, C b) { return ::fmax(a, b); }
    template <class C> static __device__ __forceinline__ C neutral() { return minus_infinity<C>(); }
};

// A running sum with what its roundings lost (Knuth 1969): right to its last place for any number of
// terms of one sign. For sums that are short beside what they sum over: six additions for each term.
template <class C> struct Compensated {
    C sum = C(0), lost = C(0);
    __device__ __forceinline__ void add(C x) {
        C next = sum + x, part = next - sum;
        if (is_finite(next)) lost += (sum - (next - part)) + (x - part);
        sum = next;
    }
    __device__ __forceinline__ void add_product(C a, C b) {
        C product = rounded_product(a, b);
        add(product);
        if (is_finite(product)) lost += ::fma(a, b, -product);
    }
    __device__ __forceinline__ C value() const { return sum + lost; }
};

template <class Op, class C> __device__ __forceinline__ C reduce_lanes(C value, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2)
        value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, step, lanes));
    return value;
}

// The same value in every thread of the group.
template <class Op, class C> __device__ __forceinline__ C reduce_group(C value) {
    if (blockDim.x <= 32) return reduce_lanes<Op>(value, int(blockDim.x));
    __shared__ C warps[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = blockDim.x / 32;
    value = reduce_lanes<Op>(value, 32);
    __syncthreads();  // the values of the call before may still be read
    if (lane == 0) warps[warp] = value;
    __syncthreads();
    value = lane < count ? warps[lane] : Op::template neutral<C>();
    return reduce_lanes<Op>(value, 32);
}
