// rows.cuh - kernels whose unit of work is a row: a group of threads to each.
//   block (x, y): x threads to a row, y rows at a time (y = 1 where x > 32); see include/reduce.cuh.
//   Blocks take rows in turn, so any gridDim.x covers any number of rows. Lanes read neighbouring
//   elements, one each: coalesced, not vectorised.
#pragma once
#include "reduce.cuh"

constexpr int ROW_THREADS = 256;  // at most, in a block

// The rows of a group. All groups of a block loop together, since reductions need every thread:
// a group beyond the last row computes on no element and stores nothing.
#define FOR_EACH_ROW(row, rows)                                                             \
    for (int64 row##_base = int64(blockIdx.x) * blockDim.y, row = row##_base + threadIdx.y; \
         row##_base < rows;                                                                 \
         row##_base += int64(gridDim.x) * blockDim.y, row = row##_base + threadIdx.y)

// What multiplies a row's loss and gradient. Each part is null for 1; `upstream` has one number for
// each row (stride 1) or one for all (stride 0); `divisor` is the mean's, one number.
template <class C> struct RowScale {
    const C *sample_weight, *upstream, *divisor;
    int64 upstream_stride;

    __device__ __forceinline__ C weight(int64 row) const {
        return sample_weight == nullptr ? C(1) : sample_weight[row];
    }
    __device__ __forceinline__ C gradient(int64 row) const {
        C scale = weight(row);
        if (upstream != nullptr) scale *= upstream[row * upstream_stride];
        return divisor == nullptr ? scale : scale / *divisor;
    }
};
