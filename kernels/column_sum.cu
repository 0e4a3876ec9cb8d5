// column_sum<T>: sums over the rows, first stage;  partial[...] = sums of x over chunks of rows
//   x: T[rows, cols], rows `stride` elements apart; partial: see include/column_totals.cuh
//   moves rows * cols * sizeof(T): reads x; partial is a few 1/1000 of it
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
//
// column_sum_finish<T>: second stage;  out[j] = sum_i partial[i, j] / divisor
//   partial: compute_of<T>[rows, cols], out: T[cols]; divisor: one number, 1 for a plain sum
//   where divisor is 0, out is NaN whatever the sum, or 0 with empty_is_zero; rows may be 0: the sum is 0
//   block (x, y): x columns, y threads to a column, x * y = FINISH_THREADS; a thread has FINISH_UNROLL of its
//   terms in flight at once
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/column_totals.cuh"
#include "include/entries.cuh"

constexpr int FINISH_THREADS = 512, FINISH_UNROLL = 8;

template <class C, class T, int E>
__device__ __forceinline__ void add(C (&sum)[E], const Pack<T, E>& pack) {
#pragma unroll
    for (int e = 0; e < E; ++e) sum[e] += widen(pack.v[e]);
}

template <class T> struct ColumnSumArguments {
    const T* x;
    compute_of<T>* partial;
    int64 rows, cols, stride;
    int join;
};

template <class T> __device__ __forceinline__ void column_sum(const ColumnSumArguments<T>& a) {
    using C = compute_of<T>;
    constexpr int E = PACK<T>, UNROLL = STRIP_UNROLL;
    Strip<E> strip(a.rows, a.cols, a.join, misalignment(a.x));
    int64 row = strip.first + threadIdx.y;
    Walk<const T, E> in(strip, a.x, row, a.stride);
    bool vector = in.vector();
    C total[E] = {};
    Pack<T, E> pack[UNROLL];
    while (strip.inside && row < strip.last) {
        C part[E] = {};
        int64 stop = row + SEQUENCE * STRIP_ROWS < strip.last ? row + SEQUENCE * STRIP_ROWS : strip.last;
        while (row < stop) {
            if (int whole = vector ? strip.whole(row, UNROLL) : 0) {
#pragma unroll
                for (int u = 0; u < UNROLL; ++u)
                    pack[u] = global::load_if<T, E>(u < whole, in.at + u * in.step);
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) add(part, pack[u]);
                row += whole * STRIP_ROWS;
                in.advance(whole);
            } else {  // a head or tail, or a row off 16 bytes
                add(part, global::load_part<T, E>(in.at, strip.lo(row), strip.hi(row)));
                row += STRIP_ROWS;
                in.advance(1);
            }
        }
#pragma unroll
        for (int e = 0; e < E; ++e) total[e] += part[e];
    }
    write_column_totals(strip, total, a.partial);
}

template <class T> struct ColumnSumFinishArguments {
    const compute_of<T>* partial;
    T* out;
    Number<compute_of<T>> divisor;
    int64 rows, cols;
    int empty_is_zero;
};

template <class T>
__device__ __forceinline__ void column_sum_finish(const ColumnSumFinishArguments<T>& a) {
    using C = compute_of<T>;
    __shared__ C sums[FINISH_THREADS];
    int64 column = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    Compensated<C> total;
    int64 rows = column < a.cols ? a.rows : 0;
    for (int64 row = threadIdx.y; row < rows; row += FINISH_UNROLL * blockDim.y) {
        C term[FINISH_UNROLL] = {};
#pragma unroll
        for (int u = 0; u < FINISH_UNROLL; ++u)
            if (row + u * blockDim.y < rows)
                term[u] = global::load_element(a.partial + (row + u * blockDim.y) * a.cols + column);
#pragma unroll
        for (int u = 0; u < FINISH_UNROLL; ++u) total.add(term[u]);
    }
    sums[threadIdx.y * blockDim.x + threadIdx.x] = total.value();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {  // blockDim.y is a power of two
        __syncthreads();
        if (int(threadIdx.y) < half)
            sums[threadIdx.y * blockDim.x + threadIdx.x] +=
                sums[(threadIdx.y + half) * blockDim.x + threadIdx.x];
    }
    if (threadIdx.y > 0 || column >= a.cols) return;
    C divisor = a.divisor.get(), sum = sums[threadIdx.x] / divisor;
    if (divisor == C(0)) sum = a.empty_is_zero ? C(0) : not_a_number<C>();
    a.out[column] = to_storage<T>(sum);
}

#define ENTRY_(stage, T)                                                                \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2) column_sum_##T(      \
        const __grid_constant__ ColumnSumArguments<T> a) {                              \
        ptx::follow_the_grid_in_front();                                                \
        column_sum<T>(a);                                                               \
    }                                                                                   \
    extern "C" __global__ void __launch_bounds__(FINISH_THREADS) column_sum_finish_##T( \
        const __grid_constant__ ColumnSumFinishArguments<T> a) {                        \
        ptx::follow_the_grid_in_front();                                                \
        column_sum_finish<T>(a);                                                        \
    }
#define ENTRY(stage, T) ENTRY_(stage, T)
FOR_EACH_DTYPE(ENTRY, )
