// short_row.cuh - a row in shared memory, with every option: each of a few lanes takes every so many elements.
#pragma once
#include "loss_sums.cuh"

// A lane's elements of a row.
template <class T> struct ShortRow {
    using C = compute_of<T>;
    const SoftmaxArguments<T>& p;
    T* z;  // the row in the tile: logits, then delta
    const C* probabilities;
    int lanes, lane, cols;
    Exponential<T> x;

    __device__ __forceinline__ ShortRow(
        const SoftmaxArguments<T>& p, int64 row, T* z, int lanes, int lane)
        : p(p), z(z), probabilities(nullptr), lanes(lanes), lane(lane),
          cols(row < p.rows ? int(p.cols) : 0), x(C(0)) {
        if (p.probabilities != nullptr)
            probabilities = p.probabilities + row * p.stride_probabilities;
    }
    __device__ __forceinline__ C logit(int k) const { return p.capped(C(widen(z[k]))); }

    // tau of column k, but for what the label itself adds.
    __device__ __forceinline__ C tau(int k) const {
        C t = p.eps_over_K;
        if (!p.spread) return C(0);
        if (probabilities != nullptr) t = ::fma(p.one_minus_eps, probabilities[k], t);
        return p.class_weight == nullptr ? t : t * p.class_weight[k];
    }

    __device__ __forceinline__ Statistics<C> statistics(bool wanted) {
        Statistics<C> s = Statistics<C>::none();
        int count = wanted ? cols : 0;
        for (int k = lane; k < count; k += lanes) {
            C value = logit(k);
            if (value > s.maximum) s.maximum = value, s.best = k;
        }
        x = Exponential<T>(s.maximum);
        for (int k = lane; k < count; k += lanes) {
            C value = logit(k), t = tau(k);
            s.sum += x.of(value);
            if (p.spread) s.dot_tau_z = ::fma(t, value - x.origin, s.dot_tau_z);
            s.sum_tau += t;
        }
        return s;
    }

    __device__ __forceinline__ void write(const Target<C>& target, const Outcome<T>& outcome) const {
        C grad_scale = x.to(outcome.origin) * outcome.grad_scale;
        C log_sum = p.log_output ? ::log(outcome.all.sum) : C(0), inverse = C(1) / p.soft_cap;
        for (int k = lane; k < cols; k += lanes) {
            C value = logit(k);
            C d = ::fma(x.of(value), grad_scale, -tau(k) * outcome.factor);
            if (p.soft_cap != C(0)) d *= cap_slope(value, inverse);
            if (p.log_output) d = value - outcome.origin - log_sum;
            z[k] = to_storage<T>(target.ignored ? C(0) : d);
        }
    }
};

// All of a row, by one thread.
template <class T>
__device__ __forceinline__ void whole_row(
    const SoftmaxArguments<T>& p, int64 row, T* z, RowSums<compute_of<T>>& sums) {
    using C = compute_of<T>;
    ShortRow<T> mine(p, row, z, 1, 0);
    Target<C> target(p, row);
    target.resolve(p, row);
    C z_label = target.label >= 0 ? p.capped(C(widen(z[target.label]))) : C(0);
    Outcome<T> outcome(p, target, mine.statistics(!target.ignored || p.reads_ignored()), C(1));
    if (p.delta != nullptr) {
        mine.write(target, outcome);
        if (target.label >= 0) z[target.label] = outcome.label_delta(p, target, z_label);
    }
    outcome.store_row(p, target, row, z_label, sums);
}
