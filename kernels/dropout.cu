// dropout<T>: out[i] = keep(i) ? scale * x[i] : 0; forward and backward alike
//   keep(i) = word(i) >= threshold, word(i) the random word of element i = row * cols + column
//   threshold = round(p * 2^32), 0 to 2^32; scale = 1 / (1 - p), or 0 for p = 1
//   state = {seed, offset} on the device: another offset at each step, the same in its backward pass
//   x, out: T[rows, cols], rows `stride_...` elements apart; out may be x
//   moves 2 * rows * cols * sizeof(T): reads x, writes out; no mask is stored
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/philox.cuh"
#include "include/strip.cuh"

template <class T>
__device__ __forceinline__ void dropout(
    const T* x, T* out, const uint64* state, int64 threshold, compute_of<T> scale, int64 rows,
    int64 cols, int join, int64 stride_x, int64 stride_out) {
    constexpr int E = PACK<T>;
    Strip<E> strip(rows, cols, join, misalignment(out));
    if (!strip.inside) return;
    uint64 seed = state[0], offset = state[1];
    int64 row = strip.first + threadIdx.y;
    Walk<const T, E> in(strip, x, row, stride_x);
    Walk<T, E> to(strip, out, row, stride_out);
    for (; row < strip.last; row += STRIP_ROWS, in.advance(1), to.advance(1)) {
        int lo = strip.lo(row), hi = strip.hi(row);
        Pack<T, E> pack = load_part<T, E>(in.at, lo, hi);
        uint32 words[E];
        random_words<E>(strip.place(row), offset, seed, words);
#pragma unroll
        for (int e = 0; e < E; ++e)
            pack.v[e] = narrow<T>(int64(words[e]) >= threshold ? widen(pack.v[e]) * scale
                                                               : compute_of<T>(0));
        store_part(to.at, pack, lo, hi);
    }
}

#define ENTRY_(formula, T)                                                                   \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS) dropout_##T(                 \
        const T* x, T* out, const uint64* state, int64 threshold, compute_of<T> scale,       \
        int64 rows, int64 cols, int join, int64 stride_x, int64 stride_out) {                \
        dropout<T>(x, out, state, threshold, scale, rows, cols, join, stride_x, stride_out); \
    }
#define ENTRY(formula, T) ENTRY_(formula, T)
FOR_EACH_DTYPE(ENTRY, )
