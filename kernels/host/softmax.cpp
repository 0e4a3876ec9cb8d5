// softmax.cpp - softmax cross entropy: loss and delta of a row in one read and one write; softmax itself.
//   The formulas are those of the kernels (kernels/README.md, include/softmax.cuh):
//     loss = T log S - sum_k tau_k (z_k - m) + z_loss lse^2, S = sum_k exp(z_k - m), lse = m + log S
//     delta = factor ((T + 2 z_loss lse) exp(z - m) / S - tau)
//   Long rows are computed one by one, in pieces, with exponentials kept where delta will be. Short ones
//   are turned over, ROWS at a time, so that each column of numbers is ROWS neighbours.
#include "rows.hpp"

namespace {

constexpr int ROWS = 32, SHORT = 40;  // SHORT: the longest row that is turned over
constexpr int PLAIN = 12;             // more terms one after another lose too much
constexpr int64 HELD = 2048;          // the longest row of 16 bits whose exponentials are kept

// What is known of up to ROWS rows.
template <class C> struct Batch {
    C m[ROWS], s[ROWS], dot[ROWS], total[ROWS], z_label[ROWS], label_tau[ROWS], factor[ROWS];
    C grad_scale[ROWS];
    int64 label[ROWS];  // -1: none
    bool unusual;       // whether a row is ignored or bad
    bool ignored[ROWS], bad[ROWS];
};

template <class C> __forceinline__ C capped(C z, C cap) { return cap * ::tanh(z / cap); }
template <class C> __forceinline__ C cap_slope(C z, C cap) {
    C t = z / cap;
    return C(1) - t * t;
}

// e = exp(x - origin), where no x is above the origin
template <class C> ONCE void exponentials(const C* x, C origin, C* e, int64 n) {
    INDEPENDENT for (int64 j = 0; j < n; ++j) e[j] = host::exp_below(x[j] - origin);
}

template <class C> class CrossEntropy {
    const SoftmaxCrossEntropyArguments& a;
    const int64 K;
    const Matrix<C> logits, delta;
    const C* const class_weight;
    const C cap, z_loss, keep, uniform;
    const bool has_ignored;
    const bool spreads;  // the label is not the only column with a part of the target
    C spread_total;      // of the columns but for the label: eps / K sum_k w_k
    Scales<C> scales;
    Batch<C> b;

public:
    CrossEntropy(const SoftmaxCrossEntropyArguments& a, double divisor)
        : a(a), K(a.cols), logits(a.logits, a.stride_logits, a.storage), delta(a.delta, a.stride_delta, a.storage),
          class_weight(static_cast<const C*>(a.class_weight)), cap(C(a.soft_cap)), z_loss(C(a.z_loss)),
          keep(C(1.0 - a.label_smoothing)), uniform(C(a.label_smoothing / double(a.cols))),
          has_ignored(a.has_ignore_index != 0),
          spreads(a.probabilities != nullptr || a.label_smoothing != 0.0), scales(a, divisor) {
        double weights = double(K);
        if (class_weight != nullptr) {
            weights = 0.0;
            for (int64 k = 0; k < K; ++k) weights += double(class_weight[k]);
        }
        spread_total = C(a.label_smoothing / double(K) * weights);
    }

    void run() {
        if (K <= SHORT) {
            for (int64 row = a.first; row < a.last; row += ROWS) few_columns(row, smaller(ROWS, a.last - row));
        } else {
            for (int64 row = a.first; row < a.last; ++row) long_row(row);
        }
    }

private:
    // Labels and factors of n rows (of room for N), and what follows from them.
    template <int N> void prepare(int64 first, int64 n) {
        for (int i = 0; i < N; ++i) {
            b.factor[i] = scales.constant();
            b.label[i] = -1;
            b.label_tau[i] = b.z_label[i] = b.dot[i] = b.total[i] = C(0);
        }
        b.unusual = false;
        if (!scales.is_constant())
            for (int64 i = 0; i < n; ++i) b.factor[i] = scales.of(first + i);
        if (a.labels == nullptr) return;
        read_labels(a.labels, a.label_storage, first, n, b.label);
        for (int64 i = 0; i < n; ++i) {
            b.unusual |= uint64(b.label[i]) >= uint64(K) || (has_ignored && b.label[i] == a.ignore_index);
            b.label_tau[i] = keep;
            b.total[i] = keep + spread_total;
        }
        if (b.unusual) set_apart(n);
        if (class_weight == nullptr) return;
        for (int64 i = 0; i < n; ++i) {
            if (b.label[i] < 0) continue;
            b.label_tau[i] = keep * class_weight[b.label[i]];
            b.total[i] = b.label_tau[i] + spread_total;
        }
    }

    // The rows without a label: ignored, or with a number that is no class.
    void set_apart(int64 n) {
        for (int64 i = 0; i < n; ++i) {
            int64 y = b.label[i];
            b.ignored[i] = has_ignored && y == a.ignore_index;
            b.bad[i] = !b.ignored[i] && uint64(y) >= uint64(K);
            if (b.bad[i]) b.factor[i] = not_a_number<C>();
            if (!b.ignored[i] && !b.bad[i]) continue;
            b.label[i] = -1;
            b.label_tau[i] = b.total[i] = C(0);
        }
    }

    // Losses and factors of n rows (of room for N), once m, s, dot and, with probabilities, total are known.
    template <int N> void outcome(int64 first, int64 n) {
        C loss[N], lse[N], sums[N];
        double log_s[N];
        INDEPENDENT for (int i = 0; i < N; ++i) {  // NaN: no logit, or all -inf
            sums[i] = b.m[i] == minus_infinity<C>() ? not_a_number<C>() : b.s[i];
            log_s[i] = log_of_sum(sums[i]);
        }
        INDEPENDENT for (int i = 0; i < N; ++i) {
            C z = b.z_label[i] - b.m[i], lost = (b.z_label[i] - (z + b.m[i]));
            double below = double(z) + (is_finite(z) ? double(lost) : 0.0);
            loss[i] = C(double(b.total[i]) * log_s[i] - double(b.label_tau[i]) * below - double(b.dot[i]));
        }
        INDEPENDENT for (int i = 0; i < N; ++i) {
            lse[i] = C(double(b.m[i]) + log_s[i]);
            b.grad_scale[i] = b.total[i] * b.factor[i] / sums[i];
        }
        if (z_loss != C(0)) {
            INDEPENDENT for (int i = 0; i < N; ++i) {
                loss[i] += z_loss * lse[i] * lse[i];
                b.grad_scale[i] += C(2) * z_loss * lse[i] * b.factor[i] / sums[i];
            }
        }
        if (scales.weight != nullptr)
            for (int64 i = 0; i < n; ++i) loss[i] *= scales.weight[first + i];
        if (b.unusual)
            for (int64 i = 0; i < n; ++i)
                loss[i] = b.bad[i] ? not_a_number<C>() : b.ignored[i] ? C(0) : loss[i];
        C *row_loss = static_cast<C*>(a.row_loss), *all_lse = static_cast<C*>(a.lse);
        if (row_loss != nullptr)
            for (int64 i = 0; i < n; ++i) row_loss[first + i] = loss[i];
        if (all_lse != nullptr)
            for (int64 i = 0; i < n; ++i) all_lse[first + i] = lse[i];
    }

    // log of a sum of at least 1, or NaN; enough for a result of type C.
    static double log_of_sum(float s) { return host::log_or_limit(double(s), host::short_log(double(s))); }
    static double log_of_sum(double s) { return ::log(s); }

    void predict(int64 row, int64 i, int64 best) {
        bool known = is_finite(b.s[i]) && b.m[i] != minus_infinity<C>();  // a row with NaN has none
        if (a.predicted != nullptr) a.predicted[row] = known ? best : -1;
        if (a.correct != nullptr) a.correct[row] = known && b.label[i] >= 0 && best == b.label[i];
    }
    bool predicts() const { return a.predicted != nullptr || a.correct != nullptr; }

    // tau of column k in row `row`, without what the label adds.
    C tau_of(int64 row, int64 k) const {
        C tau = uniform;
        if (a.probabilities != nullptr) tau += keep * probability(row * a.stride_probabilities + k);
        return class_weight == nullptr ? tau : tau * class_weight[k];
    }
    C probability(int64 at) const {
        if (a.probability_storage == STORED_F64) return C(static_cast<const double*>(a.probabilities)[at]);
        return C(static_cast<const float*>(a.probabilities)[at]);
    }

    // The same of n columns from k on.
    ONCE void tau_piece(int64 row, int64 k, int64 n, C* tau) const {
        INDEPENDENT for (int64 j = 0; j < n; ++j) tau[j] = uniform;
        if (a.probabilities != nullptr) {
            int64 at = row * a.stride_probabilities + k;
            with_compute(a.probability_storage, [&](auto p) {
                const auto* given = static_cast<const decltype(p)*>(a.probabilities) + at;
                INDEPENDENT for (int64 j = 0; j < n; ++j) tau[j] += keep * C(given[j]);
            });
        }
        if (class_weight != nullptr)
            INDEPENDENT for (int64 j = 0; j < n; ++j) tau[j] *= class_weight[k + j];
    }

    // ---- a long row ----

    // Logits of a piece after the cap, where they lie or in `buffer`.
    ONCE const C* logits_piece(int64 row, int64 k, int64 n, C* buffer) const {
        const C* x = logits.read(row, k, n, buffer);
        if (cap == C(0)) return x;
        INDEPENDENT for (int64 j = 0; j < n; ++j) buffer[j] = capped(x[j], cap);
        return buffer;
    }

    void long_row(int64 row) {
        prepare<1>(row, 1);
        C buffer[PIECE], room[HELD];
        C* held = nullptr;  // exponentials of the whole row
        if (delta && cap == C(0)) {
            if (delta.direct()) held = delta.place(row, 0, nullptr);
            else if (K <= HELD) held = room;
        }
        C m = minus_infinity<C>();
        for (int64 k = 0; k < K; k += PIECE) {
            int64 n = smaller(PIECE, K - k);
            m = largest(logits_piece(row, k, n, buffer), n, m);
        }
        b.m[0] = m;
        if (b.label[0] >= 0) b.z_label[0] = *logits_piece(row, b.label[0], 1, buffer);
        int64 best = -1;
        if (predicts()) best = first_largest(row, m);
        C label_e = sum_row(row, m == minus_infinity<C>() ? C(0) : m, held);
        outcome<1>(row, 1);
        if (predicts()) predict(row, 0, best);
        if (delta) write_row(row, held, label_e);
    }

    int64 first_largest(int64 row, C m) const {
        C buffer[PIECE];
        for (int64 k = 0; k < K; k += PIECE) {
            int64 n = smaller(PIECE, K - k), at = first_of(logits_piece(row, k, n, buffer), n, m);
            if (at < n) return k + at;
        }
        return -1;
    }

    // A piece of sum_k tau_k (z_k - m), without the factor eps / K that all terms share where only labels
    // have targets: it comes last, so that the sum overflows where PyTorch's does.
    C spread_of(int64 k, int64 n, const C* tau, const C* from) const {
        if (a.probabilities != nullptr) return sum_of_products(tau, from, n);
        return class_weight == nullptr ? sum_of(from, n) : sum_of_products(class_weight + k, from, n);
    }
    C spread_factor() const { return a.probabilities != nullptr ? C(1) : uniform; }

    // The sums of the row; exponentials go to `held`, and that of the label is returned.
    C sum_row(int64 row, C origin, C* held) {
        C buffer[PIECE], tau[PIECE], from[PIECE];
        C sum = C(0), lost = C(0), dot = C(0), dot_lost = C(0), total = C(0), total_lost = C(0), label_e = C(0);
        int64 label = b.label[0];
        for (int64 k = 0; k < K; k += PIECE) {
            int64 n = smaller(PIECE, K - k);
            const C* x = logits_piece(row, k, n, buffer);
            if (spreads) {
                tau_piece(row, k, n, tau);
                INDEPENDENT for (int64 j = 0; j < n; ++j) from[j] = x[j] - origin;
                add_exactly(spread_of(k, n, tau, from), dot, dot_lost);
                if (a.probabilities != nullptr) add_exactly(sum_of(tau, n), total, total_lost);
            }
            C* e = held == nullptr ? buffer : held + k;
            exponentials(x, origin, e, n);
            if (label >= k && label < k + n) label_e = e[label - k];
            add_exactly(sum_of(e, n), sum, lost);
        }
        b.s[0] = sum + lost;
        b.dot[0] = (dot + dot_lost) * spread_factor();
        if (a.probabilities != nullptr) b.total[0] = total + total_lost;
        return label_e;
    }

    void write_row(int64 row, const C* held, C label_e) {
        C buffer[PIECE], slope[PIECE], tau[PIECE];
        C by = b.grad_scale[0], factor = b.factor[0], label_slope = C(1);
        C origin = b.m[0] == minus_infinity<C>() ? C(0) : b.m[0];
        int64 label = b.label[0];
        for (int64 k = 0; k < K; k += PIECE) {
            int64 n = smaller(PIECE, K - k);
            C* to = delta.place(row, k, buffer);
            const C* e = held == nullptr ? buffer : held + k;
            if (held == nullptr) {
                const C* x = logits_piece(row, k, n, buffer);
                if (cap != C(0)) {
                    INDEPENDENT for (int64 j = 0; j < n; ++j) slope[j] = cap_slope(x[j], cap);
                    if (label >= k && label < k + n) label_slope = slope[label - k];
                }
                exponentials(x, origin, buffer, n);
            }
            if (spreads) {
                tau_piece(row, k, n, tau);
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = e[j] * by - tau[j] * factor;
            } else {
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = e[j] * by;
            }
            if (cap != C(0)) INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] *= slope[j];
            if (b.unusual && b.ignored[0])
                for (int64 j = 0; j < n; ++j) to[j] = C(0);
            delta.put(to, row, k, n);
        }
        if (label < 0) return;
        C other = a.label_smoothing == 0.0 ? C(0) : tau_of(row, label);
        C exact = (label_e * by - (other + b.label_tau[0]) * factor) * label_slope;
        delta.put(&exact, row, label, 1);
    }

