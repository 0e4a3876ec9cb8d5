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
