// vector.cuh - packs of neighbouring elements, moved in accesses of 16 bytes.
//   A pack at an address that is no multiple of its access width, and the first and last pack of a
//   row where the row does not fill them, are moved element by element instead.
#pragma once
#include "types.cuh"

template <class T> constexpr int PACK = 16 / int(sizeof(T));  // elements in 16 bytes

template <class T, int E> struct Pack { T v[E]; };

// The widest access that serves E elements of T: 16 bytes, or all of them if that is less.
template <class T, int E> constexpr int ACCESS = E * sizeof(T) < 16 ? int(E * sizeof(T)) : 16;

template <int BYTES> struct word;
template <> struct word<16> { using type = uint4; };
template <> struct word<8> { using type = uint2; };
template <> struct word<4> { using type = uint32; };
template <> struct word<2> { using type = unsigned short; };
template <> struct word<1> { using type = u8; };

template <class T, int E> union Words {
    using W = typename word<ACCESS<T, E>>::type;
    static constexpr int COUNT = E * int(sizeof(T)) / ACCESS<T, E>;
    W words[COUNT];
    Pack<T, E> pack;
    __device__ __forceinline__ Words() {}
};

template <class T, int E> __device__ __forceinline__ bool aligned(const T* p) {
    return (uint64)p % ACCESS<T, E> == 0;
}

// How many elements `p` lies beyond a multiple of 16 bytes: the length of a peeled head is
// PACK - misalignment, and -misalignment the place where a grid of whole packs begins.
template <class T> __device__ __forceinline__ int misalignment(const T* p) {
    return int((uint64)p % 16 / sizeof(T));
}

// Of the E elements of a pack, how many there are where `left` are left.
template <int E> __device__ __forceinline__ int elements(int64 left) {
    return left >= E ? E : left < 0 ? 0 : int(left);
}

// Elements [lo, hi) of the pack at any p, in shared memory too; the others are 0 and not touched.
template <class T, int E>
__device__ __forceinline__ Pack<T, E> load_part(const T* p, int lo, int hi) {
    Words<T, E> both;
    if (lo == 0 && hi == E && aligned<T, E>(p)) {
#pragma unroll
        for (int i = 0; i < Words<T, E>::COUNT; ++i)
            both.words[i] = reinterpret_cast<const typename Words<T, E>::W*>(p)[i];
        return both.pack;
    }
#pragma unroll
    for (int e = 0; e < E; ++e) both.pack.v[e] = e >= lo && e < hi ? p[e] : T{};
    return both.pack;
}

// ---- the device's memory, in accesses that no compiler splits, widens or moves (ptx.cuh) -------------

namespace global {

template <class T> __device__ __forceinline__ T load_element(const T* p) {
    Words<T, 1> both;
    both.words[0] = ptx::load_global(reinterpret_cast<const typename Words<T, 1>::W*>(p));
    return both.pack.v[0];
}
// The same at once: a compiler would wait with a load for the branch that uses it, or load again in
// every turn of a loop that stores.
template <class T> __device__ __forceinline__ T load_now(const T* p) {
    Words<T, 1> both;
    ptx::load_relaxed(p, both.words[0]);
    return both.pack.v[0];
}
template <class T> __device__ __forceinline__ void store_element(T* p, T value) {
    Words<T, 1> both;
    both.pack.v[0] = value;
    ptx::store_global(reinterpret_cast<typename Words<T, 1>::W*>(p), both.words[0]);
}

// The pack at p, a multiple of its access width.
template <class T, int E> __device__ __forceinline__ void load_words(const T* p, Words<T, E>& both) {
#pragma unroll
    for (int i = 0; i < Words<T, E>::COUNT; ++i)
        both.words[i] = ptx::load_global(reinterpret_cast<const typename Words<T, E>::W*>(p) + i);
}
template <class T, int E> __device__ __forceinline__ Pack<T, E> load(const T* p) {
    Words<T, E> both;
    load_words(p, both);
    return both.pack;
}

template <class T, int E> __device__ __forceinline__ void store(T* p, const Pack<T, E>& pack) {
    Words<T, E> both;
    both.pack = pack;
#pragma unroll
    for (int i = 0; i < Words<T, E>::COUNT; ++i)
        ptx::store_global(reinterpret_cast<typename Words<T, E>::W*>(p) + i, both.words[i]);
}

// The pack at p, or zeros and no access.
template <class T, int E> __device__ __forceinline__ Pack<T, E> load_if(bool wanted, const T* p) {
    Words<T, E> both;
#pragma unroll
    for (int i = 0; i < Words<T, E>::COUNT; ++i) both.words[i] = typename Words<T, E>::W{};
    if (wanted) load_words(p, both);
    return both.pack;
}

// Elements [lo, hi) of the pack at any p; the others are 0 and their memory is not touched. Both ways
// end in whole words: else the compiler would take 16-bit elements apart at once, and so wait for them
// before it asks for what comes next.
template <class T, int E>
__device__ __forceinline__ Pack<T, E> load_part(const T* p, int lo, int hi) {
    Words<T, E> both;
    if (lo == 0 && hi == E && aligned<T, E>(p)) {
        load_words(p, both);
    } else {
#pragma unroll
        for (int e = 0; e < E; ++e) both.pack.v[e] = e >= lo && e < hi ? load_element(p + e) : T{};
    }
#pragma unroll
    for (int i = 0; i < Words<T, E>::COUNT; ++i) ptx::as_words(both.words[i]);
    return both.pack;
}

template <class T, int E>
__device__ __forceinline__ void store_part(T* p, const Pack<T, E>& pack, int lo, int hi) {
    if (lo == 0 && hi == E && aligned<T, E>(p)) return store(p, pack);
#pragma unroll
    for (int e = 0; e < E; ++e)
        if (e >= lo && e < hi) store_element(p + e, pack.v[e]);
}

}  // namespace global

// 16 bytes of elements, rounded once; 16-bit types two at a time.
template <class T, class C>
__device__ __forceinline__ Words<T, PACK<T>> to_storage_all(const C (&v)[PACK<T>]) {
    Words<T, PACK<T>> both;
    if constexpr (sizeof(T) == 2) {
        union { uint32 pairs[4]; uint4 word; } made;
#pragma unroll
        for (int i = 0; i < 4; ++i) made.pairs[i] = to_storage_pair<T>(v[2 * i], v[2 * i + 1]);
        both.words[0] = made.word;
    } else {
#pragma unroll
        for (int e = 0; e < PACK<T>; ++e) both.pack.v[e] = to_storage<T>(v[e]);
    }
    return both;
}

// `store_part` of 16 bytes to global memory alone: a whole pack is one instruction.
template <class T>
__device__ __forceinline__ void store_words(T* p, const Words<T, PACK<T>>& both, int lo, int hi) {
    if (lo == 0 && hi == PACK<T> && aligned<T, PACK<T>>(p)) {
        ptx::store_global(reinterpret_cast<uint4*>(p), both.words[0]);
        return;
    }
#pragma unroll
    for (int e = 0; e < PACK<T>; ++e)
        if (e >= lo && e < hi) p[e] = both.pack.v[e];
}