    // ---- few columns ----

    void few_columns(int64 row, int64 n) {
        C z[SHORT * ROWS], tau[SHORT * ROWS];
        turn_over(row, n, z);
        prepare<ROWS>(row, n);
        if (cap != C(0))
            INDEPENDENT for (int64 at = 0; at < K * ROWS; ++at) z[at] = capped(z[at], cap);
        for (int i = 0; i < ROWS; ++i) b.m[i] = minus_infinity<C>();
        for (int64 k = 0; k < K; ++k) {
            const C* x = z + k * ROWS;
            INDEPENDENT for (int i = 0; i < ROWS; ++i) b.m[i] = x[i] > b.m[i] ? x[i] : b.m[i];
        }
        int64 best[ROWS];
        if (predicts()) find_best(z, n, best);
        for (int64 i = 0; i < n; ++i)
            if (b.label[i] >= 0) b.z_label[i] = z[b.label[i] * ROWS + i];
        if (spreads) spread_few(row, n, z, tau);
        C slope[SHORT * ROWS];
        if (cap != C(0) && delta)
            INDEPENDENT for (int64 at = 0; at < K * ROWS; ++at) slope[at] = cap_slope(z[at], cap);
        C origin[ROWS], s_lost[ROWS] = {};
        INDEPENDENT for (int i = 0; i < ROWS; ++i) {
            origin[i] = b.m[i] == minus_infinity<C>() ? C(0) : b.m[i];
            b.s[i] = C(0);
        }
        for (int64 k = 0; k < K; ++k) {
            C* x = z + k * ROWS;
            INDEPENDENT for (int i = 0; i < ROWS; ++i) x[i] = host::exp_below(x[i] - origin[i]);
            if (K > PLAIN) INDEPENDENT for (int i = 0; i < ROWS; ++i) add_exactly(x[i], b.s[i], s_lost[i]);
            else INDEPENDENT for (int i = 0; i < ROWS; ++i) b.s[i] += x[i];
        }
        for (int i = 0; i < ROWS; ++i) b.s[i] += s_lost[i];
        outcome<ROWS>(row, n);
        if (predicts())
            for (int64 i = 0; i < n; ++i) predict(row + i, i, best[i]);
        if (!delta) return;
        for (int64 k = 0; k < K; ++k) {
            C* x = z + k * ROWS;
            INDEPENDENT for (int i = 0; i < ROWS; ++i) x[i] *= b.grad_scale[i];
        }
        if (spreads)
            for (int64 k = 0; k < K; ++k) {
                C *x = z + k * ROWS, *part = tau + k * ROWS;
                INDEPENDENT for (int i = 0; i < ROWS; ++i) x[i] -= part[i] * b.factor[i];
            }
        for (int64 i = 0; i < n; ++i)
            if (b.label[i] >= 0) z[b.label[i] * ROWS + i] -= b.label_tau[i] * b.factor[i];
        if (cap != C(0))
            INDEPENDENT for (int64 at = 0; at < K * ROWS; ++at) z[at] *= slope[at];
        if (b.unusual)
            for (int64 i = 0; i < n; ++i)
                for (int64 k = 0; b.ignored[i] && k < K; ++k) z[k * ROWS + i] = C(0);
        turn_back(row, n, z);
    }

