// softmax.cuh - what the softmax kernels share: exponentials, the statistics of a row, its targets.
//   z are the logits (after the soft cap), m = max z, S = sum exp(z - m), tau the targets with class
//   weights and smoothing. A thread first works relative to the largest of its own logits; statistics
//   are brought to a common origin only when threads are combined.
#pragma once
#include "rows.cuh"

// The point that exponentials are taken from: the maximum, or 0 where there was no finite logit, so
// that exp(-inf - origin) is 0 and not NaN.
template <class C> __device__ __forceinline__ C origin_of(C maximum) {
    return maximum == minus_infinity<C>() ? C(0) : maximum;
}

// exp(x). 16 bits: 2^(x log2 e) by the special function unit, right to 2^-21 of itself for |x| < 10.
//   Not 2^(z log2 e - m log2 e) in one fused multiply-add: m log2 e is rounded, so the largest term
//   would not be 1, and the loss of a confident row would be that rounding.
template <class T, class C> __device__ __forceinline__ C exponential(C x) {
    if constexpr (sizeof(T) == 2) return ptx::exp2_approx_ftz(x * 1.44269504f);
    else return ::exp(x);
}

// of(z) * to(o) = exp(z - o), with of(z) at most 1.
template <class T> struct Exponential {
    using C = compute_of<T>;
    C origin;
    bool none;  // no logit above -inf: of(z) is 0 (or NaN), and so is anything times it
    __device__ __forceinline__ explicit Exponential(C maximum)
        : origin(origin_of(maximum)), none(maximum == minus_infinity<C>()) {}
    __device__ __forceinline__ C of(C z) const { return exponential<T>(z - origin); }
    __device__ __forceinline__ C to(C other) const { return none ? C(0) : ::exp(origin - other); }
};

// cap * tanh(z / cap). 16 bits: through one exponential, to 1e-7 of the cap.
template <class T, class C> __device__ __forceinline__ C soft_capped(C z, C cap) {
    if constexpr (sizeof(T) == 2) {
        constexpr float TWICE_LOG2_E = 2.88539008f;
        return cap - 2.f * cap / (1.f + ptx::exp2_approx_ftz(z / cap * TWICE_LOG2_E));
    } else {
        return cap * ::tanh(z / cap);
    }
}

// d z / d logit at the capped logit z.
template <class C> __device__ __forceinline__ C cap_slope(C z, C inverse_cap) {
    C t = z * inverse_cap;
    return C(1) - t * t;
}

// What is known of a row, or of a part of it, relative to o = origin_of(maximum).
template <class C> struct Statistics {
    C maximum;
    C sum;     // sum exp(z - o)
    C picked;  // sum tau (z - o), without the label's own share
    C total;   // sum tau, likewise
    int64 best;  // column of the first maximum

    static __device__ __forceinline__ Statistics none() {
        return {minus_infinity<C>(), C(0), C(0), C(0), 0x7fffffffffffffff};
    }
    // The same, relative to a maximum that is at least its own.
    __device__ __forceinline__ void move_to(C larger) {
        if (maximum != larger && maximum != minus_infinity<C>()) {
            C by = maximum - larger;
            sum *= ::exp(by);
            picked = ::fma(total, by, picked);
        }
        maximum = larger;
    }
};

struct First {
    template <class C> static __device__ __forceinline__ C of(C a, C b) { return a < b ? a : b; }
};

// All lanes' statistics in each of them. `spread`: picked and total are in use; `best`: best is.
template <class C>
__device__ __forceinline__ Statistics<C> combine_lanes(
    Statistics<C> own, int lanes, bool spread, bool best) {
    C maximum = reduce_lanes<Maximum>(own.maximum, lanes);
    if (best) {
        if (own.maximum != maximum) own.best = Statistics<C>::none().best;
        own.best = reduce_lanes<First>(own.best, lanes);
    }
    own.move_to(maximum);
    own.sum = reduce_lanes<Sum>(own.sum, lanes);
    if (spread) {
        own.picked = reduce_lanes<Sum>(own.picked, lanes);
        own.total = reduce_lanes<Sum>(own.total, lanes);
    }
    return own;
}

