// costs.cu - kernels whose cost is known by hand, for tests/test_emulator_costs.py. None of it is shipped.
#include "include/ptx.cuh"

// A warp stores to shared memory and loads from it, `stride` elements from lane to lane.
#define BANKS(bytes, T)                                                                     \
    extern "C" __global__ void banks_##bytes(const float* x, float* y, int64 stride) {      \
        __shared__ __align__(16) T t[4096 / bytes];                                         \
        t[threadIdx.x * stride] = reinterpret_cast<const T*>(x)[threadIdx.x];               \
        __syncwarp();                                                                       \
        reinterpret_cast<T*>(y)[threadIdx.x] = t[threadIdx.x * stride];                     \
    }
BANKS(2, unsigned short)
BANKS(4, uint32)
BANKS(8, uint2)
BANKS(16, uint4)

// The same with an asynchronous copy for the store.
extern "C" __global__ void banks_copy(const float* x, float* y, int64 stride) {
    __shared__ __align__(16) uint4 t[256];
    ptx::copy_async<16>(t + threadIdx.x * stride, reinterpret_cast<const uint4*>(x) + threadIdx.x);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    reinterpret_cast<uint4*>(y)[threadIdx.x] = t[threadIdx.x * stride];
}

// ---- dependent round trips: n of them, as each name says ------------------------------------------

extern "C" __global__ void trips_1_of_two_loads(const float* x, float* y, int64 n) {
    y[threadIdx.x] = x[threadIdx.x] + x[threadIdx.x + 32];
}
extern "C" __global__ void trips_2_by_an_address(const float* x, float* y, int64 n) {
    y[threadIdx.x] = x[int(x[threadIdx.x])];
}
extern "C" __global__ void trips_2_by_a_predicate(const float* x, float* y, int64 n) {
    if (x[threadIdx.x] >= 0) y[threadIdx.x] = x[threadIdx.x + 32];
}
// Nothing depends on the first load, but its value is stored before the second is issued.
extern "C" __global__ void trips_2_by_a_wait(const float* x, float* y, int64 n) {
    const volatile float* ordered = x;
    volatile float* out = y;
    out[threadIdx.x] = ordered[threadIdx.x];
    out[threadIdx.x + 32] = ordered[threadIdx.x + 32];
}
extern "C" __global__ void trips_n_of_a_chain(const float* x, float* y, int64 n) {
    int at = int(threadIdx.x);
    for (int64 i = 0; i < n; ++i) at = int(x[at]);
    y[threadIdx.x] = float(at);
}
// Lane 5 takes two trips; the others wait for it at the shuffle, then take one.
extern "C" __global__ void trips_3_by_a_lane(const float* x, float* y, int64 n) {
    float first = 0;
    if (threadIdx.x == 5) first = x[int(x[5])];
    int at = int(__shfl_sync(0xffffffffu, first, 5));
    y[threadIdx.x] = x[at + threadIdx.x];
}
// The same between two warps.
extern "C" __global__ void trips_3_by_a_barrier(const float* x, float* y, int64 n) {
    __shared__ float first;
    if (threadIdx.x == 40) first = x[int(x[40])];
    __syncthreads();
    y[threadIdx.x] = x[int(first) + threadIdx.x];
}
extern "C" __global__ void trips_2_by_a_copy(const float* x, float* y, int64 n) {
    __shared__ __align__(16) float t[32];
    ptx::copy_async<4>(t + threadIdx.x, x + threadIdx.x);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    y[threadIdx.x] = x[int(t[threadIdx.x])];
}
extern "C" __global__ void four_packs_in_flight(const float* x, float* y, int64 n) {
    const uint4* packs = reinterpret_cast<const uint4*>(x) + threadIdx.x;
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = packs[32 * i];
#pragma unroll
    for (int i = 0; i < 4; ++i) reinterpret_cast<uint4*>(y)[threadIdx.x + 32 * i] = v[i];
}

// ---- what the lanes of a warp say together, and packed maxima ---------------------------------------

extern "C" __global__ void votes(const float* x, float* y, int64 n) {
    bool some = __any_sync(0xffffffffu, x[threadIdx.x] == 1000), every = __all_sync(0xffffffffu, x[threadIdx.x] > 0);
    uint32 lanes = __ballot_sync(0xffffffffu, x[threadIdx.x] > 1020);
    y[threadIdx.x] = some + 2 * every + 4 * float(lanes);
}
