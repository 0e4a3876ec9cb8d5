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

// exp(x) for x <= 0 by the special function unit; 0 below 2^-126. 16 bits: 2^(x log2 e), right to 2^-21 of
//   itself for |x| < 10. float32: 2^t (1 + r), with t = x log2 e rounded and r = x - t log 2, six instructions
//   where the compiler's exp has nine; exp(-inf) is 0, since of NaN and 1 the smaller is 1.
//   Not 2^(z log2 e - m log2 e) in one fused multiply-add: m log2 e is rounded, so the largest term
//   would not be 1, and the loss of a confident row would be that rounding.
template <class T, class C> __device__ __forceinline__ C exponential(C x) {
    if constexpr (sizeof(T) == 2) return ptx::exp2_approx_ftz(x * 1.44269504f);
    else if constexpr (sizeof(T) == 4) {
        C t = rounded_product(x, 1.44269504f), power = ptx::exp2_approx_ftz(t);
        return ::fma(power, ::fmin(::fma(t, -0.693147181f, x), 1.f), power);
    } else return ::exp(x);
}

// The same of a finite x (float32: of |x| below 2^127, else NaN), without the comparison.
template <class T, class C> __device__ __forceinline__ C exponential_of_finite(C x) {
    if constexpr (sizeof(T) == 4) {
        C t = rounded_product(x, 1.44269504f), power = ptx::exp2_approx_ftz(t);
        return ::fma(power, ::fma(t, -0.693147181f, x), power);
    } else return exponential<T>(x);
}

// a / S for S in [1, 2^31]; 16 bits: to 2^-22.
template <class T, class C> __device__ __forceinline__ C over_sum(C a, C sum) {
    if constexpr (sizeof(T) == 2) return a * ptx::reciprocal_approx(sum);
    else return a / sum;
}

// The same for a finite a; float32: the quotient that a reciprocal gives, corrected by what is left of a.
template <class T, class C> __device__ __forceinline__ C quotient_by_sum(C a, C sum) {
    if constexpr (sizeof(T) == 4) {
        C inverse = ptx::reciprocal_approx(sum), quotient = a * inverse;
        return ::fma(inverse, ::fma(-quotient, sum, a), quotient);
    } else return over_sum<T>(a, sum);
}

// log S for S in [1, 2^31], float32 to 0.95 of the last place: S = 2^e (1 + f), |f| <= 1/3, and a polynomial in f
//   (least relative error). The library's has six instructions more, for what a sum of exponentials never is.
template <class C> __device__ __forceinline__ C log_of_sum(C sum) {
    if constexpr (sizeof(C) == 8) return ::log(sum);
    else {
        int bits = int(ptx::bits_of(sum)), e = (bits - 0x3f2aaaab) & int(0xff800000u);
        C f = ptx::float_of(uint32(bits - e)) - 1.f, r = -0.129489645f;
        constexpr float TERMS[] = {0.14004758f, -0.121671543f, 0.140011609f, -0.166823059f,
                                   0.20010747f, -0.249997169f, 0.333332092f, -0.5f};
#pragma unroll
        for (int i = 0; i < 8; ++i) r = ::fma(r, f, TERMS[i]);
        return ::fma(C(e), 8.26295893e-8f, ::fma(f, f * r, f));  // 2^-23 log 2
    }
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

// Who adds up the divisor of a mean: nobody, it is `divisor`; the launch as it goes over the rows, where no
// gradient needs it; or for the gradients each block by itself, before its first row.
enum Weigh { KNOWN, WITH_ROWS, FIRST };

// What is known of a row, or of a part of it, relative to o = origin_of(maximum).
template <class C> struct Statistics {
    C maximum;
    C sum;        // sum_k exp(z_k - o)
    C dot_tau_z;  // sum_k tau_k (z_k - o) without what the label adds to tau, which Outcome adds
    C sum_tau;    // sum_k tau_k of the same tau
    int64 best;  // column of the first maximum

    static __device__ __forceinline__ Statistics none() {
        return {minus_infinity<C>(), C(0), C(0), C(0), 0x7fffffffffffffff};
    }
    // The same, relative to a maximum that is at least its own.
    __device__ __forceinline__ void move_to(C larger) {
        if (maximum != larger && maximum != minus_infinity<C>()) {
            C by = maximum - larger;
            sum *= ::exp(by);
            dot_tau_z = ::fma(sum_tau, by, dot_tau_z);
        }
        maximum = larger;
    }
};

struct First {
    template <class C> static __device__ __forceinline__ C of(C a, C b) { return a < b ? a : b; }
};

// All lanes' statistics in each of them. `spread`: dot_tau_z and sum_tau are in use. `best`: best is.
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
        own.dot_tau_z = reduce_lanes<Sum>(own.dot_tau_z, lanes);
        own.sum_tau = reduce_lanes<Sum>(own.sum_tau, lanes);
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
    a.dot_tau_z += b.dot_tau_z;
    a.sum_tau += b.sum_tau;
    return a;
}