// Both in one; b's columns come after a's.
template <class C>
__device__ __forceinline__ Statistics<C> merge(Statistics<C> a, Statistics<C> b) {
    if (b.maximum > a.maximum) a.best = b.best;
    C larger = Maximum::of(a.maximum, b.maximum);
    a.move_to(larger);
    b.move_to(larger);
    a.sum += b.sum;
    a.picked += b.picked;
    a.total += b.total;
    return a;
}

// What a launch computes, from what. Pointers are null where a thing is not wanted or not there.
template <class T> struct Problem {
    using C = compute_of<T>;
    const T* logits;
    const void* labels;  // of label_bytes each: 1 unsigned, 4 or 8 signed
    const C* probabilities;
    T* delta;
    C *row_loss, *lse;
    int64* predicted;
    u8* correct;
    RowScale<C> scale;
    const C* class_weight;
    C keep, uniform;     // of a target with smoothing eps: 1 - eps, and eps / cols for every column
    C z_loss, soft_cap;  // soft_cap: 0 for none
    int64 ignore_index;
    int64* bad_label;
    int64 rows, cols, stride_logits, stride_delta, stride_probabilities;
    int label_bytes, has_ignore_index, log_output;

    __device__ __forceinline__ int64 label(int64 row) const {
        if (label_bytes == 8) return static_cast<const int64*>(labels)[row];
        if (label_bytes == 4) return static_cast<const int*>(labels)[row];
        return static_cast<const u8*>(labels)[row];
    }
    __device__ __forceinline__ bool wants_best() const {
        return predicted != nullptr || correct != nullptr;
    }
    // An ignored row is read all the same where something of it is wanted.
    __device__ __forceinline__ bool reads_ignored() const {
        return lse != nullptr || predicted != nullptr;
    }
    // Every column has a share of the targets, not the label's alone.
    __device__ __forceinline__ bool spread() const {
        return probabilities != nullptr || (uniform != C(0) && labels != nullptr);
    }
    __device__ __forceinline__ C capped(C z) const {
        return soft_cap == C(0) ? z : soft_capped<T>(z, soft_cap);
    }
};

// A row's label and what follows from it, the same in all threads of the row's group.
template <class C> struct Target {
    int64 label;        // -1 where no element is the label's: probabilities, ignored, bad
    C extra;            // what the label adds to its tau
    C factor;           // of loss to gradient
    bool ignored, bad;

    template <class T> __device__ __forceinline__ Target(const Problem<T>& p, int64 row)
        : label(-1), extra(0), factor(1), ignored(false), bad(false) {
        if (row >= p.rows) return;
        if (p.delta != nullptr) factor = p.scale.gradient(row);
        if (p.labels == nullptr) return;
        int64 y = p.label(row);
        ignored = p.has_ignore_index && y == p.ignore_index;
        bad = !ignored && (y < 0 || y >= p.cols);
        if (bad) factor = not_a_number<C>();
        if (ignored || bad) return;
        label = y;
        extra = p.keep;
        if (p.class_weight != nullptr) extra *= p.class_weight[y];
    }
};

// The first bad row is kept until the host has read it. The row is written last, so whoever sees it
// (>= 0) sees its label too; CLAIMED keeps others out in between.
__device__ __forceinline__ void report_bad_label(int64* bad_label, int64 row, int64 y) {
    constexpr uint64 FREE = ~uint64(0), CLAIMED = ~uint64(1);  // -1 and -2
    uint64* first = reinterpret_cast<uint64*>(bad_label);
    if (ptx::load_shared_word(first) != FREE) return;  // of a million bad rows, few come to the atomic
    if (atomicCAS(first, FREE, CLAIMED) != FREE) return;
    bad_label[1] = y;
    ptx::publish(first, uint64(row));
}

