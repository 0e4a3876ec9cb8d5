// strip.cuh - how the threads of an elementwise kernel walk over a matrix.
//
//   A block is 32 threads along the columns and STRIP_ROWS along the rows; each thread owns a pack of
//   E neighbouring columns and visits every STRIP_ROWS-th row of the block's chunk of rows, so its
//   columns never change: a bias is loaded once, a column sum stays in registers.
//
//   join > 0   every matrix is contiguous; `join` rows are taken as one long row, so that a matrix of
//              2 columns fills a warp and a row of 1001 columns is followed by one that starts on 16
//              bytes again: the planner sees to it that join * cols is a multiple of E.
//   join == 0  rows lie `stride` elements apart and each begins a new row of packs.
//   origin     the column at which the grid of packs begins: 0, or below 0 where the first element
//              is not on a multiple of 16 bytes. The first pack is then only partly inside: the head.
//
//   gridDim.x * 32 * E columns cover a (joined) row; gridDim.y chunks of rows cover the matrix. Both
//   may be anything that covers: values do not depend on the launch shape, except for the order in
//   which column sums are added.
#pragma once
#include "vector.cuh"

constexpr int STRIP_COLUMNS = 32, STRIP_ROWS = 8, STRIP_THREADS = STRIP_COLUMNS * STRIP_ROWS;
constexpr int STRIP_UNROLL = 4;  // rows of a thread whose loads are in flight together, at most

// Rows of a block, of at least `rows`: a multiple of those that it has in flight at once, so that no thread
// has a step with fewer loads but at the end of the matrix; a matrix for which that is too much is spread
// thinner over the card. gpubackprop/backends/cupy_launch.py plans with the same number.
__device__ __forceinline__ int64 strip_chunk(int64 rows) {
    int64 unit = rows > STRIP_ROWS * (STRIP_UNROLL - 1) ? STRIP_ROWS * STRIP_UNROLL : STRIP_ROWS;
    return (rows + unit - 1) / unit * unit;
}

template <int E> struct Strip {
    int64 width;        // columns of a (joined) row
    int64 cols;         // columns of the matrix
    int64 column;       // of this thread's first element; below 0 in a head
    int64 origin, end;  // end: elements of the matrix if joined, else columns
    int64 first, last;  // this block's (joined) rows
    int64 whole_first, whole_last;  // those of them in which the thread's pack lies whole
    bool joined, inside;

    __device__ __forceinline__ Strip(int64 rows, int64 cols, int join, int misaligned)
        : width(join > 0 ? join * cols : cols), cols(cols), origin(-misaligned),
          end(join > 0 ? rows * cols : cols), joined(join > 0) {
        column = origin + (int64(blockIdx.x) * STRIP_COLUMNS + threadIdx.x) * E;
        int64 all = joined ? (end - origin + width - 1) / width : rows;
        int64 chunk = strip_chunk((all + gridDim.y - 1) / gridDim.y);
        first = chunk * blockIdx.y < all ? chunk * blockIdx.y : all;
        last = first + chunk < all ? first + chunk : all;
        inside = joined ? column < origin + width : column < cols;
        whole_first = first, whole_last = last;
        if (!joined) {
            if (column < 0 || column + E > cols) whole_last = first;
        } else {  // only the very first and the very last pack of a column may be cut
            if (first == 0 && column < 0) whole_first = 1;
            if (last == all && (all - 1) * width + column + E > end) whole_last = last - 1;
        }
    }

    // From one (joined) row of a matrix to the next, where its rows are `stride` apart.
    __device__ __forceinline__ int64 pitch(int64 stride) const { return joined ? width : stride; }
    // In how many rows the pack lies whole, of `count` of this block's from r on that are STRIP_ROWS apart.
    __device__ __forceinline__ int whole(int64 r, int count) const {
        int64 left = whole_last - r;
        if (r < whole_first || left <= 0) return 0;
        return left > (count - 1) * STRIP_ROWS ? count : (int(left) + STRIP_ROWS - 1) / STRIP_ROWS;
    }
    // Elements [lo, hi) of the pack in row r exist.
    __device__ __forceinline__ int lo(int64 r) const {
        int64 at = joined ? r * width + column : column;
        return at >= 0 ? 0 : at <= -E ? E : int(-at);
    }
    __device__ __forceinline__ int hi(int64 r) const {
        int64 left = end - (joined ? r * width + column : column);
        return left >= E ? E : left < 0 ? 0 : int(left);
    }
    // Place of the pack's first element in the matrix without gaps between rows.
    __device__ __forceinline__ int64 place(int64 r) const {
        return r * width + column;
    }
    // Column of the matrix in which the thread's first element lies; below 0 in the head of a row that
    // is not joined, which may begin further before the row than the row is long.
    __device__ __forceinline__ int64 first_column() const {
        return !joined ? column : (column < 0 ? column + width : column) % cols;
    }
};

// One matrix as this thread walks down it: `at` is its pack in the current row.
template <class T, int E> struct Walk {
    T* at;
    int64 step;  // elements from one of the thread's rows to its next

    __device__ __forceinline__ Walk(const Strip<E>& strip, T* matrix, int64 row, int64 stride)
        : at(matrix + row * strip.pitch(stride) + strip.column), step(STRIP_ROWS * strip.pitch(stride)) {}
    // Every pack of the thread is on a multiple of the access width: STRIP_ROWS rows of any pitch are.
    __device__ __forceinline__ bool vector() const {
        static_assert(STRIP_ROWS * sizeof(T) % ACCESS<T, E> == 0);
        return aligned<T, E>(at);
    }
    __device__ __forceinline__ void advance(int rows) { at += rows * step; }
};

// Elements of `values` (cols) that belong to the thread's columns.
template <class C, class T, int E>
__device__ __forceinline__ void load_columns(const Strip<E>& strip, const T* values, C (&out)[E]) {
    int64 c = strip.first_column();
    if (c >= 0 && c + E <= strip.cols && aligned<T, E>(values + c)) {
        Pack<T, E> pack = global::load<T, E>(values + c);
#pragma unroll
        for (int e = 0; e < E; ++e) out[e] = C(widen(pack.v[e]));
        return;
    }
#pragma unroll
    for (int e = 0; e < E; ++e, ++c) {
        if (c == strip.cols && strip.joined) c = 0;
        out[e] = c >= 0 && c < strip.cols ? C(widen(values[c])) : C(0);
    }
}
