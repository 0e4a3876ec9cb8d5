// row_weights<L, C>: what each row counts in the mean over a batch
//   out[i] = factor * sample_weight[i] * class_weight[labels[i]], 0 where labels[i] == ignore_index
//   each array null for 1; a label outside [0, classes) counts NaN, so the mean shows it
//   labels: L[rows]; out: C[rows]. Its column sum is the `divisor` of the loss kernels
//   moves rows * (sizeof(L) + 2 sizeof(C)): reads labels and sample_weight, writes out
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"

template <class L, class C> struct RowWeightsArguments {
    const L* labels;
    const C *sample_weight, *class_weight;
    C* out;
    int64 ignore_index, classes, rows;
    C factor;
    int has_ignore_index;
};

template <class L, class C>
__device__ __forceinline__ void row_weights(const RowWeightsArguments<L, C>& a) {
    int64 step = int64(gridDim.x) * blockDim.x;
    for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < a.rows; i += step) {
        C weight = a.sample_weight == nullptr ? a.factor : a.sample_weight[i] * a.factor;
        if (a.labels != nullptr) {
            int64 label = a.labels[i];
            if (a.has_ignore_index && label == a.ignore_index) weight = C(0);
            else if (label < 0 || label >= a.classes) weight = not_a_number<C>();
            else if (a.class_weight != nullptr) weight *= a.class_weight[label];
        }
        a.out[i] = weight;
    }
}

#define ENTRY_(L, C)                                                         \
    extern "C" __global__ void __launch_bounds__(256) row_weights_##L##_##C( \
        const __grid_constant__ RowWeightsArguments<L, C> a) {               \
        row_weights<L, C>(a);                                                \
    }
#define ENTRY(L, C) ENTRY_(L, C)
#ifdef ONLY_FORMULA
FOR_EACH_COMPUTE_DTYPE(ENTRY, ONLY_FORMULA)
#else
FOR_EACH_COMPUTE_DTYPE(ENTRY, u8) FOR_EACH_COMPUTE_DTYPE(ENTRY, i32)
FOR_EACH_COMPUTE_DTYPE(ENTRY, i64)
#endif
