// accumulate<C>: one step added to the running totals of an epoch, by one block; nothing is read back
//   totals = {loss, penalty, correct, rows, steps, first bad step or -1}: f64, gpubackprop.backends.Total
//   loss: the batch mean, C; correct: u8[rows] or null
//   weights2, l2: the penalty is l2 / 2 * weights2, both C; weights2 null: none
//   moves rows bytes. float64 in one thread: the totals are float64 by definition
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/reduce.cuh"

constexpr int THREADS = 256;

template <class C> struct AccumulateArguments {
    const C* loss;
    const u8* correct;
    const C* weights2;
    double* totals;
    Number<C> l2;
    int64 rows;
};

template <class C> __device__ __forceinline__ void accumulate(const AccumulateArguments<C>& a) {
    int64 hits = 0;
    if (a.correct != nullptr)
        for (int64 i = threadIdx.x; i < a.rows; i += THREADS) hits += a.correct[i] != 0;
    hits = reduce_group<Sum>(hits);
    if (threadIdx.x != 0) return;
    double *totals = a.totals, rows = double(a.rows), value = double(*a.loss), steps = totals[4];
    totals[0] += value * rows;
    if (a.weights2 != nullptr) totals[1] += 0.5 * double(*a.weights2) * double(a.l2.get()) * rows;
    totals[2] += double(hits);
    totals[3] += rows;
    totals[4] = steps + 1.0;
    if (!is_finite(value) && totals[5] < 0.0) totals[5] = steps;
}

#define ENTRY_(formula, C)                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) accumulate_##C( \
        const __grid_constant__ AccumulateArguments<C> a) {               \
        ptx::follow_the_grid_in_front();                                  \
        accumulate<C>(a);                                                 \
    }
#define ENTRY(formula, C) ENTRY_(formula, C)
FOR_EACH_COMPUTE_DTYPE(ENTRY, )
