// softmax.cpp - softmax cross entropy: loss and delta of a row in one read and one write; softmax itself.
//   The formulas are those of the kernels (kernels/README.md, include/softmax.cuh):
//     loss = T log S - sum_k tau_k (z_k - m) + z_loss lse^2, S = sum_k exp(z_k - m), lse = m + log S
//     delta = factor ((T + 2 z_loss lse) exp(z - m) / S - tau)
//   Long rows are computed in pieces, with exponentials kept where delta will be; what is one number of a
//   row is computed for several rows at once, unless they are very long. Short rows are turned over, ROWS
//   at a time, so that each column of numbers is ROWS neighbours.
#include "rows.hpp"

namespace {

constexpr int ROWS = 32, SHORT = 40;  // SHORT: the longest row that is turned over
constexpr int PLAIN = 12;             // more terms one after another lose too much
constexpr int64 MIDDLE = 256;         // the longest row of which ROWS stay in the cache
constexpr int FEW_ROWS = 4;
constexpr int64 LONG = 2048;          // the longest row of which FEW_ROWS do
constexpr int64 LONGEST_AHEAD = 4096;  // the longest row of which the next one is fetched
constexpr int64 HELD = ROWS * MIDDLE;  // so many exponentials of rows of 16 bits are kept

// What is known of up to ROWS rows.
template <class C> struct Batch {
    C m[ROWS], s[ROWS], dot[ROWS], total[ROWS], z_label[ROWS], label_tau[ROWS], factor[ROWS];
    C grad_scale[ROWS];
    int64 label[ROWS];  // -1: none
    bool unusual;       // whether a row is ignored or bad
    bool ignored[ROWS], bad[ROWS];
};

template <class C> __forceinline__ C capped(C z, C cap) { return cap * ::tanh(z / cap); }
// z = capped(x); both may be one array.
template <class C> ONCE void cap_logits(const C* x, C cap, C* z, int64 n) {
    FORMULAS for (int64 j = 0; j < n; ++j) z[j] = capped(x[j], cap);
}
template <class C> __forceinline__ C cap_slope(C z, C cap) {
    C t = z / cap;
    return C(1) - t * t;
}

// exp(x) for x <= 0, or NaN; if SHALLOW, not far below 0
template <bool SHALLOW, class C> __forceinline__ C exponential(C x) {
    return SHALLOW ? host::exp_shallow(x) : host::exp_below(x);
}

// e = exp(x - origin) of N numbers. All are read before the first is written, or the compiler, which does not
// know that no e is an x to come, would finish one vector before it begins the next.
template <bool SHALLOW, int N, class C> __forceinline__ void some_exponentials(const C* x, C origin, C* e) {
    C below[N];
    TOGETHER for (int j = 0; j < N; ++j) below[j] = x[j] - origin;
    TOGETHER for (int j = 0; j < N; ++j) e[j] = exponential<SHALLOW>(below[j]);
}
template <class C> constexpr int SOME = 4 * LANES<C>;

// The same of n numbers.
template <bool SHALLOW, class C> ONCE void exponentials(const C* x, C origin, C* e, int64 n) {
    int64 i = 0;
    for (; i + SOME<C> <= n; i += SOME<C>) some_exponentials<SHALLOW, SOME<C>>(x + i, origin, e + i);
    FORMULAS for (; i < n; ++i) e[i] = exponential<SHALLOW>(x[i] - origin);
}

// Numbers that are wanted soon, a line of the cache for each of those at hand: they come while the processor
// computes. Asked for all at once, they would come no sooner than without.
struct Ahead {
    const char *read = nullptr, *write = nullptr;
    int64 bytes = 0;  // of a number

