// row_weights<L, C>: what each row counts in the mean over a batch
//   out[i] = factor * sample_weight[i] * class_weight[labels[i]], 0 where labels[i] == ignore_index
//   each array null for 1; a label outside [0, classes) counts NaN, so the mean shows it
//   labels: L[rows]; out: C[rows]. Its column sum is the `divisor` of the loss kernels
//   moves rows * (sizeof(L) + 2 sizeof(C)): reads labels and sample_weight, writes out
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/types.cuh"

template <class L, class C>
__device__ __forceinline__ void row_weights(
    const L* labels, const C* sample_weight, const C* class_weight, int64 ignore_index,
    int has_ignore_index, C factor, int64 classes, C* out, int64 rows) {
    int64 step = int64(gridDim.x) * blockDim.x;
    for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < rows; i += step) {
        C weight = sample_weight == nullptr ? factor : sample_weight[i] * factor;
        if (labels != nullptr) {
            int64 label = labels[i];
            if (has_ignore_index && label == ignore_index) weight = C(0);
            else if (label < 0 || label >= classes) weight = not_a_number<C>();
            else if (class_weight != nullptr) weight *= class_weight[label];
        }
        out[i] = weight;
    }
}

#define ENTRY_(L, C)                                                                           \
    extern "C" __global__ void __launch_bounds__(256) row_weights_##L##_##C(                   \
        const L* labels, const C* sample_weight, const C* class_weight, int64 ignore_index,    \
        int has_ignore_index, C factor, int64 classes, C* out, int64 rows) {                   \
        row_weights<L, C>(labels, sample_weight, class_weight, ignore_index, has_ignore_index, \
                          factor, classes, out, rows);                                         \
    }
#define ENTRY(L, C) ENTRY_(L, C)
#ifdef ONLY_FORMULA
FOR_EACH_COMPUTE_DTYPE(ENTRY, ONLY_FORMULA)
#else
FOR_EACH_COMPUTE_DTYPE(ENTRY, u8) FOR_EACH_COMPUTE_DTYPE(ENTRY, i32)
FOR_EACH_COMPUTE_DTYPE(ENTRY, i64)
#endif
