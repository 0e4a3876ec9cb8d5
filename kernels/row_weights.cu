// row_weights<L, C>: what the rows count in the mean over a batch
//   total = sum_i factor * sample_weight[i] * class_weight[labels[i]], without rows of label ignore_index
//   each array null for 1; a label outside [0, classes) counts NaN, so the mean shows it
//   labels: L[rows]. It is the `divisor` of the loss kernels, for gradients that need it before they start.
//   Each block leaves its sum, the last block adds them (include/last_block.cuh)
//   moves rows * (sizeof(L) + sizeof(C)): reads labels and sample_weight
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/last_block.cuh"

template <class L, class C> struct RowWeightsArguments {
    const L* labels;
    const C *sample_weight, *class_weight;
    C *total, *sums;  // sums: [blocks]
    int* counter;
    int64 ignore_index, classes, rows;
    C factor;
    int has_ignore_index;
};

template <class L, class C>
__device__ __forceinline__ C row_weight(const RowWeightsArguments<L, C>& a, int64 i) {
    C weight = a.sample_weight == nullptr ? a.factor : a.sample_weight[i] * a.factor;
    if (a.labels == nullptr) return weight;
    int64 label = a.labels[i];
    if (a.has_ignore_index && label == a.ignore_index) return C(0);
    if (label < 0 || label >= a.classes) return not_a_number<C>();
    return a.class_weight == nullptr ? weight : weight * a.class_weight[label];
}

template <class L, class C>
__device__ __forceinline__ void row_weights(const RowWeightsArguments<L, C>& a) {
    constexpr int UNROLL = 4;  // loads in flight
    int64 step = int64(gridDim.x) * blockDim.x;
    Compensated<C> own;
    for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < a.rows; i += UNROLL * step) {
        C weights[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u)
            weights[u] = i + u * step < a.rows ? row_weight(a, i + u * step) : C(0);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) own.add(weights[u]);
    }
    C sum = block_total(own);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
    if (!is_last_block(a.counter)) return;
    Compensated<C> all;
    for (int i = int(threadIdx.x); i < int(gridDim.x); i += int(blockDim.x)) all.add(a.sums[i]);
    sum = block_total(all);
    if (threadIdx.x == 0) *a.total = sum;
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
