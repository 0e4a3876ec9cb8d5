// types.cuh - storage types, the type they are computed in, and conversions between them.
//   f64 is computed in float64, everything narrower in float32. The 16-bit types are structs of our
//   own, so no CUDA header is needed; conversions to them round to nearest, ties to even, once.
#pragma once
#include "ptx.cuh"

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// Names of the storage types as they stand in the names of the entries.
using f64 = double;
using f32 = float;
using f16 = float16;
using bf16 = bfloat16;
using u8 = unsigned char;
using i32 = int;
using i64 = int64;

template <class T> struct compute_type { using type = float; };
template <> struct compute_type<f64> { using type = double; };
template <class T> using compute_of = typename compute_type<T>::type;

// widen(x): the value of a stored number in its compute type, exact.
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(float16 x) { return ptx::half_to_float(x.bits); }
__device__ __forceinline__ float widen(bfloat16 x) { return ptx::bfloat_to_float(x.bits); }
__device__ __forceinline__ float widen(u8 x) { return float(x); }
__device__ __forceinline__ int widen(int x) { return x; }
__device__ __forceinline__ int64 widen(int64 x) { return x; }

// float64 -> float32 such that a second rounding, to 16 bits, gives what one rounding would: an
// inexact result has its last bit set ("round to odd"), so it never looks like a tie.
__device__ __forceinline__ float round_to_odd(double d) {
    float f = ptx::double_to_float_rz(d);
    return double(f) == d || d != d ? f : ptx::float_of(ptx::bits_of(f) | 1u);
}

// to_storage<T>(x): x rounded to the storage type T.
template <class T> struct storage_rounding {
    template <class C> static __device__ __forceinline__ T of(C x) { return T(x); }
};
template <> struct storage_rounding<float16> {
    static __device__ __forceinline__ float16 of(float x) { return {ptx::float_to_half(x)}; }
    static __device__ __forceinline__ float16 of(double x) { return of(round_to_odd(x)); }
};
template <> struct storage_rounding<bfloat16> {
    static __device__ __forceinline__ bfloat16 of(float x) { return {ptx::float_to_bfloat(x)}; }
    static __device__ __forceinline__ bfloat16 of(double x) { return of(round_to_odd(x)); }
};
template <class T, class C> __device__ __forceinline__ T to_storage(C x) { return storage_rounding<T>::of(x); }

template <class X, class Y> constexpr bool SAME_TYPE = false;
template <class X> constexpr bool SAME_TYPE<X, X> = true;

// Two 16-bit numbers in one word, the first in its lower half.
template <class T> __device__ __forceinline__ uint32 to_storage_pair(float low, float high);
template <> __device__ __forceinline__ uint32 to_storage_pair<float16>(float low, float high) {
    return ptx::float_to_half_pair(low, high);
}
template <> __device__ __forceinline__ uint32 to_storage_pair<bfloat16>(float low, float high) {
    return ptx::float_to_bfloat_pair(low, high);
}

// The same two, back, exact; and of two words the larger numbers, which leave a NaN aside.
template <class T> __device__ __forceinline__ void widen_pair(uint32 both, float& low, float& high) {
    if constexpr (SAME_TYPE<T, float16>) ptx::half_pair_to_float(both, low, high);
    else ptx::bfloat_pair_to_float(both, low, high);
}
template <class T> __device__ __forceinline__ uint32 max_pair(uint32 a, uint32 b) {
    if constexpr (SAME_TYPE<T, float16>) return ptx::max_of_halves(a, b);
    else return ptx::max_of_bfloats(a, b);
}

// a * b rounded by itself: no compiler fuses it with the addition that follows.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

template <class C> __device__ __forceinline__ bool is_finite(C x) { return x - x == C(0); }
template <class C> __device__ __forceinline__ C not_a_number() {
    return C(ptx::float_of(0x7fc00000u));
}
template <class C> __device__ __forceinline__ C minus_infinity() {
    return C(ptx::float_of(0xff800000u));
}
