// last_block.cuh - a second stage without a launch: the last block of a grid does it.
//   Each block leaves its part in memory and takes a ticket. Who has the last one sees the parts of all, and
//   adds them in the order of the blocks, which the grid alone decides: the result is the same bit for bit,
//   whichever block is the last. The counter is 0 before a launch and after it, so a CUDA graph may replay it;
//   two launches at the same time need a counter each.
#pragma once
#include "reduce.cuh"

__device__ __forceinline__ uint32 blocks_of_grid() { return gridDim.x * gridDim.y; }
__device__ __forceinline__ uint32 block_of_grid() { return blockIdx.y * gridDim.x + blockIdx.x; }
__device__ __forceinline__ int thread_of_block() { return int(threadIdx.y * blockDim.x + threadIdx.x); }
__device__ __forceinline__ int threads_of_block() { return int(blockDim.x * blockDim.y); }

// Whether this block is the last; by all threads of all blocks, after the block has left its part.
__device__ __forceinline__ bool is_last_block(int* counter) {
    __shared__ int last;
    __syncthreads();
    if (thread_of_block() == 0) last = ptx::take_ticket(counter, blocks_of_grid()) == blocks_of_grid() - 1;
    __syncthreads();
    return last != 0;
}

// The sum over the threads of a block of 32 and more, in thread 0; every thread calls.
template <class C> __device__ __forceinline__ C block_sum(C value) {
    __shared__ C warps[32];
    int thread = thread_of_block(), count = threads_of_block() / 32;
    value = reduce_lanes<Sum>(value, 32);
    __syncthreads();  // the values of the call before may still be read
    if (thread % 32 == 0) warps[thread / 32] = value;
    __syncthreads();
    C sum = C(0);
    for (int i = 0; thread == 0 && i < count; ++i) sum += warps[i];
    return sum;
}

// The same of compensated sums: else each of these few additions would round a sum of many rows.
template <class C> __device__ __forceinline__ C block_total(C sum, C lost) {
    __shared__ C sums[32], losts[32];
    Compensated<C> own, all;
    own.sum = sum, own.lost = lost;
    for (int step = 16; step > 0; step /= 2) {
        C other = __shfl_xor_sync(0xffffffffu, own.sum, step, 32);
        lost = __shfl_xor_sync(0xffffffffu, own.lost, step, 32);
        own.add(other), own.lost += lost;
    }
    int thread = thread_of_block(), count = threads_of_block() / 32;
    __syncthreads();  // the values of the call before may still be read
    if (thread % 32 == 0) sums[thread / 32] = own.sum, losts[thread / 32] = own.lost;
    __syncthreads();
    for (int i = 0; thread == 0 && i < count; ++i) all.add(sums[i]), all.lost += losts[i];
    return all.value();
}
template <class C> __device__ __forceinline__ C block_total(const Compensated<C>& own) {
    return block_total(own.sum, own.lost);
}
