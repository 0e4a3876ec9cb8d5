// one_hot_forward<T>: the part of a layer's product that one-hot inputs have;
//   a[i, k] = (add ? a[i, k] : 0) + sum_g W[k, codes[i, g]]
//   codes: i32[rows, groups], of each group of inputs the number of the one that is 1 among all inputs, or
//   any number outside [0, inputs) if none is; W: T[units, inputs], a: T[rows, units], rows `stride_...` apart
//   moves rows * units * sizeof(T) (twice with add) and, for each group, rows * units elements of W: each is a
//   sector of 32 bytes, as the column of W goes across its rows; the product would read inputs * (rows + units)
//   block (32, 8): units, rows; grid (x): rows in turn, (y): units; UNROLL groups in flight
//   measured: not measured on a GPU
//
// one_hot_backward<T>: their part of the gradient;  grad_W[k, j] = sum of delta[i, k] over i with code j
//   delta: T[rows, units], grad_W: T[units, inputs]; only the columns of the tiles are written, 0 where no row is
//   tiles: i32[grid.x, 3], of each block its first column, how many (at most TILE), and their group
//   moves rows * units * sizeof(T) for each group, the columns of grad_W once, and the codes again for each tile
//   block (TILE, UNITS): columns, units; grid (y): units. A warp lists the rows of a column, in order, for CHUNK
//   rows at a time; then each thread adds those of its column, UNROLL in flight. No atomics: the order is fixed
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

constexpr int TILE = 8, UNITS = 32, CHUNK = 256;

template <class T> struct OneHotForwardArguments {
    const int* codes;
    const T* W;
    T* a;
    int64 rows, groups, units, inputs, stride_W, stride_a;
    int add;
};

template <class T> __device__ __forceinline__ void one_hot_forward(const OneHotForwardArguments<T>& a) {
    constexpr int UNROLL = 4;
    int64 unit = int64(blockIdx.y) * blockDim.x + threadIdx.x;
    if (unit >= a.units) return;
    const T* W = a.W + unit * a.stride_W;
    for (int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y; row < a.rows;
         row += int64(gridDim.x) * blockDim.y) {
        const int* codes = a.codes + row * a.groups;
        T* out = a.a + row * a.stride_a + unit;
        T sum = a.add ? global::load_element(out) : T(0);
        for (int64 g = 0; g < a.groups; g += UNROLL) {
            int64 code[UNROLL];
            T term[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) code[u] = g + u < a.groups ? global::load_element(codes + g + u) : -1;
#pragma unroll
            for (int u = 0; u < UNROLL; ++u)
                term[u] = code[u] >= 0 && code[u] < a.inputs ? global::load_element(W + code[u]) : T(0);
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) sum += term[u];
        }
        global::store_element(out, sum);
    }
}

template <class T> struct OneHotBackwardArguments {
    const int *codes, *tiles;
    const T* delta;
    T* grad_W;
    int64 rows, groups, units, stride_delta, stride_W;
};

// Lists the rows [start, start + CHUNK) whose code is `column`, counted from `start`; the whole warp calls.
template <class T>
__device__ __forceinline__ int list_rows(
    const OneHotBackwardArguments<T>& a, int64 start, int group, int column, int* list) {
    int lane = (threadIdx.y * TILE + threadIdx.x) % 32, found = 0, code[CHUNK / 32];
#pragma unroll
    for (int part = 0; part < CHUNK / 32; ++part) {
        int64 row = start + part * 32 + lane;
        code[part] = row < a.rows ? global::load_element(a.codes + row * a.groups + group) : -1;
    }
#pragma unroll
    for (int part = 0; part < CHUNK / 32; ++part) {
        bool mine = code[part] == column;
        uint32 votes = __ballot_sync(0xffffffffu, mine);
        if (mine) list[found + __popc(votes & ((1u << lane) - 1))] = part * 32 + lane;
        found += __popc(votes);
    }
    return found;
}

template <class T> __device__ __forceinline__ void one_hot_backward(const OneHotBackwardArguments<T>& a) {
    constexpr int UNROLL = sizeof(T) == 8 ? 4 : 8;  // eight of float64 spill registers
    __shared__ int lists[TILE][CHUNK], counts[TILE];
    const int* tile = a.tiles + int64(blockIdx.x) * 3;
    int first = global::load_element(tile), columns = global::load_element(tile + 1);
    int group = global::load_element(tile + 2), warp = (threadIdx.y * TILE + threadIdx.x) / 32;
    int64 unit = int64(blockIdx.y) * UNITS + threadIdx.y;
    bool there = int(threadIdx.x) < columns && unit < a.units;
    Compensated<T> sum;
    for (int64 start = 0; start < a.rows; start += CHUNK) {
        if (warp < columns) {
            int found = list_rows(a, start, group, first + warp, lists[warp]);
            if (threadIdx.x + TILE * (threadIdx.y % (32 / TILE)) == 0) counts[warp] = found;
        }
        __syncthreads();
        int count = there ? counts[threadIdx.x] : 0;
        for (int i = 0; i < count; i += UNROLL) {
            T term[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                int64 row = start + lists[threadIdx.x][i + u < count ? i + u : i];
                term[u] = i + u < count ? global::load_element(a.delta + row * a.stride_delta + unit) : T(0);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) sum.add(term[u]);
        }
        __syncthreads();  // the lists are read above
    }
    if (there) global::store_element(a.grad_W + unit * a.stride_W + first + threadIdx.x, sum.value());
}

#define ENTRY_(unused, T)                                                                \
    extern "C" __global__ void __launch_bounds__(256) one_hot_forward_##T(               \
        const __grid_constant__ OneHotForwardArguments<T> a) {                           \
        ptx::follow_the_grid_in_front();                                                 \
        one_hot_forward<T>(a);                                                           \
    }                                                                                    \
    extern "C" __global__ void __launch_bounds__(TILE * UNITS) one_hot_backward_##T(     \
        const __grid_constant__ OneHotBackwardArguments<T> a) {                          \
        ptx::follow_the_grid_in_front();                                                 \
        one_hot_backward<T>(a);                                                          \
    }
#define ENTRY(unused, T) ENTRY_(unused, T)
FOR_EACH_COMPUTE_DTYPE(ENTRY, )