    void turn_over(int64 row, int64 n, C* z) const {
        C buffer[SHORT];
        if (logits.direct() && n == ROWS) {
            const C* from = logits.read(row, 0, K, buffer);
            for (int64 k = 0; k < K; ++k)
                INDEPENDENT for (int i = 0; i < ROWS; ++i) z[k * ROWS + i] = from[i * a.stride_logits + k];
            return;
        }
        for (int64 i = 0; i < n; ++i) {
            const C* from = logits.read(row + i, 0, K, buffer);
            for (int64 k = 0; k < K; ++k) z[k * ROWS + i] = from[k];
        }
        for (int64 i = n; i < ROWS; ++i)
            for (int64 k = 0; k < K; ++k) z[k * ROWS + i] = C(0);
    }

    void turn_back(int64 row, int64 n, const C* z) const {
        C buffer[SHORT];
        if (delta.direct() && n == ROWS) {
            C* to = delta.place(row, 0, buffer);
            for (int64 k = 0; k < K; ++k)
                INDEPENDENT for (int i = 0; i < ROWS; ++i) to[i * a.stride_delta + k] = z[k * ROWS + i];
            return;
        }
        for (int64 i = 0; i < n; ++i) {
            C* to = delta.place(row + i, 0, buffer);
            for (int64 k = 0; k < K; ++k) to[k] = z[k * ROWS + i];
            delta.put(to, row + i, 0, K);
        }
    }

