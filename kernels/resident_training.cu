// resident_training<float>: many small networks, each trained by one block, any number of steps in a launch
//   for each step of a network: the batch's rows are gathered from the data set, then
//     forward     a_l = h_{l-1} W_l^T + b_l,  h_l = g_l(a_l), with dropout
//     loss        L(a_L, targets), delta_L
//     backward    grad_W_l = delta_l^T h_{l-1},  grad_b_l = sum_n delta_l[n],  delta_{l-1} = (delta_l W_l) g'
//     update      theta <- theta - step(grad), with L2 penalty and clipping
//   Parameters, gradients and optimizer slots are in shared memory from the first step to the last. A batch is
//   taken in tiles of rows; the tile behind is on its way while one is worked on.
//   table: uint64[networks, WORDS], layers: int[layers of all networks, LAYER_WORDS] (include/resident.cuh)
//   A block's result depends on its own network alone: sums have a fixed order, which the plan of the network
//   decides (gpubackprop/backends/resident_plan.py); nothing is atomic.
//   moves in a step the rows of the batch (x, targets, weights), their numbers and ten coefficients: 0 bytes of
//   parameters. In a launch parameters and slots once in and once out; the loss of each step, if it is wanted.
//   block: THREADS; grid: the networks; dynamic shared memory: as much as the largest of them needs
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
__device__ __forceinline__ void bring(const Network& net, Progress& progress) {
    float* p = net.memory + net.number(WEIGHTS_AT);
    int count = net.number(COUNT), slots = net.number(SLOTS);
    for (int i = thread(); i < (2 + slots) * count; i += THREADS) p[i] = 0.f;
    __syncthreads();
    for (int n = -1; n < slots; ++n) {
        const float* from = net.address<const float>(Word(SLOT_0 + n));
        float* to = net.memory + (n < 0 ? 0 : (2 + n) * count);
        for_each_parameter(net, [&](int i, int at) { to[at] = global::load_element(from + i); });
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

__device__ __forceinline__ void take_back(const Network& net, const Progress& progress) {
    int count = net.number(COUNT);
    for (int n = -1; n < net.number(SLOTS); ++n) {
        float* to = net.address<float>(Word(SLOT_0 + n));
        const float* from = net.memory + (n < 0 ? 0 : (2 + n) * count);
        for_each_parameter(net, [&](int i, int at) { global::store_element(to + i, from[at]); });
    }
    if (threadIdx.x != 0) return;
    double* state = net.address<double>(STATE);
    state[0] = progress.done, state[1] = progress.skipped;
    for (int i = 0; i < 6; ++i) net.address<double>(TOTALS)[i] = progress.totals[i];
    if (net.words[RANDOM] != 0) net.address<uint64>(RANDOM)[1] = progress.random[1];
}

// All tiles of the batch that begins at progress.tile, which is then the first of the next batch.
__device__ __forceinline__ void one_step(const Network& net, Progress& progress) {
    const Tile &tile = progress.tile, &behind = progress.behind;
    prepare_step(net, progress);
    BatchSums sums;
#pragma unroll 1
    do {
        ptx::copy_async_wait<0>();
        __syncthreads();
        int stage = progress.stage;
        if (behind.step < net.number(STEPS)) request_tile(net, behind, 1 - stage);
        forward(net, tile, stage, progress.random);
        loss_of_rows(net, tile, stage, progress.divisor, sums);
        backward(net, tile, stage);
        if (threadIdx.x == 0) progress.advance(net);
        __syncthreads();
    } while (tile.first != 0);
    float loss = block_total(sums.loss, sums.lost);
    int correct = block_sum(sums.correct);
    finish_step(net, progress, loss, correct);
    __syncthreads();
}

__device__ __forceinline__ void resident_training(const ResidentTrainingArguments<float>& a) {
    extern __shared__ __align__(16) float memory[];
    __shared__ uint64 words[WORDS];
    __shared__ Progress progress;
    for (int i = thread(); i < WORDS; i += THREADS) words[i] = a.table[uint64(blockIdx.x) * WORDS + i];
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
    while (progress.tile.step < net.number(STEPS)) one_step(net, progress);
    take_back(net, progress);
}

#define ENTRY_(formula, T)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) resident_training_##T(    \
        const __grid_constant__ ResidentTrainingArguments<T> a) {                      \
        resident_training(a);                                                          \
    }
#define ENTRY(formula, T) ENTRY_(formula, T)
ENTRY(, f32)
