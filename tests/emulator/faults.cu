// Faults planted for tests/test_emulator.py: each checker must find its own. None of it is shipped.
#include "include/ptx.cuh"

extern "C" __global__ void doubled(const float* x, float* y, int64 n) {  // nothing wrong here
    int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
extern "C" __global__ void reads_past_the_end(const float* x, float* y, int64 n) {
    int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i <= n) y[i < n ? i : 0] = 2 * x[i];
}
extern "C" __global__ void writes_before_the_start(const float* x, float* y, int64 n) {
    y[int64(threadIdx.x) - 4] = x[0];
}
extern "C" __global__ void misaligned(const float* x, float* y, int64 n) {
    struct alignas(16) Four { float v[4]; };
    *reinterpret_cast<Four*>(y) = *reinterpret_cast<const Four*>(x + 1);
}
extern "C" __global__ void shared_overrun(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x] = x[0];
    __syncthreads();
    y[threadIdx.x] = t[0];
}
extern "C" __global__ void dynamic_overrun(const float* x, float* y, int64 n) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = x[0];
    y[threadIdx.x] = dynamic[threadIdx.x];
}
extern "C" __global__ void unwritten_shared(const float* x, float* y, int64 n) {
    extern __shared__ float never[];
    y[threadIdx.x] = never[threadIdx.x];
}
extern "C" __global__ void shift_too_far(const float* x, float* y, int64 n) {
    y[0] = float(1 << (int(n) + 31));
}
extern "C" __global__ void missing_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[128];
    t[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = t[threadIdx.x ^ 64];
}
extern "C" __global__ void barrier_in_place(const float* x, float* y, int64 n) {
    __shared__ float t[128];
    t[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = t[threadIdx.x ^ 64];
}
extern "C" __global__ void missing_second_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[128];
    t[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    t[threadIdx.x] += t[threadIdx.x ^ 64];
    __syncthreads();
    y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void missing_last_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[128];
    for (int turn = 0; turn < 2; ++turn) {
        t[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = t[threadIdx.x ^ 64];  // and the next turn writes t
    }
}
extern "C" __global__ void shuffle_for_a_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
    y[threadIdx.x] += t[threadIdx.x ^ 1];
}
extern "C" __global__ void lanes_in_order(const float* x, float* y, int64 n) {  // nothing wrong
    __shared__ float t[32];
    for (int turn = 0; turn < 2; ++turn) {
        t[threadIdx.x] = x[threadIdx.x];
        __syncwarp();
        y[threadIdx.x] = t[threadIdx.x ^ 1];
        __syncwarp();
    }
}
extern "C" __global__ void missing_second_syncwarp(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    for (int turn = 0; turn < 2; ++turn) {
        t[threadIdx.x] = x[threadIdx.x];
        __syncwarp();
        y[threadIdx.x] = t[threadIdx.x ^ 1];
    }
}
extern "C" __global__ void lanes_without_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x] = x[threadIdx.x];
    float sum = t[threadIdx.x ^ 1];  // no __syncwarp: lanes are not in lockstep since sm_70
    y[threadIdx.x] = sum;
}
extern "C" __global__ void half_the_block_waits(const float* x, float* y, int64 n) {
    if (threadIdx.x < 32) __shfl_xor_sync(0xffffffffu, 1.f, 1);
    if (threadIdx.x % 32 < 16) y[0] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}
extern "C" __global__ void in_order_of_threads(const float* x, float* y, int64 n) {
    y[0] = float(threadIdx.x);  // the last one wins
}
extern "C" __global__ void strided(const float* x, float* y, int64 n) {
    y[threadIdx.x * 8] = x[threadIdx.x];
}
extern "C" __global__ void twice(const float* x, float* y, int64 n) {
    volatile const float* again = x;
    y[threadIdx.x] = again[threadIdx.x] + again[threadIdx.x];
}

