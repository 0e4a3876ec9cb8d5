// host.hpp - what the host functions share: CUDA's words for g++ and clang, storages, pieces of rows.
//   A function walks over pieces of at most PIECE elements, which stay in the first-level cache. Each
//   short loop over a piece does one thing, and becomes vector code; 16-bit numbers are widened and
//   rounded by such loops, so that formulas exist for float and double alone.
#pragma once
#include "math.hpp"

#define __device__
#define __forceinline__ inline __attribute__((always_inline))

// What ptx.cuh names beside its conversions. The host never calls it.
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
extern "C" float exp2f(float);
void __pipeline_memcpy_async(void*, const void*, int);
void __pipeline_commit();
void __pipeline_wait_prior(int);
unsigned __clusterRelativeBlockRank();
unsigned __clusterSizeInBlocks();
void __cluster_barrier_arrive();
void __cluster_barrier_wait();
void* __cluster_map_shared_rank(void*, unsigned);
void __mma_m16n8k8_tf32(float (&)[4], const unsigned (&)[4], const unsigned (&)[2]);
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }

#include "../include/philox.cuh"
#include "arguments.hpp"

// In front of a loop: no iteration reads what another one writes. Arrays may be one and the same.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

constexpr int64 PIECE = 512;

inline int64 smaller(int64 a, int64 b) { return a < b ? a : b; }
inline int64 larger(int64 a, int64 b) { return a > b ? a : b; }

// ---- storages --------------------------------------------------------------------------------------

// call(T{}) with the type of a storage code; of the floating types alone, or of all.
template <class Call> inline void with_float(int storage, Call call) {
    switch (storage) {
        case STORED_F64: return call(f64());
        case STORED_F32: return call(f32());
        case STORED_F16: return call(f16());
        case STORED_BF16: return call(bf16());
    }
}
template <class Call> inline void with_compute(int storage, Call call) {
    if (storage == STORED_F64) call(f64());
    else call(f32());
}
template <class Call> inline void with_integer(int storage, Call call) {
    switch (storage) {
        case STORED_U8: return call(u8());
        case STORED_I32: return call(i32());
        case STORED_I64: return call(i64());
    }
}
template <class Call> inline void with_any(int storage, Call call) {
    if (storage < STORED_U8) with_float(storage, call);
    else with_integer(storage, call);
}

// Short functions that many places call: compiled once.
#define ONCE __attribute__((noinline))

template <class T, class C> ONCE void load(const void* from, C* to, int64 n) {
    const T* stored = static_cast<const T*>(from);
    INDEPENDENT for (int64 i = 0; i < n; ++i) to[i] = C(widen(stored[i]));
}
template <class T, class C> ONCE void store(const C* from, void* to, int64 n) {
    T* stored = static_cast<T*>(to);
    INDEPENDENT for (int64 i = 0; i < n; ++i) stored[i] = to_storage<T>(from[i]);
}
// By storage; the functions of the integer types round nothing, so only what is read has them.
template <class C> using Load = void (*)(const void* from, C* to, int64 n);
template <class C> using Store = void (*)(const C* from, void* to, int64 n);
template <class C> constexpr Load<C> LOADS[] = {
    load<f64, C>, load<f32, C>, load<f16, C>, load<bf16, C>, load<u8, C>, load<i32, C>, load<i64, C>};
template <class C> constexpr Store<C> STORES[] = {store<f64, C>, store<f32, C>, store<f16, C>, store<bf16, C>};
constexpr int BYTES[] = {8, 4, 2, 2, 1, 4, 8};
template <class C> constexpr int STORED_AS = sizeof(C) == 8 ? STORED_F64 : STORED_F32;

// A matrix in any storage, of which a function sees pieces of rows in the type C: where they lie, if they
// are stored in that type, or in a buffer.
template <class C> class Matrix {
    char* base;
    int64 stride;  // in bytes
    int storage, bytes;

public:
    Matrix(const void* base, int64 stride, int storage)
        : base(static_cast<char*>(const_cast<void*>(base))), stride(stride * BYTES[storage]),
          storage(storage), bytes(BYTES[storage]) {}
    explicit operator bool() const { return base != nullptr; }
    bool direct() const { return storage == STORED_AS<C>; }
    char* at(int64 row) const { return base + row * stride; }
    // A piece to read.
    const C* read(int64 row, int64 column, int64 n, C* buffer) const {
        char* at = base + row * stride + column * bytes;
        if (direct()) return reinterpret_cast<const C*>(at);
        LOADS<C>[storage](at, buffer, n);
        return buffer;
    }
    // Where to compute a piece that `put` then stores.
    C* place(int64 row, int64 column, C* buffer) const {
        return direct() ? reinterpret_cast<C*>(base + row * stride + column * bytes) : buffer;
    }
    void put(const C* from, int64 row, int64 column, int64 n) const {
        char* at = base + row * stride + column * bytes;
        if (static_cast<const void*>(from) != at) STORES<C>[storage](from, at, n);
    }
    // 16-bit numbers that are rounded already, into the first row.
    void put_bits(const unsigned short* from, int64 column, int64 n) const {
        __builtin_memcpy(base + column * bytes, from, 2 * n);
    }
};

// ---- sums that are right to their last place -------------------------------------------------------

// sum + x, and what the rounding lost; an infinite sum loses nothing.
template <class C> __forceinline__ void add_exactly(C x, C& sum, C& lost) {
    C next = sum + x, part = next - sum, rounding = (sum - (next - part)) + (x - part);
    lost += is_finite(next) ? rounding : C(0);
    sum = next;
}

// ---- random words ----------------------------------------------------------------------------------

// The words of n <= PIECE elements from number `first` on, in `room`.
inline ONCE const uint32* draw(int64 first, int64 n, uint64 offset, uint64 seed, uint32 (&room)[PIECE + 8]) {
    int64 shift = first & 3, blocks = (shift + n + 3) / 4;
    uint64 block = uint64(first >> 2);
    INDEPENDENT for (int64 b = 0; b < blocks; ++b) {
        Philox four = philox(block + uint64(b), offset, seed);
        room[4 * b] = four.word[0];
        room[4 * b + 1] = four.word[1];
        room[4 * b + 2] = four.word[2];
        room[4 * b + 3] = four.word[3];
    }
    return room + shift;
}

// The dropout of a matrix; include/dropout.cuh has the same for kernels.
template <class C> struct HostDropout {
    bool on;
    uint64 seed = 0, offset = 0;
    int64 base = 0;
    uint32 threshold = 0;
    C scale = C(1);

    template <class A> explicit HostDropout(const A& a) : on(a.dropout_state != nullptr) {
        if (!on) return;
        seed = a.dropout_state[0];
        offset = stream(a.dropout_state[1], uint64(a.dropout_layer));
        base = a.dropout_row * a.cols;
        threshold = uint32(a.dropout_threshold);
        scale = C(a.dropout_scale);
    }
    // x becomes 0 or scale * x; `first`: number of the first element, from that of row dropout_row.
    ONCE void apply(C* x, int64 first, int64 n) const {
        uint32 room[PIECE + 8];
        const uint32* words = draw(base + first, n, offset, seed, room);
        INDEPENDENT for (int64 i = 0; i < n; ++i) {
            C kept = x[i] * scale;
            x[i] = words[i] >= threshold ? kept : C(0);
        }
    }
};
