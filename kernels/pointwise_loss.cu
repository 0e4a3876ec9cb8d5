// pointwise_loss<Loss, T>: a loss that is a sum over output units, and its gradient, in one pass
//   row_loss[i] = weight_i * sum_k value(a_ik, t_ik);  delta[i, k] = scale_i * value'(a_ik, t_ik)
//   scale_i = weight_i * upstream_i / divisor (each null for 1; see include/rows.cuh)
//   correct[i] = 1 where every unit is on its target's side of 1/2: a > 0 exactly where t > 1/2
//   a, delta: T[rows, cols]; targets: compute_of<T>[rows, cols]; each with its stride between rows
//   delta may be a; delta null: loss only; correct null: not wanted
//   moves rows * cols * (2 sizeof(T) + sizeof(compute_of<T>)): reads a and targets, writes delta
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/rows.cuh"
#include "losses.cuh"

template <class Loss, class T>
__device__ __forceinline__ void pointwise_loss(
    const T* a, const compute_of<T>* targets, T* delta, compute_of<T>* row_loss, u8* correct,
    const RowScale<compute_of<T>>& scale, int64 rows, int64 cols, int64 stride_a,
    int64 stride_targets, int64 stride_delta, compute_of<T> parameter) {
    using C = compute_of<T>;
    FOR_EACH_ROW(row, rows) {
        C loss = C(0), wrong = C(0);
        if (row < rows) {
            C factor = delta == nullptr ? C(0) : scale.gradient(row);
            for (int64 k = threadIdx.x; k < cols; k += blockDim.x) {
                C x = widen(a[row * stride_a + k]), t = targets[row * stride_targets + k], d;
                loss += Loss::value_and_delta(x, t, d, parameter);
                if (delta != nullptr) delta[row * stride_delta + k] = to_storage<T>(d * factor);
                if ((x > C(0)) != (t > C(0.5))) wrong = C(1);
            }
        }
        loss = reduce_group<Sum>(loss);
        if (correct != nullptr) wrong = reduce_group<Maximum>(wrong);
        if (row < rows && threadIdx.x == 0) {
            row_loss[row] = loss * scale.weight(row);
            if (correct != nullptr) correct[row] = wrong == C(0);
        }
    }
}

#define ENTRY_(loss, T)                                                                       \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) pointwise_loss_##loss##_##T( \
        const T* a, const compute_of<T>* targets, T* delta, compute_of<T>* row_loss,          \
        u8* correct, const compute_of<T>* sample_weight, const compute_of<T>* upstream,       \
        int64 upstream_stride, const compute_of<T>* divisor, int64 rows, int64 cols,          \
        int64 stride_a, int64 stride_targets, int64 stride_delta, compute_of<T> parameter) {  \
        pointwise_loss<losses::loss, T>(a, targets, delta, row_loss, correct,                 \
                                        {sample_weight, upstream, divisor, upstream_stride},  \
                                        rows, cols, stride_a, stride_targets, stride_delta,   \
                                        parameter);                                           \
    }
#define ENTRY(loss, T) ENTRY_(loss, T)
FOR_EACH_LOSS(ENTRY)
