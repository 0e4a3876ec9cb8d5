// totals.cuh - one step added to the running totals of an epoch, by one thread; nothing is read back
//   totals = {loss, penalty, correct, rows, steps, first bad step or -1}: f64, gpubackprop.backends.Total
//   loss: the batch mean; weights2, l2: the penalty is l2 / 2 * weights2; weights2 null: none
//   float64: the totals are float64 by definition
#pragma once
#include "arguments.cuh"

template <class C>
__device__ __forceinline__ void add_to_totals(
    double* totals, const C* loss, const C* weights2, const Number<C>& l2, int64 hits, int64 count) {
    double rows = double(count), value = double(*loss), steps = totals[4];
    totals[0] += value * rows;
    if (weights2 != nullptr) totals[1] += 0.5 * double(*weights2) * double(l2.get()) * rows;
    totals[2] += double(hits);
    totals[3] += rows;
    totals[4] = steps + 1.0;
    if (!is_finite(value) && totals[5] < 0.0) totals[5] = steps;
}
