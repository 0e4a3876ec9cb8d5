// pointwise_loss<Loss, T>: a loss that is a sum over output units, and its gradient, in one pass
//   row_loss[i] = weight_i * sum_k value(a_ik, t_ik);  delta[i, k] = scale_i * value'(a_ik, t_ik)
//   scale_i = weight_i * upstream_i / divisor (include/rows.cuh)
//   correct[i] = 1 where every unit is on its target's side of 1/2: a > 0 exactly where t > 1/2
//   a, delta: T[rows, cols]; targets: compute_of<T>[rows, cols]; each with its stride between rows
//   delta may be a; delta null: loss only; correct null: not wanted
//   moves rows * cols * (2 sizeof(T) + sizeof(compute_of<T>)): reads a and targets, writes delta
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/rows.cuh"
#include "losses.cuh"

template <class T> struct PointwiseLossArguments {
    const T* a;
    const compute_of<T>* targets;
    T* delta;
    compute_of<T>* row_loss;
    u8* correct;
    const compute_of<T>* sample_weight;
    Number<compute_of<T>> upstream, divisor;
    int64 upstream_stride, rows, cols, stride_a, stride_targets, stride_delta;
    compute_of<T> parameter;  // of the loss
};

template <class Loss, class T>
__device__ __forceinline__ void pointwise_loss(const PointwiseLossArguments<T>& p) {
    using C = compute_of<T>;
    FOR_EACH_ROW(row, p.rows) {
        C loss = C(0), wrong = C(0);
        if (row < p.rows) {
            C scale = p.delta == nullptr ? C(0) : gradient_scale(p, row);
            for (int64 k = threadIdx.x; k < p.cols; k += blockDim.x) {
                C x = widen(p.a[row * p.stride_a + k]), t = p.targets[row * p.stride_targets + k], d;
                loss += Loss::value_and_delta(x, t, d, p.parameter);
                if (p.delta != nullptr) p.delta[row * p.stride_delta + k] = to_storage<T>(d * scale);
                if ((x > C(0)) != (t > C(0.5))) wrong = C(1);
            }
        }
        loss = reduce_group<Sum>(loss);
        if (p.correct != nullptr) wrong = reduce_group<Maximum>(wrong);
        if (row < p.rows && threadIdx.x == 0) {
            p.row_loss[row] = loss * row_weight(p, row);
            if (p.correct != nullptr) p.correct[row] = wrong == C(0);
        }
    }
}

#define ENTRY_(loss, T)                                                                       \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS, 2) pointwise_loss_##loss##_##T( \
        const __grid_constant__ PointwiseLossArguments<T> p) {                                \
        pointwise_loss<losses::loss, T>(p);                                                   \
    }
#define ENTRY(loss, T) ENTRY_(loss, T)
FOR_EACH_LOSS(ENTRY)
