// column_totals.cuh - what a block writes of its column sums: the first of two stages.
//   Each thread of a strip holds the sums of its E columns over its rows. The block adds those of its
//   STRIP_ROWS threads one over another, from the top down, and writes one row of `partial`:
//     one strip of joined rows (gridDim.x == 1): folded to cols sums,  partial[gridDim.y, cols]
//     otherwise: partial[gridDim.y, width], which is [gridDim.y * max(join, 1), cols]
//   column_sum_finish adds the rows of partial. The order of all additions follows from the launch
//   shape alone, so two runs on one machine agree bitwise; no atomics.
#pragma once
#include "reduce.cuh"
#include "strip.cuh"

constexpr int SEQUENCE = 16;  // terms that a thread adds one after another before it starts afresh:
                              // the rounding error then grows with N / 16 + 16, not with N

// Place of a column in shared memory: one number is left out after each row of banks, so that neither
// neighbours nor columns E apart meet in a bank.
template <class C> __device__ __forceinline__ int spaced(int column) {
    return column + column / (128 / int(sizeof(C)));
}

template <class C, int E>
__device__ __forceinline__ void write_column_totals(
    const Strip<E>& strip, const C (&total)[E], C* partial) {
    constexpr int COLUMNS = STRIP_COLUMNS * E;
    __shared__ C sums[E][STRIP_ROWS][STRIP_COLUMNS];  // lanes of a warp in neighbouring banks
    __shared__ C column_sums[COLUMNS + COLUMNS * sizeof(C) / 128];
#pragma unroll
    for (int e = 0; e < E; ++e) sums[e][threadIdx.y][threadIdx.x] = strip.inside ? total[e] : C(0);
    __syncthreads();
    int thread = threadIdx.y * STRIP_COLUMNS + threadIdx.x;
    if (thread < COLUMNS) {  // COLUMNS <= STRIP_THREADS for packs of up to 8
        int lane = thread % STRIP_COLUMNS, e = thread / STRIP_COLUMNS;
        Compensated<C> sum;
        for (int y = 0; y < STRIP_ROWS; ++y) sum.add(sums[e][y][lane]);
        column_sums[spaced<C>(lane * E + e)] = sum.value();
    }
    __syncthreads();
    if (strip.joined && gridDim.x == 1) {
        for (int64 c = thread; c < strip.cols; c += STRIP_THREADS) {
            Compensated<C> sum;
            for (int64 j = c; j < strip.width; j += strip.cols) {
                int64 at = j - strip.origin;  // the head's columns stand at the far end of the row
                sum.add(column_sums[spaced<C>(int(at < strip.width ? at : at - strip.width))]);
            }
            partial[blockIdx.y * strip.cols + c] = sum.value();
        }
        return;
    }
    int64 column = strip.origin + int64(blockIdx.x) * COLUMNS + thread;
    bool exists = strip.joined ? column < strip.origin + strip.width
                               : column >= 0 && column < strip.width;
    if (column < 0) column += strip.width;
    if (thread < COLUMNS && exists)
        partial[blockIdx.y * strip.width + column] = column_sums[spaced<C>(thread)];
}
