// layers.cpp - bias, activation and dropout after a product, and back, with the sums of the columns.
#include "columns.hpp"
#undef FOR_EACH_DTYPE
#define FOR_EACH_DTYPE(ENTRY, formula) ENTRY(formula)
#include "../activations.cuh"

namespace {

template <class C> using Value = void (*)(const C* a, C* h, int64 n, C k);
template <class C> using Slope = void (*)(const C* grad, const C* saved, C* delta, int64 n, C k);

template <class Act, class C> void value(const C* a, C* h, int64 n, C k) {
    INDEPENDENT for (int64 i = 0; i < n; ++i) h[i] = Act::value(a[i], k);
}

template <class Act, class C> void times_slope(const C* grad, const C* saved, C* delta, int64 n, C k) {
    if constexpr (!Act::READS_SAVED) {
        if (grad != delta) store<C>(grad, delta, n);
    } else {
        INDEPENDENT for (int64 i = 0; i < n; ++i) {
            C slope = Act::slope(saved[i], k), d = grad[i] * slope;
            delta[i] = Act::STOPS && slope == C(0) ? C(0) : d;
        }
    }
}

#define VALUE(act) value<activations::act, C>,
#define TIMES_SLOPE(act) times_slope<activations::act, C>,
#define SAVES_A(act) activations::act::SAVES_A,
#define READS_SAVED(act) activations::act::READS_SAVED,
template <class C> constexpr Value<C> VALUES[] = {FOR_EACH_ACTIVATION(VALUE)};
template <class C> constexpr Slope<C> SLOPES[] = {FOR_EACH_ACTIVATION(TIMES_SLOPE)};
constexpr bool SAVE_A[] = {FOR_EACH_ACTIVATION(SAVES_A)};
constexpr bool READ_SAVED[] = {FOR_EACH_ACTIVATION(READS_SAVED)};

// One bias for each element of a piece: of joined rows, the biases over and over.
template <class C> class Bias {
    Matrix<C> bias;
    bool repeated;
    C tile[PIECE];

public:
    Bias(const void* given, int storage, const Columns& all) : bias(given, 0, storage), repeated(all.join > 1) {
        if (!bias || !repeated) return;
        const C* once = bias.read(0, 0, all.cols, tile);
        for (int64 j = 0; j < all.cols; ++j) tile[j] = once[j];
        for (int64 j = all.cols; j < all.width; ++j) tile[j] = tile[j - all.cols];
    }
    bool none() const { return !bias; }
    const C* of(int64 column, int64 n) { return repeated ? tile : bias.read(0, column, n, tile); }
};

template <class C> void affine_epilogue(const AffineEpilogueArguments& args) {
    Matrix<C> product(args.product, args.stride_product, args.product_storage);
    Matrix<C> a(args.a, args.stride_a, args.storage), h(args.h, args.stride_h, args.storage);
    bool gaps = args.stride_product != args.cols || args.stride_h != args.cols ||
                (a && args.stride_a != args.cols);
    Columns all(args.last - args.first, args.cols, gaps);
    Bias<C> bias(args.bias, args.storage, all);
    HostDropout<C> dropout(args);
    Value<C> g = VALUES<C>[args.activation];
    C k = C(args.parameter), before[PIECE], after[PIECE];
    bool keeps_value = a && dropout.on && !SAVE_A[args.activation];
    for_pieces(args.first, args.last, all, [&](int64 row, int64 column, int64 n) {
        const C* x = product.read(row, column, n, before);
        if (!bias.none()) {
            const C* b = bias.of(column, n);
            INDEPENDENT for (int64 i = 0; i < n; ++i) before[i] = x[i] + b[i];
            x = before;
        }
        if (a && !keeps_value) a.put(x, row, column, n);
        C* y = h.place(row, column, after);
        g(x, y, n, k);
        if (keeps_value) a.put(y, row, column, n);
        if (dropout.on) dropout.apply(y, row * args.cols + column, n);
        h.put(y, row, column, n);
    });
}

template <class C> void activation_backward(const ActivationBackwardArguments& args) {
    Matrix<C> grad(args.grad_h, args.stride_grad, args.storage);
    Matrix<C> saved(args.saved, args.stride_saved, args.storage);
    Matrix<C> delta(args.delta, args.stride_delta, args.storage);
    bool reads = READ_SAVED[args.activation];
    bool gaps = args.stride_grad != args.cols || args.stride_delta != args.cols ||
                (reads && args.stride_saved != args.cols);
    Columns all(args.rows, args.cols, gaps);
    HostDropout<C> dropout(args);
    Slope<C> back = SLOPES<C>[args.activation];
    C k = C(args.parameter), wide[PIECE], known[PIECE];
    auto piece = [&](int64 row, int64 column, int64 n) -> const C* {
        const C* g = grad.read(row, column, n, wide);
        const C* s = reads ? saved.read(row, column, n, known) : nullptr;
        C* d = delta.place(row, column, wide);
        back(g, s, d, n, k);
        if (dropout.on) dropout.apply(d, row * args.cols + column, n);
        delta.put(d, row, column, n);
        return d;
    };
    if (args.partial == nullptr) for_pieces(args.first, args.last, all, piece);
    else sum_columns<C>(args, all, args.partial, args.grad_b, 1.0, piece);
}

template <class C> void column_sum(const ColumnSumArguments& a) {
    Matrix<C> x(a.x, a.stride, a.storage);
    C wide[PIECE];
    sum_columns<C>(
        a, Columns(a.rows, a.cols, a.stride != a.cols), a.partial, a.out, a.divisor,
        [&](int64 row, int64 column, int64 n) { return x.read(row, column, n, wide); });
}

}  // namespace

extern "C" {

#define NAME(formula) #formula,
extern const char* const gb_activation_names[];
const char* const gb_activation_names[] = {FOR_EACH_ACTIVATION(NAME) nullptr};

void gb_affine_epilogue(const AffineEpilogueArguments* a) {
    with_compute(a->storage, [&](auto c) { affine_epilogue<decltype(c)>(*a); });
}

void gb_activation_backward(const ActivationBackwardArguments* a) {
    with_compute(a->storage, [&](auto c) { activation_backward<decltype(c)>(*a); });
}

void gb_column_sum(const ColumnSumArguments* a) {
    with_compute(a->storage, [&](auto c) { column_sum<decltype(c)>(*a); });
}

void gb_column_sum_finish(const ColumnSumFinishArguments* a) {
    with_compute(a->storage, [&](auto c) {
        using C = decltype(c);
        finish_columns(
            static_cast<const C*>(a->partial), a->out, a->sum_storage, a->rows, a->cols, C(a->divisor));
    });
}

}  // extern "C"
