// accumulate<C>: one step added to the running totals of an epoch, by one block; nothing is read back
//   include/totals.cuh has what is added; correct: u8[rows], or correct_rows: how many they are; both null
//   for none
//   moves rows bytes where it counts them
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/reduce.cuh"
#include "include/totals.cuh"

constexpr int THREADS = 256;

template <class C> struct AccumulateArguments {
    const C* loss;
    const u8* correct;
    const int64* correct_rows;
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
    if (a.correct_rows != nullptr) hits = *a.correct_rows;
    add_to_totals(a.totals, a.loss, a.weights2, a.l2, hits, a.rows);
}

#define ENTRY_(formula, C)                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) accumulate_##C( \
        const __grid_constant__ AccumulateArguments<C> a) {               \
        ptx::follow_the_grid_in_front();                                  \
        accumulate<C>(a);                                                 \
    }
#define ENTRY(formula, C) ENTRY_(formula, C)
FOR_EACH_COMPUTE_DTYPE(ENTRY, )