// What a launch reads and writes. Pointers are null where a thing is not wanted or not there.
template <class T> struct SoftmaxArguments {
    using C = compute_of<T>;
    const T* logits;
    const void* labels;  // of label_bytes each: 1 unsigned, 4 or 8 signed
    const C* probabilities;
    T* delta;
    C *row_loss, *lse;
    int64* predicted;
    u8* correct;
    const C *sample_weight, *class_weight;
    Number<C> upstream, divisor;  // with sample_weight and upstream_stride: include/rows.cuh
    int64* bad_label;
    Statistics<C>* partial;  // [rows, parts]: of the forms parts and finish
    // Over all rows (include/loss_sums.cuh): the sum of the losses / divisor, the divisor, correct rows.
    C *loss, *weight_sum;
    int64* correct_rows;
    C* sums;  // [3, blocks]: of each block
    int* counter;
    int64 upstream_stride, ignore_index, rows, cols;
    int64 stride_logits, stride_delta, stride_probabilities;
    C one_minus_eps, eps_over_K;  // of label smoothing eps: 1 - eps, and eps / K for each of K columns
    C z_loss, soft_cap;           // soft_cap: 0 for none
    C factor;                     // upstream / divisor where the host knows both and no row has a weight
    int label_bytes, has_ignore_index, log_output;
    int shared_packs;  // of each thread: packs of a row in shared memory (row_packs.cuh)
    int weigh;         // Weigh: who adds up the divisor
    int empty_is_zero;
    int factor_is_known;
    int is_plain;    // labels, and of what is for single rows or classes at most an index to ignore
    int wants_best;  // the place of the largest logit
    int spread;      // every column has a part of the target, not the label's column alone

    __device__ __forceinline__ int64 label(int64 row) const {
        if (label_bytes == 8) return static_cast<const int64*>(labels)[row];
        if (label_bytes == 4) return static_cast<const int*>(labels)[row];
        return static_cast<const u8*>(labels)[row];
    }
    // An ignored row is read all the same where something of it is wanted.
    __device__ __forceinline__ bool reads_ignored() const {
        return lse != nullptr || predicted != nullptr;
    }
    __device__ __forceinline__ C capped(C z) const {
        return soft_cap == C(0) ? z : soft_capped<T>(z, soft_cap);
    }
    __device__ __forceinline__ bool reduces() const {
        return loss != nullptr || correct_rows != nullptr;
    }
};

// The divisor where each block has added it up by itself (Weigh).
template <class C> __device__ __forceinline__ C& divisor_of_block() {
    __shared__ C divisor;
    return divisor;
}

// What a row has of its own, the same in all threads of the row's group. The constructor requests it;
// `resolve` is the first to wait for it.
template <class C> struct Target {
    int64 label;      // -1 where no element is the label's: probabilities, ignored, bad
    C label_tau;      // what the label adds to tau of its column: (1 - eps) w
    C factor;         // gradient = factor * d loss / d logits; before `resolve` what it is divided by
    C weight;         // before `resolve`: of the row, times upstream
    bool ignored, bad;

    template <class T> __device__ __forceinline__ Target(const SoftmaxArguments<T>& p, int64 row)
        : label(-1), label_tau(0), factor(1), weight(1), ignored(false), bad(false) {
        if (row >= p.rows) return;
        if (p.labels != nullptr) label = p.label(row);
        if (p.delta == nullptr || p.factor_is_known) return;
        weight = row_weight(p, row) * p.upstream.get(row * p.upstream_stride);
        factor = p.weigh == FIRST ? divisor_of_block<C>() : p.divisor.get();
    }
    template <class T>
    __device__ __forceinline__ bool is_ignored(const SoftmaxArguments<T>& p) const {
        return p.has_ignore_index && p.labels != nullptr && label == p.ignore_index;
    }
    template <class T>
    __device__ __forceinline__ void resolve(const SoftmaxArguments<T>& p, int64 row) {
        if (p.factor_is_known) {
            factor = p.factor;
        } else {
            if (p.empty_is_zero && factor == C(0)) factor = C(1);
            factor = weight / factor;
        }
        if (row >= p.rows || p.labels == nullptr) return;
        ignored = is_ignored(p);
        bad = !ignored && (label < 0 || label >= p.cols);
        if (bad) factor = not_a_number<C>();
        if (ignored || bad) label = -1;
        if (label < 0) return;
        label_tau = p.one_minus_eps;
        if (p.class_weight != nullptr) label_tau *= p.class_weight[label];
    }
};

