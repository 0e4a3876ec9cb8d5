// rows.hpp - what a row of a batch counts in a loss, the divisor of the mean, and the mean.
#pragma once
#include "lanes.hpp"

inline int64 label_at(const void* labels, int storage, int64 row) {
    if (storage == STORED_I64) return static_cast<const int64*>(labels)[row];
    if (storage == STORED_I32) return static_cast<const i32*>(labels)[row];
    return static_cast<const u8*>(labels)[row];
}

inline void read_labels(const void* labels, int storage, int64 first, int64 n, int64* out) {
    with_integer(storage, [&](auto l) {
        const auto* given = static_cast<const decltype(l)*>(labels) + first;
        for (int64 i = 0; i < n; ++i) out[i] = given[i];
    });
}

// sum_i sample_weight[i] * class_weight[labels[i]] over the rows that count
template <class C>
double sum_of_weights(
    const void* labels, int label_storage, const C* sample_weight, const C* class_weight, int64 rows,
    int64 classes, bool has_ignored, int64 ignored) {
    double total = 0.0;
    for (int64 i = 0; i < rows; ++i) {
        C weight = sample_weight == nullptr ? C(1) : sample_weight[i];
        if (labels != nullptr) {
            int64 label = label_at(labels, label_storage, i);
            if (has_ignored && label == ignored) continue;
            if (label < 0 || label >= classes) weight = not_a_number<C>();
            else if (class_weight != nullptr) weight *= class_weight[label];
        }
        total += double(weight);
    }
    return total;
}

// sum row_loss / divisor, rounded once
template <class C> C mean_loss(const C* row_loss, int64 rows, double divisor, bool empty_is_zero) {
    constexpr int CHAINS = 8;
    double sums[CHAINS] = {}, total = 0.0;
    int64 i = 0;
    for (; i + CHAINS <= rows; i += CHAINS)
        for (int chain = 0; chain < CHAINS; ++chain) sums[chain] += double(row_loss[i + chain]);
    for (int chain = 0; chain < CHAINS; ++chain) total += sums[chain];
    for (; i < rows; ++i) total += double(row_loss[i]);
    if (divisor == 0.0) return empty_is_zero ? C(0) : not_a_number<C>();
    return C(total / divisor);
}

// What multiplies the gradient of a row: sample weight times upstream gradient by the divisor. A: the
// arguments of a loss.
template <class C> struct Scales {
    const C *weight, *upstream;
    int64 upstream_stride;
    C number, divisor;

    template <class A> Scales(const A& a, double mean_divisor)
        : weight(static_cast<const C*>(a.sample_weight)), upstream(static_cast<const C*>(a.upstream)),
          upstream_stride(a.upstream_stride), number(C(a.upstream_value)),
          divisor(a.empty_is_zero && mean_divisor == 0.0 ? C(1) : C(mean_divisor)) {}
    bool is_constant() const { return weight == nullptr && upstream == nullptr; }
    C constant() const { return number / divisor; }
    C of(int64 row) const {
        C factor = upstream == nullptr ? number : upstream[row * upstream_stride];
        return (weight == nullptr ? factor : weight[row] * factor) / divisor;
    }
};
