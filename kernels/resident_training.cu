// resident_training<Cluster, float>: many small networks, each trained by one block or by a cluster, any number
//   of steps in a launch
//   for each step of a network: the batch's rows are gathered from the data set, then
//     forward     a_l = h_{l-1} W_l^T + b_l,  h_l = g_l(a_l), with dropout
//     loss        L(a_L, targets), delta_L
//     backward    grad_W_l = delta_l^T h_{l-1},  grad_b_l = sum_n delta_l[n],  delta_{l-1} = (delta_l W_l) g'
//     update      theta <- theta - step(grad), with L2 penalty and clipping
//   Parameters, gradients and optimizer slots are in shared memory from the first step to the last. A batch is
//   taken in tiles of rows; the tile behind is on its way while one is worked on.
//   forms  (none)    a block to a network
//          clusterN  N blocks (sm_90 and later). Each has all parameters, and takes a share of the batch's rows.
//                    Then each sums a slice of the gradient over the blocks, updates it with its slots, which
//                    no other block has, and writes the parameters to all. Two barriers of the cluster a
//                    step, three with clipping
//          tf32      products by tensor cores in TF32 (sm_80 and later): include/resident_tensor.cuh
//   table: uint64[networks, WORDS], layers: int[layers of all networks, LAYER_WORDS] (include/resident.cuh)
//   A network's result depends on it alone: sums have a fixed order, which its plan decides
//   (gpubackprop/backends/resident_plan.py); nothing is atomic. The shares are the plan's: where one block
//   takes all of them in turn, it comes to the same bits.
//   moves in a step the rows of the batch (x, targets, weights), their numbers and ten coefficients: 0 bytes of
//   parameters. In a launch parameters and slots once in and once out; the loss of each step, if it is wanted.
//   block: THREADS; grid: the networks, times N; dynamic shared memory: as much as the largest of them needs
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/resident_layers.cuh"
#include "include/resident_loss.cuh"
#include "include/resident_update.cuh"

using namespace resident;

template <class T> struct ResidentTrainingArguments {
    const uint64* table;
    const int* layers;
};

// Parameters and slots to shared memory; the gaps between rows and all gradients are 0.
template <int CLUSTER>
__device__ __forceinline__ void bring(const Network& net, Progress<CLUSTER>& progress) {
    float* p = net.memory + net.number(WEIGHTS_AT);
    int slots = net.number(SLOTS), end = int(slot_of_block<CLUSTER>(net, slots) - p);
    for (int i = thread(); i < end; i += THREADS) p[i] = 0.f;
    __syncthreads();
    Slice slice = slice_of_block<CLUSTER>(net);
    for (int n = -1; n < slots; ++n) {
        const float* from = net.address<const float>(Word(SLOT_0 + n));
        int first = n < 0 ? 0 : slice.first, count = n < 0 ? net.number(COUNT) : slice.count;
        float* to = n < 0 ? p : slot_of_block<CLUSTER>(net, n);
        for_each_parameter(net, [&](int i, int at) {
            int j = at - net.number(WEIGHTS_AT) - first;
            if (j >= 0 && j < count) to[j] = global::load_element(from + i);
        });
    }
    if (threadIdx.x != 0) return;
    const double* state = net.address<const double>(STATE);
    progress.done = state[0], progress.skipped = state[1];
    for (int i = 0; i < 6; ++i) progress.totals[i] = net.address<const double>(TOTALS)[i];
    const uint64* random = net.address<const uint64>(RANDOM);
    progress.random[0] = random == nullptr ? 0 : random[0];
    progress.random[1] = random == nullptr ? 0 : random[1];
    progress.tile.to_batch(net, 0);
    progress.behind = progress.tile;
    progress.behind.advance(net);
    progress.stage = 0;
}

// Each block its slice.
template <int CLUSTER>
__device__ __forceinline__ void take_back(const Network& net, const Progress<CLUSTER>& progress) {
    Slice slice = slice_of_block<CLUSTER>(net);
    const float* p = net.memory + net.number(WEIGHTS_AT) + slice.first;
    for (int n = -1; n < net.number(SLOTS); ++n) {
        float* to = net.address<float>(Word(SLOT_0 + n));
        const float* from = n < 0 ? p : slot_of_block<CLUSTER>(net, n);
        for_each_parameter(net, [&](int i, int at) {
            int j = at - net.number(WEIGHTS_AT) - slice.first;
            if (j >= 0 && j < slice.count) global::store_element(to + i, from[j]);
        });
    }
    if (threadIdx.x != 0 || !is_first_block<CLUSTER>()) return;
    double* state = net.address<double>(STATE);
    state[0] = progress.done, state[1] = progress.skipped;
    for (int i = 0; i < 6; ++i) net.address<double>(TOTALS)[i] = progress.totals[i];
    if (net.words[RANDOM] != 0) net.address<uint64>(RANDOM)[1] = progress.random[1];
}

