// softmax_cross_entropy<Target, T>: cross entropy of softmax(logits) and its gradient
//   tau: targets with class weights w and smoothing eps;  T = sum_k tau_k, m = max_k z_k,
//   S = sum_k exp(z_k - m), lse = m + log S;  scale_i as in include/rows.cuh
//   row_loss[i] = weight_i * (T log S - sum_k tau_k (z_k - m) + z_loss * lse^2)
//   delta[i, k] = scale_i * ((T + 2 z_loss lse) exp(z_k - m) / S - tau_k)
//     never lse - z_y, which cancels under a large common offset; formed in compute_of<T>
//   targets: i32 or i64 labels [rows],  tau_k = w_k ((1 - eps) [k = y] + eps / K)
//            prob: compute_of<T>[rows, cols], tau_k = w_k ((1 - eps) t_k + eps / K); need not sum to 1
//   a row with label ignore_index: loss, delta, correct 0. A label outside [0, K): loss and delta of
//   the row NaN, and bad_label = {row, label} if its first word was -1; never an access outside the row
//   lse, correct [rows]: null if not wanted; correct: z_y is the row's largest
//   logits, delta: T[rows, cols]; delta may be logits (every thread reads and writes its own columns
//   only), or null: loss only
//   moves 4 * rows * cols * sizeof(T): reads logits three times (once from memory where the row stays
//   in cache), writes delta. Simple on purpose: the family of fast kernels is the next issue
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/rows.cuh"

template <class C> struct Options {
    const C* class_weight;  // [cols], or null
    C label_smoothing, z_loss;
    int64 ignore_index;
    int has_ignore_index;
    int64* bad_label;
};

template <class L> struct Labels {
    const L* labels;
    int64 stride;
    template <class C> __device__ __forceinline__ C target(int64, int64 k, int64 label) const {
        return k == label ? C(1) : C(0);
    }
    __device__ __forceinline__ int64 label(int64 row) const { return labels[row]; }
    static constexpr bool INDEX = true;
};

template <class C> struct Probabilities {
    const C* targets;
    int64 stride;
    template <class> __device__ __forceinline__ C target(int64 row, int64 k, int64) const {
        return targets[row * stride + k];
    }
    __device__ __forceinline__ int64 label(int64) const { return -1; }
    static constexpr bool INDEX = false;
};

template <class Target, class T>
__device__ __forceinline__ void softmax_cross_entropy(
    const T* logits, Target targets, T* delta, compute_of<T>* row_loss, compute_of<T>* lse_out,
    u8* correct, const Options<compute_of<T>>& options, const RowScale<compute_of<T>>& scale,
    int64 rows, int64 cols, int64 stride_logits, int64 stride_delta) {
    using C = compute_of<T>;
    C keep = C(1) - options.label_smoothing, uniform = options.label_smoothing / C(cols);
    FOR_EACH_ROW(row, rows) {
        int64 stop = row < rows ? cols : 0;
        const T* z = logits + row * stride_logits;
        int64 label = row < rows ? targets.label(row) : -1;
        bool ignored = Target::INDEX && options.has_ignore_index && label == options.ignore_index;
        bool bad = Target::INDEX && !ignored && (label < 0 || label >= cols);

        C m = minus_infinity<C>();
        for (int64 k = threadIdx.x; k < stop; k += blockDim.x) m = Maximum::of<C>(widen(z[k]), m);
        m = reduce_group<Maximum>(m);

        // A class of target 0 is left out: 0 * -inf would be NaN where only z_y counts.
        C sum = C(0), picked = C(0), total = C(0);
        int hit = 0;
        for (int64 k = threadIdx.x; k < stop; k += blockDim.x) {
            C shifted = C(widen(z[k])) - m;
            C tau = keep * targets.template target<C>(row, k, label) + uniform;
            if (options.class_weight != nullptr) tau *= options.class_weight[k];
            sum += ::exp(shifted);
            total += tau;
            if (!Target::INDEX || k == label || uniform != C(0)) picked += tau * shifted;
            if (k == label && shifted == C(0)) hit = 1;
        }
        sum = reduce_group<Sum>(sum);
        picked = reduce_group<Sum>(picked);
        total = reduce_group<Sum>(total);
        if (correct != nullptr) hit = reduce_group<Sum>(hit);

        C log_sum = ::log(sum), lse = m + log_sum;
        C factor = delta == nullptr ? C(0) : scale.gradient(row < rows ? row : 0);
        C share = (total + C(2) * options.z_loss * lse) * factor / sum;
        if (options.z_loss == C(0)) share = total * factor / sum;  // lse may be infinite
        for (int64 k = threadIdx.x; delta != nullptr && k < stop; k += blockDim.x) {
            C tau = keep * targets.template target<C>(row, k, label) + uniform;
            if (options.class_weight != nullptr) tau *= options.class_weight[k];
            C d = ::exp(C(widen(z[k])) - m) * share - tau * factor;
            d = ignored ? C(0) : bad ? not_a_number<C>() : d;
            delta[row * stride_delta + k] = narrow<T>(d);
        }
        if (row >= rows || threadIdx.x != 0) continue;
        C loss = total * log_sum - picked;
        if (options.z_loss != C(0)) loss += options.z_loss * lse * lse;
        row_loss[row] = ignored ? C(0) : bad ? not_a_number<C>() : loss * scale.weight(row);
        if (lse_out != nullptr) lse_out[row] = lse;
        if (correct != nullptr) correct[row] = hit != 0 && !ignored && !bad;
        if (bad && options.bad_label != nullptr) {
            uint64* first = reinterpret_cast<uint64*>(options.bad_label);
            if (atomicCAS(first, ~uint64(0), uint64(row)) == ~uint64(0)) options.bad_label[1] = label;
        }
    }
}

#define ENTRY_(target, T, TARGETS, POINTER)                                                         \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) softmax_cross_entropy_##target##_##T( \
        const T* logits, const POINTER* targets, int64 stride_targets, T* delta,                    \
        compute_of<T>* row_loss, compute_of<T>* lse, u8* correct,                                   \
        const compute_of<T>* sample_weight, const compute_of<T>* upstream, int64 upstream_stride,   \
        const compute_of<T>* divisor, const compute_of<T>* class_weight,                            \
        compute_of<T> label_smoothing, compute_of<T> z_loss, int64 ignore_index,                    \
        int has_ignore_index, int64* bad_label, int64 rows, int64 cols, int64 stride_logits,        \
        int64 stride_delta) {                                                                       \
        softmax_cross_entropy<TARGETS, T>(                                                          \
            logits, TARGETS{targets, stride_targets}, delta, row_loss, lse, correct,                \
            {class_weight, label_smoothing, z_loss, ignore_index, has_ignore_index, bad_label},     \
            {sample_weight, upstream, divisor, upstream_stride}, rows, cols, stride_logits,         \
            stride_delta);                                                                          \
    }
#define ENTRY_i32(T) ENTRY_(i32, T, Labels<i32>, i32)
#define ENTRY_i64(T) ENTRY_(i64, T, Labels<i64>, i64)
#define ENTRY_prob(T) ENTRY_(prob, T, Probabilities<compute_of<T>>, compute_of<T>)
#define JOIN(target) ENTRY_##target
#define ENTRY(target, T) NAMED(target)(T)
#define NAMED(target) JOIN(target)
#ifdef ONLY_FORMULA
FOR_EACH_DTYPE(ENTRY, ONLY_FORMULA)
#else
FOR_EACH_DTYPE(ENTRY, i32) FOR_EACH_DTYPE(ENTRY, i64) FOR_EACH_DTYPE(ENTRY, prob)
#endif
