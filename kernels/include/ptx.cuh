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

// Two at once, the first in the lower half. The instructions came with sm_80.
__device__ __forceinline__ uint32 float_to_half_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return float_to_half(low) | uint32(float_to_half(high)) << 16;
#endif
}
__device__ __forceinline__ uint32 float_to_bfloat_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return float_to_bfloat(low) | uint32(float_to_bfloat(high)) << 16;
#endif
}

// Two of one word, exact.
__device__ __forceinline__ void bfloat_pair_to_float(uint32 both, float& low, float& high) {
    low = float_of(both << 16);
    high = float_of(both & 0xffff0000u);
}
__device__ __forceinline__ void half_pair_to_float(uint32 both, float& low, float& high) {
#ifdef __CUDA_ARCH__
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high) : "r"(both));
#else
    low = half_to_float((unsigned short)both);
    high = half_to_float((unsigned short)(both >> 16));
#endif
}

// The larger of two numbers, in each half of a word; of a NaN and a number the number.
__device__ __forceinline__ uint32 max_of_halves(uint32 a, uint32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32 larger;
    asm("max.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
#else
    float al, ah, bl, bh;
    half_pair_to_float(a, al, ah);
    half_pair_to_float(b, bl, bh);
    return float_to_half(::fmax(al, bl)) | uint32(float_to_half(::fmax(ah, bh))) << 16;
#endif
}
__device__ __forceinline__ uint32 max_of_bfloats(uint32 a, uint32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32 larger;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
#else
    float al, ah, bl, bh;
    bfloat_pair_to_float(a, al, ah);
    bfloat_pair_to_float(b, bl, bh);
    return float_to_bfloat(::fmax(al, bl)) | uint32(float_to_bfloat(::fmax(ah, bh))) << 16;
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

// 1 / x, relative error about 2^-23, for numbers that are normal, whose reciprocal is.
__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

// 2^x, relative error about 2^-22; infinities, NaN and subnormal results as exp2f has them.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return ::exp2f(x);
#endif
}

// The same, but 0 where 2^x is subnormal (x < -126): one instruction where the other takes four.
__device__ __forceinline__ float exp2_approx_ftz(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    float y = ::exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
#endif
}

// ---- 16 bytes that are used once, at a multiple of 16 --------------------------------------------

// Does not displace what L1 holds. Ordered with stores, so it serves data that is changed in place.
__device__ __forceinline__ uint4 load_streaming(const uint4* p) {
#ifdef __CUDA_ARCH__
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
#else
    return *p;
#endif
}

// The same through the read-only path. Nobody may write this memory while the kernel runs: not for
// what is changed in place.
__device__ __forceinline__ uint4 load_streaming_readonly(const uint4* p) {
#ifdef __CUDA_ARCH__
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// The first to leave the caches.
__device__ __forceinline__ void store_streaming(uint4* p, uint4 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
                 : : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
    *p = v;
#endif
}

// ---- accesses of one width ------------------------------------------------------------------------
//   To the device's memory. A compiler that sees elements, or two branches, would split them; and for an
//   address that was itself read from memory it would take loads and stores that find out, each time,
//   where it points. Volatile: they stay in the order of the program.

__device__ __forceinline__ unsigned char load_global(const unsigned char* p) {
#ifdef __CUDA_ARCH__
    uint32 v;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return (unsigned char)v;
#else
    return *p;
#endif
}
__device__ __forceinline__ unsigned short load_global(const unsigned short* p) {
#ifdef __CUDA_ARCH__
    unsigned short v;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
#else
    return *p;
#endif
}
__device__ __forceinline__ uint32 load_global(const uint32* p) {
#ifdef __CUDA_ARCH__
    uint32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
#else
    return *p;
#endif
}
__device__ __forceinline__ uint2 load_global(const uint2* p) {
#ifdef __CUDA_ARCH__
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
#else
    return *p;
#endif
}
__device__ __forceinline__ uint4 load_global(const uint4* p) {
#ifdef __CUDA_ARCH__
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// Not moved by any compiler, nor repeated.
__device__ __forceinline__ void load_relaxed(const void* p, uint32& v) {
#ifdef __CUDA_ARCH__
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
#else
    v = *static_cast<const uint32*>(p);
#endif
}
__device__ __forceinline__ void load_relaxed(const void* p, uint2& v) {
#ifdef __CUDA_ARCH__
    uint64 both;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(p));
    v.x = uint32(both), v.y = uint32(both >> 32);
#else
    v = *static_cast<const uint2*>(p);
#endif
}

__device__ __forceinline__ void store_global(unsigned short* p, unsigned short v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.u16 [%0], %1;" : : "l"(p), "h"(v) : "memory");
#else
    *p = v;
#endif
}
__device__ __forceinline__ void store_global(uint32* p, uint32 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
#else
    *p = v;
#endif
}
__device__ __forceinline__ void store_global(uint2* p, uint2 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(p), "r"(v.x), "r"(v.y) : "memory");
#else
    *p = v;
#endif
}
__device__ __forceinline__ void store_global(uint4* p, uint4 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 : : "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
    *p = v;
#endif
}

// As registers of 32 bits: where two branches meet, the compiler would keep a vector's 16-bit elements
// apart.
__device__ __forceinline__ void as_words(uint4& v) {
#ifdef __CUDA_ARCH__
    asm("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
#endif
}
__device__ __forceinline__ void as_words(uint2& v) {
#ifdef __CUDA_ARCH__
    asm("" : "+r"(v.x), "+r"(v.y));
#endif
}
template <class W> __device__ __forceinline__ void as_words(W&) {}  // one register anyway

// The compiler no longer knows what x is, and computes anew what it computed of x before.
__device__ __forceinline__ void forget(float& x) {
#ifdef __CUDA_ARCH__
    asm("" : "+f"(x));
#endif
}
__device__ __forceinline__ void forget(double& x) {
#ifdef __CUDA_ARCH__
    asm("" : "+d"(x));
#endif
}
__device__ __forceinline__ void forget(int& x) {  // anew in each turn of a loop, too
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(x));
#endif
}

// ---- words that the host or another block reads meanwhile ------------------------------------------
//   Of memory of the device or of pinned memory of the host.

__device__ __forceinline__ uint64 load_shared_word(const uint64* p) {
#ifdef __CUDA_ARCH__
    uint64 v;
    asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
    return v;
#else
    return __atomic_load_n(p, __ATOMIC_RELAXED);
#endif
}

// Whoever reads v there, the host included, also sees what this thread wrote before.
__device__ __forceinline__ void publish(uint64* p, uint64 v) {
#ifdef __CUDA_ARCH__
    asm volatile("st.release.sys.u64 [%0], %1;" : : "l"(p), "l"(v) : "memory");
#else
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
#endif
}

// ---- tickets: which block of a grid is the last ------------------------------------------------------

// How many of `all` took a ticket before; the last one puts the counter back to 0. Whoever takes a ticket
// sees what those before had written, who took theirs behind a barrier of their block included.
__device__ __forceinline__ uint32 take_ticket(int* counter, uint32 all) {
#ifdef __CUDA_ARCH__
    uint32 before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before) : "l"(counter), "r"(all - 1) : "memory");
    return before;
