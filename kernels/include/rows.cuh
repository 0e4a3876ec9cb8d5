// rows.cuh - kernels whose unit of work is a row: a group of threads to each.
//   block (x, y): x threads to a row, y rows at a time (y = 1 where x > 32); see include/reduce.cuh.
//   Blocks take rows in turn, so any gridDim.x covers any number of rows. Lanes read neighbouring
//   elements, one each: coalesced, not vectorised.
#pragma once
#include "arguments.cuh"
#include "reduce.cuh"

constexpr int ROW_THREADS = 256;  // at most, in a block

// The rows of a group. All groups of a block loop together, since reductions need every thread:
// a group beyond the last row computes on no element and stores nothing.
#define FOR_EACH_ROW(row, rows)                                                             \
    for (int64 row##_base = int64(blockIdx.x) * blockDim.y, row = row##_base + threadIdx.y; \
         row##_base < rows;                                                                 \
         row##_base += int64(gridDim.x) * blockDim.y, row = row##_base + threadIdx.y)

// What multiplies a row's loss and its gradient. A: the arguments of a loss kernel, with the fields
//   sample_weight   C[rows], or null for 1
//   upstream        the gradient of what the loss is a part of: one number for each row (upstream_stride
//                   1), or one for all (0)
//   divisor         of a mean; 1 for a sum
template <class A> __device__ __forceinline__ auto row_weight(const A& a, int64 row) {
    return a.sample_weight == nullptr ? decltype(a.divisor.get())(1) : a.sample_weight[row];
}
template <class A> __device__ __forceinline__ auto gradient_scale(const A& a, int64 row) {
    return row_weight(a, row) * a.upstream.get(row * a.upstream_stride) / a.divisor.get();
}
