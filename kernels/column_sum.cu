// column_sum<T>: sums over the rows, first stage;  partial[...] = sums of x over chunks of rows
//   x: T[rows, cols], rows `stride` elements apart; partial: see include/column_totals.cuh
//   moves rows * cols * sizeof(T): reads x; partial is a few 1/1000 of it
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
//
// column_sum_finish<T>: second stage;  out[j] = sum_i partial[i, j] / divisor
//   partial: compute_of<T>[rows, cols], out: T[cols]; divisor: one number on the device, or null for 1
//   where divisor is 0, out is NaN whatever the sum, or 0 with empty_is_zero; rows may be 0: the sum is 0
//   block (x, y): x columns, y threads to a column, x * y = FINISH_THREADS
//   measured: not measured on a GPU
#include "include/column_totals.cuh"
#include "include/entries.cuh"

constexpr int FINISH_THREADS = 512;

template <class C, class T, int E>
__device__ __forceinline__ void add(C (&sum)[E], const Pack<T, E>& pack) {
#pragma unroll
    for (int e = 0; e < E; ++e) sum[e] += widen(pack.v[e]);
}

template <class T>
__device__ __forceinline__ void column_sum(
    const T* x, compute_of<T>* partial, int64 rows, int64 cols, int join, int64 stride) {
    using C = compute_of<T>;
    constexpr int E = PACK<T>, UNROLL = 4;
    Strip<E> strip(rows, cols, join, misalignment(x));
    int64 row = strip.first + threadIdx.y;
    Walk<const T, E> in(strip, x, row, stride);
    bool vector = in.vector();
    C total[E] = {};
    Pack<T, E> pack[UNROLL];
    while (strip.inside && row < strip.last) {
        C part[E] = {};
        int64 stop = row + SEQUENCE * STRIP_ROWS < strip.last ? row + SEQUENCE * STRIP_ROWS : strip.last;
        while (row < stop) {
            if (vector && strip.whole(row, UNROLL)) {
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) pack[u] = load<T, E>(in.at + u * in.step);
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) add(part, pack[u]);
                row += UNROLL * STRIP_ROWS;
                in.advance(UNROLL);
            } else {  // a head or tail, a row off 16 bytes, or fewer than UNROLL rows left
                add(part, load_part<T, E>(in.at, strip.lo(row), strip.hi(row)));
                row += STRIP_ROWS;
                in.advance(1);
            }
        }
#pragma unroll
        for (int e = 0; e < E; ++e) total[e] += part[e];
    }
    write_column_totals(strip, total, partial);
}

template <class T>
__device__ __forceinline__ void column_sum_finish(
    const compute_of<T>* partial, T* out, int64 rows, int64 cols, const compute_of<T>* divisor,
    int empty_is_zero) {
    using C = compute_of<T>;
    __shared__ C sums[FINISH_THREADS];
    int64 column = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    int64 row = threadIdx.y;
    Compensated<C> total;
    for (; column < cols && row < rows; row += blockDim.y) total.add(partial[row * cols + column]);
    sums[threadIdx.y * blockDim.x + threadIdx.x] = total.value();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {  // blockDim.y is a power of two
        __syncthreads();
        if (int(threadIdx.y) < half)
            sums[threadIdx.y * blockDim.x + threadIdx.x] +=
                sums[(threadIdx.y + half) * blockDim.x + threadIdx.x];
    }
    if (threadIdx.y > 0 || column >= cols) return;
    C sum = sums[threadIdx.x];
    if (divisor != nullptr && *divisor == C(0)) sum = empty_is_zero ? C(0) : not_a_number<C>();
    else if (divisor != nullptr) sum /= *divisor;
    out[column] = to_storage<T>(sum);
}

#define ENTRY_(stage, T)                                                                      \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2) column_sum_##T(            \
        const T* x, compute_of<T>* partial, int64 rows, int64 cols, int join, int64 stride) { \
        column_sum<T>(x, partial, rows, cols, join, stride);                                  \
    }                                                                                         \
    extern "C" __global__ void __launch_bounds__(FINISH_THREADS) column_sum_finish_##T(       \
        const compute_of<T>* partial, T* out, int64 rows, int64 cols,                         \
        const compute_of<T>* divisor, int empty_is_zero) {                                    \
        column_sum_finish<T>(partial, out, rows, cols, divisor, empty_is_zero);               \
    }
#define ENTRY(stage, T) ENTRY_(stage, T)
FOR_EACH_DTYPE(ENTRY, )