#else
    int before = __atomic_load_n(counter, __ATOMIC_RELAXED), next;
    do next = uint32(before) == all - 1 ? 0 : before + 1;
    while (!__atomic_compare_exchange_n(counter, &before, next, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return uint32(before);
#endif
}

// ---- asynchronous copies from global to shared memory --------------------------------------------
//   Issued, committed as a group, waited for: what a thread copied is there for that thread after its
//   wait, and for the block after a barrier behind it. Before sm_80 the copy is done at once.

template <int BYTES> __device__ __forceinline__ void copy_async(void* shared, const void* global) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint64 to = __cvta_generic_to_shared(shared);
    if constexpr (BYTES == 16)  // past L1
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     : : "r"(uint32(to)), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
                     : : "r"(uint32(to)), "l"(global), "n"(BYTES) : "memory");
#elif defined(__CUDA_ARCH__)
    if constexpr (BYTES == 16)
        *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    else if constexpr (BYTES == 8)
        *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
    else
        *static_cast<uint32*>(shared) = *static_cast<const uint32*>(global);
#else
    __pipeline_memcpy_async(shared, global, BYTES);
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" : : : "memory");
#elif !defined(__CUDA_ARCH__)
    __pipeline_commit();
#endif
}

// Until at most the N youngest groups of this thread are still on their way.
template <int N> __device__ __forceinline__ void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
#elif !defined(__CUDA_ARCH__)
    __pipeline_wait_prior(N);
