// gather_rows<S, D>: rows of a matrix by number, converted;  out[i, :] = D(source[rows[i], :])
//   source: S[source_rows, cols], out: D[count, cols], rows `stride_...` elements apart; rows: i64[count]
//   rows null: out[i] = source[i], a conversion of the whole matrix
//   cursor not null: the address of the row numbers, in the device's memory; with a counter, the last block
//   moves it on by count, so that the next launch of a CUDA graph takes the next batch
//   beside0, beside1, beside2: narrow rows of the same numbers (labels, weights), copied to beside_out0, ...;
//   words0, ... are words of 4 bytes to a row, 0 for none, and most_words the most of them
//   a row number outside [0, source_rows) is moved to the nearest inside: never an access outside
//   moves count * cols * (sizeof(S) + sizeof(D)): reads each row once, writes it once
//   block (x, y): x threads along a row, y rows; grid (x): rows in turn, (y): parts of a row in turn
//   stores of 16 bytes where the out row allows, loads as wide as serves them; UNROLL packs of a row are in
//   flight, and the number of the next row
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/last_block.cuh"
#include "include/vector.cuh"

template <class S, class D> struct GatherRowsArguments {
    const S* source;
    const int64* rows;
    uint64* cursor;
    D* out;
    const uint32 *beside0, *beside1, *beside2;
    uint32 *beside_out0, *beside_out1, *beside_out2;
    int* counter;
    int64 count, cols, source_rows, stride_source, stride_out;
    int words0, words1, words2, most_words;
};

// As it stands in `rows`; any number beyond the last row.
__device__ __forceinline__ int64 row_number(const int64* rows, int64 i, int64 count) {
    return rows == nullptr || i >= count ? i : global::load_element(rows + i);
}

template <class S, class D>
__device__ __forceinline__ int64 inside(const GatherRowsArguments<S, D>& a, int64 from) {
    return from < 0 ? 0 : from >= a.source_rows ? a.source_rows - 1 : from;
}

// The narrow rows; the loads of the three arrays are under way together. A loop of its own, so that the
// loop over the wide rows keeps its registers.
template <class S, class D>
__device__ __forceinline__ void copy_beside(const GatherRowsArguments<S, D>& a, const int64* rows) {
    int64 first = int64(blockIdx.x) * blockDim.y + threadIdx.y, rows_apart = int64(gridDim.x) * blockDim.y;
    for (int64 i = first; i < a.count; i += rows_apart) {
        int64 from = inside(a, row_number(rows, i, a.count));
        for (int w = int(threadIdx.x); w < a.most_words; w += int(blockDim.x)) {
            uint32 word0 = w < a.words0 ? global::load_element(a.beside0 + from * a.words0 + w) : 0;
            uint32 word1 = w < a.words1 ? global::load_element(a.beside1 + from * a.words1 + w) : 0;
            uint32 word2 = w < a.words2 ? global::load_element(a.beside2 + from * a.words2 + w) : 0;
            if (w < a.words0) global::store_element(a.beside_out0 + i * a.words0 + w, word0);
            if (w < a.words1) global::store_element(a.beside_out1 + i * a.words1 + w, word1);
            if (w < a.words2) global::store_element(a.beside_out2 + i * a.words2 + w, word2);
        }
    }
}

template <class D, class S, int E>
__device__ __forceinline__ Pack<D, E> converted(const Pack<S, E>& in) {
    Pack<D, E> result;
#pragma unroll
    for (int e = 0; e < E; ++e) result.v[e] = to_storage<D>(widen(in.v[e]));
    return result;
}

template <class S, class D>
__device__ __forceinline__ void gather_rows(const GatherRowsArguments<S, D>& a) {
    constexpr int E = PACK<D>, UNROLL = 4;
    const int64 rows_apart = int64(gridDim.x) * blockDim.y, step = int64(gridDim.y) * blockDim.x * E;
    const int64* rows = a.rows;
    if (a.cursor != nullptr) rows = reinterpret_cast<const int64*>(global::load_element(a.cursor));
    if (blockIdx.y == 0 && a.most_words > 0) copy_beside(a, rows);
    int64 i = int64(blockIdx.x) * blockDim.y + threadIdx.y, next = row_number(rows, i, a.count);
    for (; i < a.count; i += rows_apart) {
        int64 from = inside(a, next);
        next = row_number(rows, i + rows_apart, a.count);
        D* out_row = a.out + i * a.stride_out;
        int64 j = (int64(blockIdx.y) * blockDim.x + threadIdx.x) * E - misalignment(out_row);
        const S* in = a.source + from * a.stride_source + j;
        D* out = out_row + j;
        bool vector = aligned<S, E>(in);  // or no pack of the row is, as `out` is always
        while (j < a.cols) {
            int whole = 0;  // packs of the next UNROLL
            for (int u = 0; u < UNROLL; ++u) whole += vector && j >= 0 && j + u * step + E <= a.cols;
            if (whole > 0) {
                Pack<S, E> packs[UNROLL];
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) packs[u] = global::load_if<S, E>(u < whole, in + u * step);
#pragma unroll
                for (int u = 0; u < UNROLL; ++u)
                    if (u < whole) global::store(out + u * step, converted<D>(packs[u]));
            } else {
                int lo = j < 0 ? int(-j) : 0, hi = elements<E>(a.cols - j);
                global::store_part(out, converted<D>(global::load_part<S, E>(in, lo, hi)), lo, hi);
                whole = 1;
            }
            j += whole * step, in += whole * step, out += whole * step;
        }
    }
    if (a.counter == nullptr || !is_last_block(a.counter)) return;
    if (thread_of_block() != 0) return;
    uint64 at = global::load_element(a.cursor);  // again, so that no register is kept until here
    global::store_element(a.cursor, at + uint64(a.count) * sizeof(int64));
}

// Blocks of a multiprocessor: left alone, the compiler aims at more, and spills.
template <class S> constexpr int LEAST_BLOCKS = sizeof(S) > 4 ? 2 : 1;

#define ENTRY_(S, D)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, LEAST_BLOCKS<S>) gather_rows_##S##_##D( \
        const __grid_constant__ GatherRowsArguments<S, D> a) {                                \
        ptx::follow_the_grid_in_front();                                                      \
        gather_rows<S, D>(a);                                                                 \
    }
#define ENTRY(S, D) ENTRY_(S, D)
#ifdef ONLY_FORMULA
ENTRY(ONLY_FORMULA, ONLY_DTYPE)
#else
FOR_EACH_DTYPE(ENTRY, u8) FOR_EACH_DTYPE(ENTRY, f16) FOR_EACH_DTYPE(ENTRY, bf16)
FOR_EACH_DTYPE(ENTRY, f32) FOR_EACH_DTYPE(ENTRY, f64)
ENTRY(i32, i32) ENTRY(i64, i64) ENTRY(i32, i64)
#endif
