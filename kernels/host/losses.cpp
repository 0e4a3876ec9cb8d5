// losses.cpp - losses that are sums over output units, and the outputs that belong to them.
#include "rows.hpp"
#undef FOR_EACH_DTYPE
#define FOR_EACH_DTYPE(ENTRY, formula) ENTRY(formula)
#include "../activations.cuh"
#include "../losses.cuh"

namespace {

template <class C> using Loss = void (*)(const C* a, const C* t, C* value, C* delta, int64 n, C k);

template <class Formula, class C>
void value_and_delta(const C* a, const C* t, C* value, C* delta, int64 n, C k) {
    INDEPENDENT for (int64 i = 0; i < n; ++i) value[i] = Formula::value_and_delta(a[i], t[i], delta[i], k);
}

#define VALUE_AND_DELTA(loss) value_and_delta<losses::loss, C>,
template <class C> constexpr Loss<C> LOSSES[] = {FOR_EACH_LOSS(VALUE_AND_DELTA)};

// Whether a > 0 exactly where t > 1/2.
template <class C> ONCE bool on_one_side(const C* a, const C* t, int64 n) {
    int wrong = 0;
    for (int64 i = 0; i < n; ++i) wrong |= (a[i] > C(0)) != (t[i] > C(0.5));
    return wrong == 0;
}

// The sum of a piece, in eight lanes.
template <class C> ONCE double sum_in_double(const C* x, int64 n) {
    double wide[PIECE];
    INDEPENDENT for (int64 i = 0; i < n; ++i) wide[i] = double(x[i]);
    return sum_of(wide, n);
}

template <class C> ONCE void scale_by(C* x, C factor, int64 n) {
    INDEPENDENT for (int64 i = 0; i < n; ++i) x[i] *= factor;
}

template <class C> void pointwise_loss(const PointwiseLossArguments& p) {
    Matrix<C> a(p.a, p.stride_a, p.storage), targets(p.targets, p.stride_targets, p.target_storage);
    Matrix<C> delta(p.delta, p.stride_delta, p.storage);
    const C* weight = static_cast<const C*>(p.sample_weight);
    double divisor = p.divisor_at == nullptr || p.weighs ? p.divisor : *p.divisor_at;
    if (p.weighs) {
        divisor = p.divisor_factor *
                  sum_of_weights<C>(nullptr, STORED_U8, weight, nullptr, p.rows, 0, false, 0);
        if (p.divisor_at != nullptr) *p.divisor_at = divisor;
    }
    Scales<C> scales(p, divisor);
    Loss<C> formula = LOSSES<C>[p.formula];
    C* row_loss = static_cast<C*>(p.row_loss);
    C wide[PIECE], wanted[PIECE], value[PIECE], slope[PIECE], k = C(p.parameter);
    for (int64 row = p.first; row < p.last; ++row) {
        C scale = scales.of(row);
        double sum = 0.0, lost = 0.0;
        bool right = true;
        for (int64 column = 0; column < p.cols; column += PIECE) {
            int64 n = smaller(PIECE, p.cols - column);
            const C *x = a.read(row, column, n, wide), *t = targets.read(row, column, n, wanted);
            if (p.correct != nullptr) right = right && on_one_side(x, t, n);
            formula(x, t, value, slope, n, k);
            add_exactly(sum_in_double(value, n), sum, lost);
            if (!delta) continue;
            scale_by(slope, scale, n);
            delta.put(slope, row, column, n);
        }
        C loss = C(sum + lost);
        row_loss[row] = weight == nullptr ? loss : loss * weight[row];
        if (p.correct != nullptr) p.correct[row] = right;
    }
    if (p.loss != nullptr)
        *static_cast<C*>(p.loss) = mean_loss(row_loss, p.rows, divisor, p.empty_is_zero != 0);
}

template <class C> ONCE void logistic(const C* a, C* out, int64 n) {
    INDEPENDENT for (int64 i = 0; i < n; ++i) out[i] = activations::logistic::value(a[i], C(0));
}
template <class C> ONCE void exponential(const C* a, C* out, int64 n) {
    INDEPENDENT for (int64 i = 0; i < n; ++i) out[i] = ::exp(a[i]);
}

template <class C> void output(const OutputArguments& o) {
    Matrix<C> a(o.a, o.stride_a, o.storage), out(o.out, o.stride_out, o.storage);
    C wide[PIECE], result[PIECE];
    for (int64 row = o.first; row < o.last; ++row)
        for (int64 column = 0; column < o.cols; column += PIECE) {
            int64 n = smaller(PIECE, o.cols - column);
            const C* x = a.read(row, column, n, wide);
            C* y = out.place(row, column, result);
            if (o.kind == 1) logistic(x, y, n);
            if (o.kind == 2) exponential(x, y, n);
            out.put(o.kind == 0 ? x : y, row, column, n);
        }
}

}  // namespace

extern "C" {

#define NAME(formula) #formula,
extern const char* const gb_loss_names[];
const char* const gb_loss_names[] = {FOR_EACH_LOSS(NAME) nullptr};

void gb_pointwise_loss(const PointwiseLossArguments* a) {
    with_compute(a->storage, [&](auto c) { pointwise_loss<decltype(c)>(*a); });
}

void gb_output(const OutputArguments* a) {
    with_compute(a->storage, [&](auto c) { output<decltype(c)>(*a); });
}

}  // extern "C"