#endif
}

// ---- tensor cores -----------------------------------------------------------------------------------
//   From sm_80 on. Before that multiply_tf32 does not exist, and no entry uses it.

// float32 -> TF32: 10 bits of fraction, to nearest, ties to even, as gpubackprop/backends/precision.py rounds.
// cvt.rna of sm_80 takes ties away from zero; cvt.rn came with sm_90 and CUDA 12.1.
__device__ __forceinline__ uint32 round_to_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
    uint32 y;
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#else
    uint32 u = bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffe000u;  // a NaN whose upper bits are not infinity's
    return (u + 0xfffu + (u >> 13 & 1u)) & 0xffffe000u;
#endif
}

// sum += A B of a warp, A (16, 8) and B (8, 8) in TF32, the sum (16, 8) in float32; all 32 lanes call. With
// g = lane / 4 and t = lane % 4 a lane has ("Matrix Fragments for mma.m16n8k8" of the PTX ISA)
//   a = A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4];  b = B[t, g], B[t + 4, g]
//   sum = C[g, 2 t], C[g, 2 t + 1], C[g + 8, 2 t], C[g + 8, 2 t + 1]
// In which order a card adds the eight terms, and how it rounds between them, is not documented. The twin
// adds them exactly and rounds once.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply_tf32(float (&sum)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __mma_m16n8k8_tf32(sum, a, b);
#endif
}
#endif

// ---- programmatic dependent launch ------------------------------------------------------------------
//   A grid that is launched so may start before the one in front of it has ended.

// First of all in an entry, by every thread: waits until the grids in front have ended and what they wrote
// can be seen, then lets the next grid start, which waits for this one in turn. Nothing where the grid was
// launched as usual.
__device__ __forceinline__ void follow_the_grid_in_front() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

// ---- thread-block clusters -----------------------------------------------------------------------
//   An entry declared  __global__ void __launch_bounds__(256) CLUSTER_DIMS(4) name(...)  runs in
//   clusters of 4 blocks from sm_90 on, in a grid whose x is a multiple of 4. For older cards it
//   compiles to clusters of one block, and the planner must launch it as such.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CLUSTER_DIMS(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER_DIMS(blocks)
#endif

// Of this block in its cluster.
__device__ __forceinline__ uint32 cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#elif defined(__CUDA_ARCH__)
    return 0;
#else
    return __clusterRelativeBlockRank();
#endif
}

// Blocks of a cluster.
__device__ __forceinline__ uint32 cluster_size() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32 size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
#elif defined(__CUDA_ARCH__)
    return 1;
#else
    return __clusterSizeInBlocks();
#endif
}

// The cluster's barrier in two halves: what was written before an arrival (release) is seen by every
// thread of the cluster after its wait (acquire). The threads of a warp come together.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
#elif !defined(__CUDA_ARCH__)
    __cluster_barrier_arrive();
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#elif defined(__CUDA_ARCH__)
    __syncthreads();
#else
    __cluster_barrier_wait();
#endif
}

__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// Where block `rank` of the cluster keeps what this block keeps at `shared`. Plain loads and stores
// reach it as long as that block runs: a block that others read ends behind a cluster barrier.
template <class T> __device__ __forceinline__ T* shared_of_rank(T* shared, uint32 rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
    return there;
#elif defined(__CUDA_ARCH__)
    return shared;
#else
    return static_cast<T*>(__cluster_map_shared_rank(shared, rank));
#endif
}

}  // namespace ptx