    __forceinline__ void fetch(int64 first, int64 n) const {
        for (int64 at = first * bytes; at < (first + n) * bytes; at += 64) {
            __builtin_prefetch(read + at);
            __builtin_prefetch(write + at, 1);
        }
    }
    Ahead from(int64 first) const { return {read + first * bytes, write + first * bytes, bytes}; }
};

// The same, and their sum; the processor adds while it waits for exponentials.
template <bool SHALLOW, class C> ONCE C sum_of_exponentials(const C* x, C origin, C* e, int64 n, Ahead ahead) {
    Lanes<C> lanes(C(0));
    int64 i = 0;
    for (; i + SOME<C> <= n; i += SOME<C>) {
        ahead.fetch(i, SOME<C>);
        some_exponentials<SHALLOW, SOME<C>>(x + i, origin, e + i);
        for (int64 j = i; j < i + SOME<C>; j += LANES<C>) lanes.add(e + j);
    }
    ahead.fetch(i, n - i);
    exponentials<SHALLOW>(x + i, origin, e + i, n - i);
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.add(e + i);
    C sum = lanes.folded([](auto a, auto b) { return a + b; });
    for (; i < n; ++i) sum += e[i];
    return sum;
}
template <class C>
inline C sum_of_exponentials(const C* x, C origin, C* e, int64 n, bool shallow, Ahead ahead = {}) {
    return shallow ? sum_of_exponentials<true>(x, origin, e, n, ahead)
                   : sum_of_exponentials<false>(x, origin, e, n, ahead);
}
template <class C> inline bool is_shallow(C least, C origin) { return least - origin >= host::SHALLOW<C>; }

template <class C> class CrossEntropy {
    const SoftmaxCrossEntropyArguments& a;
    const int64 K;
    const Matrix<C> logits, delta;
    const C* const class_weight;
    const C cap, z_loss, keep, uniform;
    const int64 step;  // rows at a time
    const bool has_ignored;
    const bool spreads;  // the label is not the only column with a part of the target
    C spread_total;      // of the columns but for the label: eps / K sum_k w_k
    Scales<C> scales;
    Batch<C> b;
    const C* capped_at[ROWS];  // rows of logits after the cap, from row capped_first on
    int64 capped_first = 0, capped_rows = 0;

public:
    CrossEntropy(const SoftmaxCrossEntropyArguments& a, double divisor)
        : a(a), K(a.cols), logits(a.logits, a.stride_logits, a.storage), delta(a.delta, a.stride_delta, a.storage),
          class_weight(static_cast<const C*>(a.class_weight)), cap(C(a.soft_cap)), z_loss(C(a.z_loss)),
          keep(C(1.0 - a.label_smoothing)), uniform(C(a.label_smoothing / double(a.cols))),
          step(K <= MIDDLE ? ROWS : K <= LONG ? FEW_ROWS : 1),
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
        for (int64 row = a.first; row < a.last; row += step) {
            int64 n = smaller(step, a.last - row);
            if (K <= SHORT) few_columns(row, n);
            else if (K <= MIDDLE) long_rows<ROWS>(row, n);
            else long_rows<FEW_ROWS>(row, n);
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
        int64 unusual = 0, ignored = a.ignore_index;
        for (int64 i = 0; i < n; ++i) {
            int64 y = b.label[i];
            unusual |= int64(y < 0) | int64(y >= K) | (int64(has_ignored) & int64(y == ignored));
        }
        for (int64 i = 0; i < n; ++i) {
            b.label_tau[i] = keep;
            b.total[i] = keep + spread_total;
        }
        b.unusual = unusual != 0;
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
        if (row - capped_first >= 0 && row - capped_first < capped_rows) {
            const C* kept = capped_at[row - capped_first];
            if (kept != nullptr) return kept + k;
        }
        const C* x = logits.read(row, k, n, buffer);
        if (cap == C(0)) return x;
        cap_logits(x, cap, buffer, n);
        return buffer;
    }

    // Keep n rows of logits after the cap where there is room, so that each tanh is computed once.
    void keep_capped(int64 first, int64 n, C* room) {
        capped_rows = 0;
        for (int64 i = 0; i < n; ++i) {
            C* to = place_of(first, i, room);
            for (int64 k = 0; to != nullptr && k < K; k += PIECE) {
                int64 many = smaller(PIECE, K - k);
                cap_logits(logits.read(first + i, k, many, to + k), cap, to + k, many);
            }
            capped_at[i] = to;
        }
        capped_first = first;
        capped_rows = n;
    }

    // n rows (of room for N).
    template <int N> void long_rows(int64 row, int64 n) {
        prepare<N>(row, n);
        C room[HELD], buffer[1], label_e[N];
        int64 best[N] = {};
        bool shallow[N];
        if (cap != C(0)) keep_capped(row, n, room);
        for (int64 i = 0; i < n; ++i) {
            Extent<C> extent = extent_of_row(row + i);
            b.m[i] = extent.most;
            shallow[i] = is_shallow(extent.least, origin_of(i));
            if (b.label[i] >= 0) b.z_label[i] = *logits_piece(row + i, b.label[i], 1, buffer);
            if (predicts()) best[i] = first_largest(row + i, extent.most);
        }
        for (int64 i = 0; i < n; ++i)
            label_e[i] = sum_row(row, i, shallow[i], held(row, i, room));
        outcome<N>(row, n);
        if (predicts())
            for (int64 i = 0; i < n; ++i) predict(row + i, i, best[i]);
        if (delta)
            for (int64 i = 0; i < n; ++i) write_row(row, i, held(row, i, room), label_e[i]);
    }
    C origin_of(int64 i) const { return b.m[i] == minus_infinity<C>() ? C(0) : b.m[i]; }

    // Where the exponentials of a row are kept, or its logits after the cap; null: nowhere.
    C* held(int64 row, int64 i, C* room) const {
        return delta && cap == C(0) ? place_of(row, i, room) : nullptr;
    }
    C* place_of(int64 row, int64 i, C* room) const {
        if (delta && delta.direct()) return delta.place(row + i, 0, nullptr);
        return step * K <= HELD ? room + i * K : nullptr;
    }

    Extent<C> extent_of_row(int64 row) const {
        C buffer[PIECE];
        Extent<C> all = extent_of(buffer, 0);
        for (int64 k = 0; k < K; k += PIECE) {
            int64 n = smaller(PIECE, K - k);
            all.join(extent_of(logits_piece(row, k, n, buffer), n));
        }
        return all;
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

    // The row that comes `step` rows after this one, or this one.
    Ahead ahead_of(int64 row) const {
        if (K > LONGEST_AHEAD) return {};
        int64 next = row + step < a.last ? row + step : row;
        const char* read = logits.at(next);
        return {read, delta ? delta.at(next) : read, BYTES[a.storage]};
    }

    // The sums of row first + i; exponentials go to `held`, and that of the label is returned.
    C sum_row(int64 first, int64 i, bool shallow, C* held) {
        C origin = origin_of(i), buffer[PIECE], tau[PIECE], from[PIECE];
        C sum = C(0), lost = C(0), dot = C(0), dot_lost = C(0), total = C(0), total_lost = C(0), label_e = C(0);
        int64 row = first + i, label = b.label[i];
        Ahead ahead = ahead_of(row);
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
            add_exactly(sum_of_exponentials(x, origin, e, n, shallow, ahead.from(k)), sum, lost);
            if (label >= k && label < k + n) label_e = e[label - k];
        }
        b.s[i] = sum + lost;
        b.dot[i] = (dot + dot_lost) * spread_factor();
        if (a.probabilities != nullptr) b.total[i] = total + total_lost;
        return label_e;
    }

    void write_row(int64 first, int64 i, const C* held, C label_e) {
        C buffer[PIECE], slope[PIECE], tau[PIECE];
        C by = b.grad_scale[i], factor = b.factor[i], origin = origin_of(i), label_slope = C(1);
        int64 row = first + i, label = b.label[i];
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
                exponentials<false>(x, origin, buffer, n);
            }
            if (spreads) {
                tau_piece(row, k, n, tau);
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = e[j] * by - tau[j] * factor;
            } else {
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = e[j] * by;
            }
            if (cap != C(0)) INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] *= slope[j];
            if (b.unusual && b.ignored[i])
                for (int64 j = 0; j < n; ++j) to[j] = C(0);
            delta.put(to, row, k, n);
        }
        if (label < 0) return;
        C other = a.label_smoothing == 0.0 ? C(0) : tau_of(row, label);
        C exact = (label_e * by - (other + b.label_tau[i]) * factor) * label_slope;
        delta.put(&exact, row, label, 1);
    }

    // ---- few columns ----

    void few_columns(int64 row, int64 n) {
        C z[SHORT * ROWS], tau[SHORT * ROWS];
        turn_over(row, n, z);
        prepare<ROWS>(row, n);
        if (cap != C(0)) cap_logits(z, cap, z, K * ROWS);
        C least[ROWS], origin[ROWS], s_lost[ROWS] = {};
        for (int i = 0; i < ROWS; ++i) {
            b.m[i] = minus_infinity<C>();
            least[i] = -minus_infinity<C>();
        }
        for (int64 k = 0; k < K; ++k) {
            const C* x = z + k * ROWS;
            INDEPENDENT for (int i = 0; i < ROWS; ++i) {
                b.m[i] = x[i] > b.m[i] ? x[i] : b.m[i];
                least[i] = x[i] < least[i] ? x[i] : least[i];
            }
        }
        int64 best[ROWS];
        if (predicts()) find_best(z, n, best);
        for (int64 i = 0; i < n; ++i)
            if (b.label[i] >= 0) b.z_label[i] = z[b.label[i] * ROWS + i];
        if (spreads) spread_few(row, n, z, tau);
        C slope[SHORT * ROWS];
        if (cap != C(0) && delta)
            INDEPENDENT for (int64 at = 0; at < K * ROWS; ++at) slope[at] = cap_slope(z[at], cap);
        int deep = 0;
        for (int i = 0; i < ROWS; ++i) {
            origin[i] = origin_of(i);
            deep |= !is_shallow(least[i], origin[i]);
            b.s[i] = C(0);
        }
        for (int64 k = 0; k < K; ++k) {
            C* x = z + k * ROWS;
            if (deep) {
                FORMULAS for (int i = 0; i < ROWS; ++i) x[i] = host::exp_below(x[i] - origin[i]);
            } else {
                FORMULAS for (int i = 0; i < ROWS; ++i) x[i] = host::exp_shallow(x[i] - origin[i]);
            }
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
            turn(from, a.stride_logits, z, ROWS, ROWS, K);
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
            turn(z, ROWS, to, a.stride_delta, K, ROWS);
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
        Extent<C> extent = extent_of(buffer, 0);
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            extent.join(extent_of(z.read(row, k, n, buffer), n));
        }
        C m = extent.most, sum = C(0), lost = C(0);
        bool shallow = is_shallow(extent.least, m);
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            add_exactly(sum_of_exponentials(z.read(row, k, n, buffer), m, buffer, n, shallow), sum, lost);
        }
        C s = sum + lost, log_s = ::log(s);
        for (int64 k = 0; k < a.cols; k += PIECE) {
            int64 n = smaller(PIECE, a.cols - k);
            const C* x = z.read(row, k, n, buffer);
            C* to = out.place(row, k, buffer);
            if (a.log_output) {
                INDEPENDENT for (int64 j = 0; j < n; ++j) to[j] = (x[j] - m) - log_s;
            } else {
                if (shallow) exponentials<true>(x, m, to, n);
                else exponentials<false>(x, m, to, n);
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