// What a row counts in the mean.
template <class T>
__device__ __forceinline__ compute_of<T> row_counts(const SoftmaxArguments<T>& p, int64 row) {
    using C = compute_of<T>;
    C weight = row_weight(p, row);
    if (p.labels == nullptr) return weight;
    int64 label = p.label(row);
    if (p.has_ignore_index && label == p.ignore_index) return C(0);
    if (label < 0 || label >= p.cols) return not_a_number<C>();
    return p.class_weight == nullptr ? weight : weight * p.class_weight[label];
}

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
    C origin;
    C factor, grad_scale;  // delta = exp(z - origin) * grad_scale - tau * factor

    // tau_unit: the factor that dot_tau_z and sum_tau still lack. The labels form counts 1 for every
    // column, so that sum_tau is an exact count, and multiplies by eps / K here.
    __device__ __forceinline__ Outcome(
        const SoftmaxArguments<T>& p, const Target<C>& target, Statistics<C> combined, C tau_unit)
        : all(combined), origin(origin_of(combined.maximum)), factor(target.factor) {
        if (p.spread) all.dot_tau_z *= tau_unit, all.sum_tau *= tau_unit;
        if (all.maximum == minus_infinity<C>()) all.sum = not_a_number<C>();  // no logit, or all -inf
        all.sum_tau += target.label_tau;
        if (p.labels == nullptr && p.probabilities == nullptr) all.sum_tau = C(1);  // softmax itself
        C weight = all.sum_tau;
        if (p.z_loss != C(0)) weight += C(2) * p.z_loss * lse();
        grad_scale = over_sum<T>(weight * factor, all.sum);
    }
    __device__ __forceinline__ C lse() const { return origin + ::log(all.sum); }

    // delta at the label, with p - 1 formed before it is rounded. z_label: its logit, capped.
    __device__ __forceinline__ T label_delta(
        const SoftmaxArguments<T>& p, const Target<C>& target, C z_label) const {
        C tau = p.eps_over_K;
        if (p.class_weight != nullptr) tau *= p.class_weight[target.label];
        C d = ::fma(exponential<T>(z_label - origin), grad_scale, -((tau + target.label_tau) * factor));
        return to_storage<T>(p.soft_cap == C(0) ? d : d * cap_slope(z_label, C(1) / p.soft_cap));
    }
    __device__ __forceinline__ C loss(
        const SoftmaxArguments<T>& p, const Target<C>& target, int64 row, C z_label) const {
        Compensated<C> terms;  // log S and z_y - m are often of one size and far above the rest
        terms.add_product(all.sum_tau, ::log(all.sum));
        if (target.label >= 0) {
            Compensated<C> from_origin;
            from_origin.add(z_label);
            from_origin.add(-origin);
            terms.add_product(-target.label_tau, from_origin.sum);
            terms.lost -= target.label_tau * from_origin.lost;
        }
        terms.add(-all.dot_tau_z);
        if (p.z_loss != C(0)) terms.add(p.z_loss * lse() * lse());
        C loss = terms.value() * row_weight(p, row);
        if (target.bad) loss = not_a_number<C>();
        return target.ignored ? C(0) : loss;
    }

    // By one thread of the row: what is stored once for it, and added to the sums over the rows.
    template <class Sums> __device__ __forceinline__ void store_row(
        const SoftmaxArguments<T>& p, const Target<C>& target, int64 row, C z_label, Sums& sums) const {
        bool known = is_finite(all.sum);  // a row with NaN has no prediction
        bool right = target.label >= 0 && known && all.best == target.label;
        if (target.bad && p.bad_label != nullptr) report_bad_label(p.bad_label, row, p.label(row));
        if (p.row_loss != nullptr || p.loss != nullptr) {
            C value = loss(p, target, row, z_label);
            if (p.row_loss != nullptr) p.row_loss[row] = value;
            if (p.loss != nullptr) sums.add_loss(value);
        }
        if (p.weigh != KNOWN) sums.add_weight(row_counts(p, row));
        if (p.correct_rows != nullptr) sums.correct += right;
        if (p.lse != nullptr) p.lse[row] = lse();
        if (p.predicted != nullptr) p.predicted[row] = known ? all.best : -1;
        if (p.correct != nullptr) p.correct[row] = right;
    }
};