// The block's tiles of the batch that begins at progress.tile, which is then the first of the next batch.
template <int CLUSTER, class Product>
__device__ __forceinline__ void one_step(const Network& net, Progress<CLUSTER>& progress) {
    using Rows = Tile<CLUSTER>;
    const Rows &tile = progress.tile, &behind = progress.behind;
    prepare_step(net, progress);
    BatchSums sums;
#pragma unroll 1
    do {
        ptx::copy_async_wait<0>();
        __syncthreads();
        int stage = progress.stage;
        if (behind.step < net.number(STEPS)) request_tile(net, behind, 1 - stage);
        forward<Product>(net, tile, stage, progress.random);
        loss_of_rows(net, tile, stage, progress.divisor, sums);
        backward<Product>(net, tile, stage);
        if (threadIdx.x == 0) progress.advance(net);
        __syncthreads();
        if (tile.begins == Rows::NOTHING) continue;
        float loss = block_total(sums.loss, sums.lost);
        int correct = block_sum(sums.correct);
        if (threadIdx.x == 0) progress.loss += loss, progress.correct += correct;
        sums = BatchSums();
    } while (tile.begins != Rows::BATCH);
    finish_step(net, progress);
    barrier_of_network<CLUSTER>();
}

template <int CLUSTER, class Product>
__device__ __forceinline__ void resident_training(const ResidentTrainingArguments<float>& a) {
    extern __shared__ __align__(16) float memory[];
    __shared__ uint64 words[WORDS];
    __shared__ Progress<CLUSTER> progress;
    for (int i = thread(); i < WORDS; i += THREADS) words[i] = a.table[uint64(blockIdx.x / CLUSTER) * WORDS + i];
    __syncthreads();
    Network net{words, reinterpret_cast<const Layer*>(memory), memory};
    const int* layers = a.layers + int64(net.number(FIRST_LAYER)) * LAYER_WORDS;
    for (int i = thread(); i < net.number(LAYERS) * LAYER_WORDS; i += THREADS)
        reinterpret_cast<int*>(memory)[i] = layers[i];
    __syncthreads();
    bring(net, progress);
    __syncthreads();
    if (net.number(STEPS) > 0) request_tile(net, progress.tile, 0);
#pragma unroll 1
    while (progress.tile.step < net.number(STEPS)) one_step<CLUSTER, Product>(net, progress);
    take_back(net, progress);
}

#define ENTRY_(name, CLUSTER, Product, BOUND, T)                               \
    extern "C" __global__ void BOUND __launch_bounds__(THREADS, 2) name##_##T( \
        const __grid_constant__ ResidentTrainingArguments<T> a) {              \
        resident_training<CLUSTER, Product>(a);                                \
    }
#define CLUSTERED_(n, T) ENTRY_(resident_training_cluster##n, n, Fma, CLUSTER_DIMS(n), T)
#define CLUSTERED(n, T) CLUSTERED_(n, T)
#define TENSOR_CLUSTERED_(n, T) ENTRY_(resident_training_tf32_cluster##n, n, Tensor, CLUSTER_DIMS(n), T)
#define TENSOR_CLUSTERED(n, T) TENSOR_CLUSTERED_(n, T)
#if defined(ONLY_TF32) && defined(ONLY_CLUSTER)
TENSOR_CLUSTERED(ONLY_CLUSTER, f32)
#elif defined(ONLY_TF32)
ENTRY_(resident_training_tf32, 1, Tensor, , f32)
#elif defined(ONLY_CLUSTER)
CLUSTERED(ONLY_CLUSTER, f32)
#else
ENTRY_(resident_training, 1, Fma, , f32)
#ifndef ONLY_DTYPE
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ENTRY_(resident_training_tf32, 1, Tensor, , f32)
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
CLUSTERED(2, f32) CLUSTERED(4, f32) CLUSTERED(8, f32)
TENSOR_CLUSTERED(2, f32) TENSOR_CLUSTERED(4, f32) TENSOR_CLUSTERED(8, f32)
#endif
#endif
#endif
