// affine_epilogue<Act, T>: bias and activation after the matrix product, in place over it
//   a = product + bias;  h = Act::value(a, k)
//   product, a, h: T[rows, cols], rows `stride_...` elements apart; bias: T[cols]
//   h may be product; so may a, if h is not; bias null: none; a null: not kept
//   moves 2 * rows * cols * sizeof(T): reads product, writes h (and a: 3, where the slope needs a)
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
#include "activations.cuh"
#include "include/entries.cuh"
#include "include/strip.cuh"

template <class Act, class T, int E>
__device__ __forceinline__ void bias_and_value(
    Pack<T, E>& pack, Pack<T, E>& kept, const compute_of<T> (&bias)[E], compute_of<T> k) {
#pragma unroll
    for (int e = 0; e < E; ++e) {
        compute_of<T> x = widen(pack.v[e]) + bias[e];
        kept.v[e] = narrow<T>(x);
        pack.v[e] = narrow<T>(Act::value(x, k));
    }
}

template <class Act, class T>
__device__ __forceinline__ void affine_epilogue(
    const T* product, const T* bias, T* a, T* h, int64 rows, int64 cols, int join,
    int64 stride_product, int64 stride_a, int64 stride_h, compute_of<T> k) {
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
                bias_and_value<Act>(pack[u], kept, b, k);
                if (a != nullptr) store(keep.at + u * keep.step, kept);
                store(out.at + u * out.step, pack[u]);
            }
            row += UNROLL * STRIP_ROWS;
            in.advance(UNROLL), keep.advance(UNROLL), out.advance(UNROLL);
        } else {  // a head or tail, a row off 16 bytes, or fewer than UNROLL rows left
            int lo = strip.lo(row), hi = strip.hi(row);
            pack[0] = load_part<T, E>(in.at, lo, hi);
            bias_and_value<Act>(pack[0], kept, b, k);
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
                                             stride_product, stride_a, stride_h, k);            \
    }
#define ENTRY(act, T) ENTRY_(act, T)
FOR_EACH_ACTIVATION(ENTRY)