    void find_best(const C* z, int64 n, int64* best) const {
        for (int64 i = 0; i < n; ++i) {
            best[i] = -1;
            for (int64 k = K - 1; k >= 0; --k)
                if (z[k * ROWS + i] == b.m[i]) best[i] = k;
        }
    }

    // tau of all columns, sum tau (z - m) and, with probabilities, sum tau.
    void spread_few(int64 row, int64 n, const C* z, C* tau) {
        C dot[ROWS] = {}, dot_lost[ROWS] = {}, total[ROWS] = {}, total_lost[ROWS] = {};
        for (int64 k = 0; k < K; ++k) {
            C* part = tau + k * ROWS;
            for (int64 i = 0; i < n; ++i) part[i] = tau_of(row + i, k);
            for (int64 i = n; i < ROWS; ++i) part[i] = C(0);
            const C* x = z + k * ROWS;
            if (a.probabilities == nullptr) {
                C weight = class_weight == nullptr ? C(1) : class_weight[k];
                INDEPENDENT for (int i = 0; i < ROWS; ++i) add_exactly(weight * (x[i] - b.m[i]), dot[i], dot_lost[i]);
                continue;
            }
            INDEPENDENT for (int i = 0; i < ROWS; ++i) {
                add_exactly(part[i] * (x[i] - b.m[i]), dot[i], dot_lost[i]);
                add_exactly(part[i], total[i], total_lost[i]);
            }
        }
        for (int i = 0; i < ROWS; ++i) b.dot[i] = (dot[i] + dot_lost[i]) * spread_factor();
        if (a.probabilities != nullptr)
            for (int i = 0; i < ROWS; ++i) b.total[i] = total[i] + total_lost[i];
    }
};

