// Faults planted for tests/test_emulator.py: each checker must find its own. None of it is shipped.
using int64 = long long;

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