// What a group knows once its statistics are combined.
template <class T> struct Outcome {
    using C = compute_of<T>;
    Statistics<C> all;
    C origin, share;  // delta = exp(z - origin) * share - tau * factor

    // tau_unit: what picked and total count in; eps / K in the labels form, whose total is then exact.
    __device__ __forceinline__ Outcome(
        const Problem<T>& p, const Target<C>& target, Statistics<C> combined, C tau_unit)
        : all(combined), origin(origin_of(combined.maximum)) {
        if (p.spread()) all.picked *= tau_unit, all.total *= tau_unit;
        if (all.maximum == minus_infinity<C>()) all.sum = not_a_number<C>();  // no logit, or all -inf
        all.total += target.extra;
        if (p.labels == nullptr && p.probabilities == nullptr) all.total = C(1);  // softmax itself
        C weight = all.total;
        if (p.z_loss != C(0)) weight += C(2) * p.z_loss * lse();
        share = weight * target.factor / all.sum;
    }
    __device__ __forceinline__ C lse() const { return origin + ::log(all.sum); }

    // delta at the label, with p - 1 formed before it is rounded. z_label: its logit, capped.
    __device__ __forceinline__ T label_delta(
        const Problem<T>& p, const Target<C>& target, C z_label) const {
        C tau = p.uniform;
        if (p.class_weight != nullptr) tau *= p.class_weight[target.label];
        C d = ::exp(z_label - origin) * share - (tau + target.extra) * target.factor;
        return to_storage<T>(p.soft_cap == C(0) ? d : d * cap_slope(z_label, C(1) / p.soft_cap));
    }

    // By one thread of the row: what is stored once for it.
    __device__ __forceinline__ void store_row(
        const Problem<T>& p, const Target<C>& target, int64 row, C z_label) const {
        bool labelled = target.label >= 0;
        if (target.bad && p.bad_label != nullptr) report_bad_label(p.bad_label, row, p.label(row));
        Compensated<C> terms;  // log S and z_y - m are often of one size and far above the rest
        terms.add_product(all.total, ::log(all.sum));
        if (labelled) {
            Compensated<C> from_origin;
            from_origin.add(z_label);
            from_origin.add(-origin);
            terms.add_product(-target.extra, from_origin.sum);
            terms.lost -= target.extra * from_origin.lost;
        }
        terms.add(-all.picked);
        if (p.z_loss != C(0)) terms.add(p.z_loss * lse() * lse());
        C loss = terms.value() * p.scale.weight(row);
        if (target.bad) loss = not_a_number<C>();
        if (target.ignored) loss = C(0);
        if (p.row_loss != nullptr) p.row_loss[row] = loss;
        if (p.lse != nullptr) p.lse[row] = lse();
        bool known = is_finite(all.sum);  // a row with NaN has no prediction
        if (p.predicted != nullptr) p.predicted[row] = known ? all.best : -1;
        if (p.correct != nullptr) p.correct[row] = labelled && known && all.best == target.label;
    }
};

// The parameters of every softmax entry, in one order, and the problem that they make.
#define SOFTMAX_PARAMETERS(T)                                                                     \
    const T *logits, const void *labels, int label_bytes, const compute_of<T>*probabilities,      \
        int64 stride_probabilities, T *delta, compute_of<T>*row_loss, compute_of<T>*lse,          \
        int64 *predicted, u8 *correct, const compute_of<T>*sample_weight,                         \
        const compute_of<T>*upstream, int64 upstream_stride, const compute_of<T>*divisor,         \
        const compute_of<T>*class_weight, compute_of<T> label_smoothing, compute_of<T> z_loss,    \
        compute_of<T> soft_cap, int64 ignore_index, int has_ignore_index, int log_output,         \
        int64 *bad_label, int64 rows, int64 cols, int64 stride_logits, int64 stride_delta
#define SOFTMAX_PROBLEM(T)                                                                        \
    Problem<T> {                                                                                  \
        logits, labels, probabilities, delta, row_loss, lse, predicted, correct,                  \
            {sample_weight, upstream, divisor, upstream_stride}, class_weight,                    \
            compute_of<T>(1) - label_smoothing, label_smoothing / compute_of<T>(cols), z_loss,    \
            soft_cap, ignore_index, bad_label, rows, cols, stride_logits, stride_delta,   \
            stride_probabilities, label_bytes, has_ignore_index, log_output                       \
    }