template <class C> void cross_entropy(const SoftmaxCrossEntropyArguments& a) {
    double divisor = a.divisor_at == nullptr || a.weighs ? a.divisor : *a.divisor_at;
    if (a.weighs) {
        divisor = sum_of_weights(
            a.labels, a.label_storage, static_cast<const C*>(a.sample_weight),
            a.labels == nullptr ? nullptr : static_cast<const C*>(a.class_weight), a.rows, a.cols,
            a.has_ignore_index != 0, a.ignore_index);
        if (a.divisor_at != nullptr) *a.divisor_at = divisor;
    }
    CrossEntropy<C>(a, divisor).run();
    if (a.loss == nullptr) return;
    *static_cast<C*>(a.loss) =
        mean_loss(static_cast<const C*>(a.row_loss), a.rows, divisor, a.empty_is_zero != 0);
}

template <class C> void softmax(const SoftmaxArguments& a) {
    Matrix<C> z(a.a, a.stride_a, a.storage), out(a.out, a.stride_out, a.storage);
    C buffer[PIECE];
    for (int64 row = a.first; row < a.last; ++row) {
        C m = minus_infinity<C>(), sum = C(0), lost = C(0);
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            m = largest(z.read(row, k, n, buffer), n, m);
        }
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            exponentials(z.read(row, k, n, buffer), m, buffer, n);
            add_exactly(sum_of(buffer, n), sum, lost);
        }
        C s = sum + lost, log_s = ::log(s);
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            const C* x = z.read(row, k, n, buffer);
            C* to = out.place(row, k, buffer);
            if (a.log_output) {
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = (x[j] - m) - log_s;
            } else {
                exponentials(x, m, to, n);
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] /= s;
            }
            out.put(to, row, k, n);
        }
    }
}

}  // namespace

extern "C" {

void gb_softmax_cross_entropy(const SoftmaxCrossEntropyArguments* a) {
    with_compute(a->storage, [&](auto c) { cross_entropy<decltype(c)>(*a); });
}

void gb_softmax(const SoftmaxArguments* a) {
    with_compute(a->storage, [&](auto c) { softmax<decltype(c)>(*a); });
}

void gb_row_weights(const RowWeightsArguments* a) {
    with_compute(a->storage, [&](auto c) {
        using C = decltype(c);
        *a->divisor_at = a->factor * sum_of_weights(
            a->labels, a->label_storage, static_cast<const C*>(a->sample_weight),
            static_cast<const C*>(a->class_weight), a->rows, a->classes, a->has_ignore_index != 0,
            a->ignore_index);
    });
}

void gb_reduce_loss(const ReduceLossArguments* a) {
    with_compute(a->storage, [&](auto c) {
        using C = decltype(c);
        double divisor = a->divisor_at == nullptr ? a->divisor : *a->divisor_at;
        *static_cast<C*>(a->loss) =
            mean_loss(static_cast<const C*>(a->row_loss), a->rows, divisor, a->empty_is_zero != 0);
    });
}

}  // extern "C"
