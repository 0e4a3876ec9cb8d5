// spread_gradient<float>: the gradient of a batch of many rows of a narrow network, by all blocks of the card
//   forward, loss, backward as resident_training.cu has them, of a share of the batch's rows in each block:
//     partial[share, i] = sum over the share's rows of d loss_n / d theta_i, loss_n with the weights of row n
//     figures[share]    = {sum of loss_n, what the rows count in the mean, correct rows, rows not ignored}
//   Parameters, the gradient's sum and the units of a tile of rows are in shared memory; the tile behind is on
//   its way while one is worked on. Units are never written to the device's memory.
//   table: uint64[WORDS] of one network; layers: int[its layers, LAYER_WORDS] (include/resident.cuh)
//   partial: float[shares, stride]; what lies between the parameters is left as it was
//   spread_gradient_tf32: products by tensor cores in TF32, which round delta before it is divided
//   The shares follow from the number of rows (gpubackprop/backends/spread_plan.py), and a block takes one: the
//   result depends on neither the card's multiprocessors nor what else it does.
//   moves the rows of the batch (x, targets, weights) and their numbers once; for each share the parameters in
//   and the gradient out. block: THREADS; grid: the shares; dynamic shared memory: as planned
//   measured: not measured on a GPU
//
// spread_sum<float>: gradient[i] = sum_share partial[share, i] / divisor in the order of the shares, and
//   loss = sum_share of losses / divisor. divisor: a.divisor, or if that is 0 what the rows count, times
//   a.units; where it is 0, gradient and loss are NaN, or 0 with empty_is_zero; the gradient is 0 too if all
//   rows are ignored
//   moves shares * (count + 4) + count floats; block: SUM_THREADS, a thread to a parameter
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/resident_layers.cuh"
#include "include/resident_loss.cuh"

using namespace resident;

constexpr int FIGURES = 4, SUM_THREADS = 64, SUM_AHEAD = 8;

template <class T> struct SpreadGradientArguments {
    const uint64* table;
    const int* layers;
    T *partial, *figures;
    int64 stride;
};

// A tile of the block's share: rows [first, first + count) of the batch, none behind the last.
struct Part {
    enum { NOTHING, SHARE, BATCH };
    int first, count, begins;  // begins: BATCH in the share's first tile, whose gradient is the first
    int end, begin;            // the row behind the share; begin: as of Tile, 0

    __device__ __forceinline__ void to_share(const Network& net, int share) {
        int rows = net.number(BATCH_ROWS), shares = net.number(SHARES);
        first = int(int64(rows) * share / shares), end = int(int64(rows) * (share + 1) / shares);
        begin = 0, begins = BATCH;
        to_rows(net);
    }
    __device__ __forceinline__ void to_rows(const Network& net) {
        int most = net.number(TILE_ROWS);
        count = end - first < most ? end - first : most;
    }
    __device__ __forceinline__ void advance(const Network& net) {
        first += count, begins = NOTHING;
        to_rows(net);
    }
};

// Written by thread 0 alone.
struct Walk {
    Part tile, behind;  // that is worked on, and the next one
    int stage;          // where the inputs of `tile` are

    __device__ __forceinline__ void start(const Network& net) {
        tile.to_share(net, int(blockIdx.x));
        behind = tile;
        behind.advance(net);
        stage = 0;
    }
    __device__ __forceinline__ void advance(const Network& net) {
        tile = behind;
        behind.advance(net);
        stage = 1 - stage;
    }
};

// What a thread's rows count in the mean, and how many are not ignored.
struct Counts {
    Compensated<float> weights;
    int rows = 0;
};

// With neither weights nor labels that matter the host knows it.
__device__ __forceinline__ void weigh(const Network& net, const Part& tile, int stage, Counts& counts) {
    SoftmaxArguments<float> p = loss_arguments(net, tile, stage, 1.f);
    if (p.sample_weight == nullptr && p.class_weight == nullptr && !p.has_ignore_index) return;
#pragma unroll 1
    for (int n = thread(); n < tile.count; n += THREADS) {
        counts.weights.add(row_counts(p, n));
        counts.rows += !p.has_ignore_index || p.labels == nullptr || p.label(n) != p.ignore_index;
    }
}

__device__ __forceinline__ void leave(
    const SpreadGradientArguments<float>& a, const Network& net, const BatchSums& sums,
    const Counts& counts) {
    float* to = a.partial + int64(blockIdx.x) * a.stride;
    const float* gradient = net.memory + net.number(COUNT);
    for_each_parameter(net, [&](int i, int at) { global::store_element(to + i, gradient[at]); });
    float loss = block_total(sums.loss, sums.lost), weight = block_total(counts.weights);
    int correct = block_sum(sums.correct), rows = block_sum(counts.rows);
    if (threadIdx.x != 0) return;
    float* figures = a.figures + int64(blockIdx.x) * FIGURES;
    figures[0] = loss, figures[1] = weight;
    figures[2] = float(correct), figures[3] = float(rows);  // exact: a share has below 2^24 rows
}

