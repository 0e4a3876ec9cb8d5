// ptx.cuh - every line of inline PTX of this project, each with a portable twin.
//   The GPU compilers take the instruction, the emulator (g++) the twin; a test holds the twins to
//   NumPy's float16 and ml_dtypes' bfloat16 over all 65,536 patterns and around every rounding edge.
#pragma once

using int64 = long long;
using uint64 = unsigned long long;
using uint32 = unsigned int;

namespace ptx {

__device__ __forceinline__ uint32 bits_of(float x) {
    union { float f; uint32 u; } both;
    both.f = x;
    return both.u;
}

__device__ __forceinline__ float float_of(uint32 u) {
    union { float f; uint32 u; } both;
    both.u = u;
    return both.f;
}

// float16 -> float32, exact.
__device__ __forceinline__ float half_to_float(unsigned short h) {
#ifdef __CUDA_ARCH__
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
#else
    uint32 sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
    if (exponent == 31u) return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0u) return float_of(sign | (exponent + 112u) << 23 | fraction << 13);
    float subnormal = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
#endif
}

// float32 -> float16, to nearest, ties to even.
__device__ __forceinline__ unsigned short float_to_half(float f) {
#ifdef __CUDA_ARCH__
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    uint32 u = bits_of(f), sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;                           // NaN
    if (size >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // 65520 and more: infinity
    if (size < 0x38800000u) {                                        // below 2^-14: subnormal
        float magic = float_of(size) + 0.5f;                         // its last place is 2^-24
        return (unsigned short)(sign | (bits_of(magic) - 0x3f000000u));
    }
    size += 0xfffu + (size >> 13 & 1u);
    return (unsigned short)(sign | (size - 0x38000000u) >> 13);
#endif
}

// bfloat16 -> float32, exact: the upper half of the word.
__device__ __forceinline__ float bfloat_to_float(unsigned short b) {
    return float_of(uint32(b) << 16);
}

// float32 -> bfloat16, to nearest, ties to even. The instruction came with sm_80.
__device__ __forceinline__ unsigned short float_to_bfloat(float f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned short b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(f));
    return b;
#else
    uint32 u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}

// float64 -> float32, towards zero.
__device__ __forceinline__ float double_to_float_rz(double d) {
#ifdef __CUDA_ARCH__
    float f;
    asm("cvt.rz.f32.f64 %0, %1;" : "=f"(f) : "d"(d));
    return f;
#else
    if (d - d != 0.0) return float(d);            // infinity and NaN stay
    constexpr double largest = 3.40282346638528860e38;
    if (d > largest) return float(largest);       // and not float(d): undefined beyond the range
    if (d < -largest) return -float(largest);
    float f = float(d);
    bool away = (d < 0 ? -double(f) : double(f)) > (d < 0 ? -d : d);
    return away ? float_of(bits_of(f) - 1u) : f;  // one step nearer to zero
#endif
}

}  // namespace ptx
