// affine_epilogue<Act, T, Drop>: bias and activation after the matrix product, in place over it
//   a = product + bias;  h = Act::value(a, k);  with dropout, entries affine_epilogue_dropout_...,
//   h = keep ? scale * Act::value(a, k) : 0 (include/dropout.cuh)
//   product, a, h: T[rows, cols], rows `stride_...` elements apart; bias: T[cols]
//   h may be product; so may a, if h is not; bias null: none; a null: not kept
//   with dropout `a` is given what the slope is a function of: the value before it is dropped where
//   Act takes its slope from h
//   moves 2 * rows * cols * sizeof(T): reads product, writes h (and a: 3, where the slope needs a)
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
#include "activations.cuh"
#include "include/dropout.cuh"
#include "include/entries.cuh"
#include "include/strip.cuh"

// h in place of the product; `first`: number of the pack's first element.
template <class Act, class Drop, class T, int E>
__device__ __forceinline__ void bias_and_value(
    Pack<T, E>& pack, Pack<T, E>& kept, const compute_of<T> (&bias)[E], compute_of<T> k,
    const Drop& drop, int64 first) {
    using C = compute_of<T>;
    C factor[E] = {};
    drop.draw(first, factor);
#pragma unroll
    for (int e = 0; e < E; ++e) {
        C x = widen(pack.v[e]) + bias[e], value = Act::value(x, k);
        kept.v[e] = narrow<T>(Drop::ON && !Act::SAVES_A ? value : x);
        pack.v[e] = narrow<T>(dropped<Drop>(value, factor[e]));
    }
}

template <class Act, class T, class Drop>
__device__ __forceinline__ void affine_epilogue(
    const T* product, const T* bias, T* a, T* h, int64 rows, int64 cols, int join,
    int64 stride_product, int64 stride_a, int64 stride_h, compute_of<T> k, const Drop& drop) {
    constexpr int E = PACK<T>, UNROLL = sizeof(T) == 8 ? 2 : 4;
    Strip<E> strip(rows, cols, join, misalignment(h));
    if (!strip.inside) return;
    compute_of<T> b[E] = {};
    if (bias != nullptr) load_columns(strip, bias, b);
    int64 row = strip.first + threadIdx.y;
    Walk<const T, E> in(strip, product, row, stride_product);
    Walk<T, E> out(strip, h, row, stride_h), keep = out;
    if (a != nullptr) keep = Walk<T, E>(strip, a, row, stride_a);
    bool vector = in.vector() && out.vector() && keep.vector();
    Pack<T, E> pack[UNROLL], kept;
    while (row < strip.last) {
        if (vector && strip.whole(row, UNROLL)) {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) pack[u] = load<T, E>(in.at + u * in.step);
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                bias_and_value<Act>(pack[u], kept, b, k, drop, strip.place(row + u * STRIP_ROWS));
                if (a != nullptr) store(keep.at + u * keep.step, kept);
                store(out.at + u * out.step, pack[u]);
            }
            row += UNROLL * STRIP_ROWS;
            in.advance(UNROLL), keep.advance(UNROLL), out.advance(UNROLL);
        } else {  // a head or tail, a row off 16 bytes, or fewer than UNROLL rows left
            int lo = strip.lo(row), hi = strip.hi(row);
            pack[0] = load_part<T, E>(in.at, lo, hi);
            bias_and_value<Act>(pack[0], kept, b, k, drop, strip.place(row));
            if (a != nullptr) store_part(keep.at, kept, lo, hi);
            store_part(out.at, pack[0], lo, hi);
            row += STRIP_ROWS;
            in.advance(1), keep.advance(1), out.advance(1);
        }
    }
}

#define ENTRY_(act, T)                                                                          \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2) affine_epilogue_##act##_##T( \
        const T* product, const T* bias, T* a, T* h, int64 rows, int64 cols, int join,          \
        int64 stride_product, int64 stride_a, int64 stride_h, compute_of<T> k) {                \
        affine_epilogue<activations::act, T>(product, bias, a, h, rows, cols, join,             \
                                             stride_product, stride_a, stride_h, k, NoDropout{}); \
    }
#define DROPOUT_ENTRY_(act, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2)                              \
        affine_epilogue_dropout_##act##_##T(                                                    \
            const T* product, const T* bias, T* a, T* h, int64 rows, int64 cols, int join,      \
            int64 stride_product, int64 stride_a, int64 stride_h, compute_of<T> k,              \
            const uint64* state, int64 threshold, compute_of<T> scale, int64 layer) {           \
        affine_epilogue<activations::act, T>(                                                   \
            product, bias, a, h, rows, cols, join, stride_product, stride_a, stride_h, k,       \
            Dropout<compute_of<T>>(state, threshold, scale, layer));                            \
    }
#define ENTRY(act, T) ENTRY_(act, T)
#define DROPOUT_ENTRY(act, T) DROPOUT_ENTRY_(act, T)
#ifndef ONLY_DROPOUT
FOR_EACH_ACTIVATION(ENTRY)
#endif
#if defined(ONLY_DROPOUT) || !defined(ONLY_DTYPE)
FOR_EACH_ACTIVATION(DROPOUT_ENTRY)
#endif
