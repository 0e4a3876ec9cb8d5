// One entry for each group of wrappers in kernels/include/ptx.cuh: compiled for every card by
// test_kernel_compile.py, run by test_kernel_ptx.py.
#include "include/ptx.cuh"

// y[row] = sum of x[row, :]; each block of the cluster adds its part and reads those of the others.
template <int BLOCKS> __device__ void sum_of_cluster(const float* x, float* y, int64 cols) {
    __shared__ float part[1];
    extern __shared__ float values[];
    int64 row = blockIdx.x / BLOCKS, own = (cols + BLOCKS - 1) / BLOCKS;
    int64 first = own * ptx::cluster_rank(), last = first + own < cols ? first + own : cols;
    for (int64 k = first + threadIdx.x; k < last; k += blockDim.x) values[k - first] = x[row * cols + k];
    __syncthreads();
    if (threadIdx.x == 0) {
        part[0] = 0;
        for (int64 k = first; k < last; ++k) part[0] += values[k - first];
    }
    ptx::cluster_sync();
    float sum = 0;
    for (uint32 rank = 0; rank < ptx::cluster_size(); ++rank) sum += *ptx::shared_of_rank(part, rank);
    ptx::cluster_arrive();
    if (threadIdx.x == 0 && ptx::cluster_rank() == 0) y[row] = sum;
    ptx::cluster_wait();
}
extern "C" __global__ void __launch_bounds__(256) CLUSTER_DIMS(2)
    cluster_of_2(const float* x, float* y, int64 cols) { sum_of_cluster<2>(x, y, cols); }
extern "C" __global__ void __launch_bounds__(256) CLUSTER_DIMS(8)
    cluster_of_8(const float* x, float* y, int64 cols) { sum_of_cluster<8>(x, y, cols); }

// Two groups in flight, with copies of each width: y[i] = x[i ^ 64].
extern "C" __global__ void copies(const float* x, float* y, int64 count) {
    __shared__ __align__(16) float first[128], second[128];
    int64 i = threadIdx.x;
    if (i < 32) ptx::copy_async<16>(first + 4 * i, x + 4 * i);
    ptx::copy_async_commit();
    if (i < 32) ptx::copy_async<8>(second + 2 * i, x + 128 + 2 * i);
    else if (i < 96) ptx::copy_async<4>(second + 32 + i, x + 160 + i);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    __syncthreads();
    y[i] = first[i ^ 64];
    ptx::copy_async_wait<0>();
    __syncthreads();
    y[128 + i] = second[i ^ 64];
}

extern "C" __global__ void streams(const uint4* x, uint4* y, int64 count) {
    int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) ptx::store_streaming(y + i, ptx::load_streaming(x + i));
    if (i < count) ptx::store_streaming(y + count + i, ptx::load_streaming_readonly(x + i));
}

// The first thread to find 0 leaves its number, after a word that goes with it.
extern "C" __global__ void publishing(uint64* words) {
    if (ptx::load_shared_word(words) != 0 || atomicCAS(words, uint64(0), uint64(1)) != 0) return;
    words[1] = 100 + threadIdx.x;
    ptx::publish(words, 2 + threadIdx.x);
}

// out[i] = x[i] in TF32, by its bits.
extern "C" __global__ void tf32_of(const float* x, uint32* out, int64 count) {
    for (int64 i = threadIdx.x; i < count; i += blockDim.x) out[i] = ptx::round_to_tf32(x[i]);
}

// sums[lane] += what the lane has of the product of a and b, twice.
extern "C" __global__ void tensor_cores(const uint32* a, const uint32* b, float* sums) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    uint32 rows[4], columns[2];
    float sum[4];
    for (int n = 0; n < 4; ++n) rows[n] = a[threadIdx.x * 4 + n], sum[n] = sums[threadIdx.x * 4 + n];
    for (int n = 0; n < 2; ++n) columns[n] = b[threadIdx.x * 2 + n];
    for (int n = 0; n < 2; ++n) ptx::multiply_tf32(sum, rows, columns);
    for (int n = 0; n < 4; ++n) sums[threadIdx.x * 4 + n] = sum[n];
#endif
}

extern "C" __global__ void exponentials(const float* x, float* y, int64 count) {
    int64 i = threadIdx.x;
    if (i < count) y[i] = ptx::exp2_approx(x[i]), y[count + i] = ptx::exp2_approx_ftz(x[i]);
}