template <class Product>
__device__ __forceinline__ void spread_gradient(const SpreadGradientArguments<float>& a) {
    extern __shared__ __align__(16) float memory[];
    __shared__ uint64 words[WORDS];
    __shared__ Walk walk;
    for (int i = thread(); i < WORDS; i += THREADS) words[i] = a.table[i];
    __syncthreads();
    Network net{words, reinterpret_cast<const Layer*>(memory), memory};
    for (int i = thread(); i < net.number(LAYERS) * LAYER_WORDS; i += THREADS)
        reinterpret_cast<int*>(memory)[i] = a.layers[i];
    if (threadIdx.x == 0) walk.start(net);
    __syncthreads();
    request_tile(net, walk.tile, 0);
    const float* parameters = net.address<const float>(PARAMETERS);
    for_each_parameter(net, [&](int i, int at) { memory[at] = global::load_element(parameters + i); });
    const uint64* random = net.address<const uint64>(RANDOM);
    BatchSums sums;
    Counts counts;
#pragma unroll 1
    do {
        ptx::copy_async_wait<0>();
        __syncthreads();
        int stage = walk.stage;
        if (walk.behind.count > 0) request_tile(net, walk.behind, 1 - stage);
        forward<Product>(net, walk.tile, stage, random);
        loss_of_rows(net, walk.tile, stage, 1.f, sums);
        weigh(net, walk.tile, stage, counts);
        backward<Product>(net, walk.tile, stage);
        if (threadIdx.x == 0) walk.advance(net);
        __syncthreads();
    } while (walk.tile.count > 0);
    leave(a, net, sums, counts);
}

template <class T> struct SpreadSumArguments {
    const T *partial, *figures;
    T *gradient, *loss;
    int64* correct_rows;  // null: not wanted
    int64 shares, count, stride;
    T divisor, units;
    int empty_is_zero;
};

// The sum of the shares' n-th figure; in thread 0.
__device__ __forceinline__ float sum_of_figures(const SpreadSumArguments<float>& a, int n) {
    Compensated<float> own;
    for (int64 share = threadIdx.x; share < a.shares; share += SUM_THREADS)
        own.add(global::load_element(a.figures + share * FIGURES + n));
    return block_total(own);
}

__device__ __forceinline__ void spread_sum(const SpreadSumArguments<float>& a) {
    __shared__ float divisor;
    float counted = a.divisor, rows = 1.f;
    if (counted == 0.f) counted = sum_of_figures(a, 1) * a.units, rows = sum_of_figures(a, 3);
    bool stays = counted == 0.f && (a.empty_is_zero || rows == 0.f);
    if (threadIdx.x == 0) divisor = stays ? 1.f : counted;
    __syncthreads();
    int64 i = int64(blockIdx.x) * SUM_THREADS + threadIdx.x;
    if (i < a.count) {
        Compensated<float> sum;
        for (int64 first = 0; first < a.shares; first += SUM_AHEAD) {
            float terms[SUM_AHEAD];
#pragma unroll
            for (int n = 0; n < SUM_AHEAD; ++n)
                terms[n] = first + n < a.shares
                    ? global::load_element(a.partial + (first + n) * a.stride + i) : 0.f;
#pragma unroll
            for (int n = 0; n < SUM_AHEAD; ++n) sum.add(terms[n]);
        }
        a.gradient[i] = sum.value() / divisor;
    }
    if (blockIdx.x != 0) return;
    float loss = sum_of_figures(a, 0);
    int64 correct = 0;
    for (int64 share = threadIdx.x; share < a.shares; share += SUM_THREADS)
        correct += int64(global::load_element(a.figures + share * FIGURES + 2));
    correct = block_sum(correct);
    if (threadIdx.x != 0) return;
    *a.loss = counted != 0.f ? loss / counted : a.empty_is_zero ? 0.f : not_a_number<float>();
    if (a.correct_rows != nullptr) *a.correct_rows = correct;
}

#define GRADIENT(name, Product, T)                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name##_##T(          \
        const __grid_constant__ SpreadGradientArguments<T> a) {                   \
        spread_gradient<Product>(a);                                              \
    }
#define SUM(T)                                                                    \
    extern "C" __global__ void __launch_bounds__(SUM_THREADS) spread_sum_##T(     \
        const __grid_constant__ SpreadSumArguments<T> a) {                        \
        spread_sum(a);                                                            \
    }
#ifdef ONLY_TF32
GRADIENT(spread_gradient_tf32, Tensor, f32)
#else
GRADIENT(spread_gradient, Fma, f32)
SUM(f32)
#if !defined(ONLY_DTYPE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
GRADIENT(spread_gradient_tf32, Tensor, f32)
#endif
#endif