extern "C" __global__ void blocks_in_turn(const float* x, float* y, int64 n) {
    if (blockIdx.x == 0) y[threadIdx.x] = x[threadIdx.x];  // the other block may be faster
    if (blockIdx.x == 1) y[64 + threadIdx.x] = y[threadIdx.x];
}
extern "C" __global__ void blocks_that_write_one_place(const float* x, float* y, int64 n) {
    if (threadIdx.x == 0) y[0] = x[blockIdx.x];
}
extern "C" __global__ void blocks_apart(const float* x, float* y, int64 n) {  // nothing wrong
    __shared__ float t[64];
    t[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = t[threadIdx.x ^ 32];
}

extern "C" __global__ void CLUSTER_DIMS(2) no_cluster_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // orders the threads of a block only
    y[blockIdx.x * 32 + threadIdx.x] = ptx::shared_of_rank(t, ptx::cluster_rank() ^ 1)[threadIdx.x];
    ptx::cluster_sync();
}
extern "C" __global__ void CLUSTER_DIMS(2) ends_while_read(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x] = x[threadIdx.x];
    ptx::cluster_sync();
    y[blockIdx.x * 32 + threadIdx.x] = ptx::shared_of_rank(t, ptx::cluster_rank() ^ 1)[threadIdx.x];
}
extern "C" __global__ void CLUSTER_DIMS(2) missing_second_cluster_barrier(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    for (int turn = 0; turn < 2; ++turn) {
        t[threadIdx.x] = x[threadIdx.x];
        ptx::cluster_sync();
        y[blockIdx.x * 32 + threadIdx.x] = ptx::shared_of_rank(t, ptx::cluster_rank() ^ 1)[threadIdx.x];
    }
    ptx::cluster_sync();
}
extern "C" __global__ void CLUSTER_DIMS(2) cluster_in_order(const float* x, float* y, int64 n) {  // nothing wrong
    __shared__ float t[32];
    t[threadIdx.x] = x[threadIdx.x] + ptx::cluster_rank();
    ptx::cluster_sync();
    float other = ptx::shared_of_rank(t, ptx::cluster_rank() ^ 1)[threadIdx.x];
    ptx::cluster_arrive();
    y[blockIdx.x * 32 + threadIdx.x] = other;
    ptx::cluster_wait();
}
extern "C" __global__ void CLUSTER_DIMS(2) distributed_overrun(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    t[threadIdx.x % 32] = x[0];
    ptx::cluster_sync();
    y[threadIdx.x] = ptx::shared_of_rank(t, 1)[threadIdx.x];
    ptx::cluster_sync();
}
extern "C" __global__ void CLUSTER_DIMS(2) no_such_rank(const float* x, float* y, int64 n) {
    __shared__ float t[32];
    y[threadIdx.x] = *ptx::shared_of_rank(t, ptx::cluster_rank() + 1);
}
extern "C" __global__ void CLUSTER_DIMS(2) rank_of_global_memory(const float* x, float* y, int64 n) {
    y[threadIdx.x] = *ptx::shared_of_rank(x, 0);
}
extern "C" __global__ void CLUSTER_DIMS(2) one_block_waits(const float* x, float* y, int64 n) {
    if (ptx::cluster_rank() == 0 || threadIdx.x < 32) ptx::cluster_sync();
    else __syncthreads();
}
extern "C" __global__ void CLUSTER_DIMS(2) waits_without_arrival(const float* x, float* y, int64 n) {
    ptx::cluster_wait();
}
extern "C" __global__ void no_cluster_to_wait_for(const float* x, float* y, int64 n) {
    ptx::cluster_sync();
}
extern "C" __global__ void no_cluster_to_read_from(const float* x, float* y, int64 n) {
    __shared__ float t[1];
    y[threadIdx.x] = *ptx::shared_of_rank(t, 0);
}
extern "C" __global__ void no_wait_for_copies(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[128];
    ptx::copy_async<4>(t + threadIdx.x, x + threadIdx.x);
    ptx::copy_async_commit();
    y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void waits_for_the_group_before(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[128];
    ptx::copy_async_commit();
    ptx::copy_async<4>(t + threadIdx.x, x + threadIdx.x);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void no_barrier_after_copies(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[128];
    ptx::copy_async<4>(t + threadIdx.x, x + threadIdx.x);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();  // for this thread's own copies only
    y[threadIdx.x] = t[threadIdx.x ^ 64];
}
extern "C" __global__ void copy_past_the_end(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[256];
    ptx::copy_async<16>(t, x + n);
}
extern "C" __global__ void misaligned_copy(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[8];
    ptx::copy_async<8>(t + 1, x);
}
extern "C" __global__ void copy_to_global_memory(const float* x, float* y, int64 n) {
    ptx::copy_async<4>(y, x);
}
extern "C" __global__ void source_changes_in_flight(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[128];
    ptx::copy_async<4>(t + threadIdx.x, y + threadIdx.x);
    ptx::copy_async_commit();
    y[threadIdx.x] = 7;
    ptx::copy_async_wait<0>();
}
extern "C" __global__ void destination_changes_in_flight(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[128];
    ptx::copy_async<4>(t + threadIdx.x, x + threadIdx.x);
    ptx::copy_async_commit();
    t[threadIdx.x] = 7;
    ptx::copy_async_wait<0>();
}
