// read_16_bytes: what a card does at most that only reads;  sums[b] = sum of the words of block b
//   words: uint32[4 * packs], at a multiple of 16 bytes; sums: uint32[gridDim.x]; sums wrap around
//   moves 16 * packs bytes: each thread keeps LOADS loads of 16 bytes in flight
//   block THREADS (a multiple of 32); grid (x): the packs in turn, any number of blocks
//   It is no kernel of the library: the benchmarks alone use it, as the limit of what only reads.
//   measured: not measured on a GPU
#include "include/reduce.cuh"
#include "include/vector.cuh"

constexpr int THREADS = 256, LOADS = 8;

extern "C" __global__ void __launch_bounds__(THREADS)
    read_16_bytes(const uint32* words, int64 packs, uint32* sums) {
    int64 step = int64(gridDim.x) * THREADS;
    uint32 total = 0;
    for (int64 i = int64(blockIdx.x) * THREADS + threadIdx.x; i < packs; i += step * LOADS) {
        Pack<uint32, 4> pack[LOADS];
#pragma unroll
        for (int n = 0; n < LOADS; ++n) {
            int64 at = i + n * step;
            pack[n] = at < packs ? global::load<uint32, 4>(words + 4 * at) : Pack<uint32, 4>{};
        }
#pragma unroll
        for (int n = 0; n < LOADS; ++n)
            total += pack[n].v[0] + pack[n].v[1] + pack[n].v[2] + pack[n].v[3];
    }
    total = reduce_lanes<Sum>(total, 32);
    __shared__ uint32 warps[THREADS / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32 sum = 0;
        for (int warp = 0; warp < THREADS / 32; ++warp) sum += warps[warp];
        sums[blockIdx.x] = sum;
    }
}
