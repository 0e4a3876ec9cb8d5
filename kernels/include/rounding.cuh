// rounding.cuh - stochastic rounding to 16 bits; gpubackprop/formulas/rounding.py is the NumPy twin.
#pragma once
#include "types.cuh"

// x rounded to T with probabilities in proportion to the distances: up where the random bits exceed
// what is cut off. Exact values stay; infinities and NaN take the rounding to nearest.
template <class T> __device__ __forceinline__ T round_stochastic(float x, uint32) {
    return to_storage<T>(x);
}
template <> __device__ __forceinline__ bfloat16 round_stochastic<bfloat16>(float x, uint32 word) {
    if (!is_finite(x)) return to_storage<bfloat16>(x);
    return {(unsigned short)((ptx::bits_of(x) + (word & 0xffffu)) >> 16)};
}
template <> __device__ __forceinline__ float16 round_stochastic<float16>(float x, uint32 word) {
    // Below 2^-14 the spacing is 2^-24, above it 2^-10 of the leading power: the words' 13 bits there.
    constexpr float smallest_normal = 6.103515625e-5f;
    if (!(::fabs(x) < 65504.f)) return to_storage<float16>(x);
    if (::fabs(x) < smallest_normal) {
        constexpr float unit = 5.9604644775390625e-8f;
        float count = x / unit, whole = ::floor(count);
        return to_storage<float16>((whole + (float(word >> 8) * unit < count - whole ? 1.f : 0.f)) * unit);
    }
    return to_storage<float16>(ptx::float_of((ptx::bits_of(x) + (word & 0x1fffu)) & ~0x1fffu));
}
template <class T> __device__ __forceinline__ T round_stochastic(double x, uint32) {
    return to_storage<T>(x);
}
