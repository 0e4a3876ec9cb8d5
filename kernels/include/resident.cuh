// resident.cuh - what a network is in resident training: a row of `table`, and a `Layer` for each layer.
//   gpubackprop/backends/resident_plan.py has the same names in the same order and lays out the block's
//   dynamic shared memory: places there are counted in floats, each a multiple of four.
//   A network's batches and its flat parameters are cut into SHARES shares, whose sums are added in order. A
//   cluster of so many blocks takes a share in each, or one block all of them in turn: the bits are the same.
#pragma once
#include "last_block.cuh"
#include "vector.cuh"

namespace resident {

constexpr int THREADS = 256, WARPS = THREADS / 32;

// The number of a thread. It is computed anew wherever it is used: registers would otherwise hold a dozen
// numbers that are computed of it from the first step to the last.
__device__ __forceinline__ int thread() {
    int number = int(threadIdx.x);
    ptx::forget(number);
    return number;
}

// CASE(name) for each formula of a list that has an entry for each dtype: FOR_EACH_ACTIVATION(FORMULA_OF).
#define FORMULA_OF(name, T) FORMULA_OF_(name, T)
#define FORMULA_OF_(name, T) FORMULA_OF_##T(name)
#define FORMULA_OF_f32(name) CASE(name)
#define FORMULA_OF_f64(name)
#define FORMULA_OF_f16(name)
#define FORMULA_OF_bf16(name)

// The words of a network: addresses, then whole numbers, then floats by their bits.
enum Word {
    PARAMETERS, SLOT_0, SLOT_1, SLOT_2,       // float, as ParameterLayout lays them out
    STATE, RANDOM, TOTALS,                    // as in prepare_update.cu and accumulate.cu
    COEFFICIENT_TABLE, CLIP_NORM,             // float[steps, GIVEN] (resident_update.cuh); double
    STEP_LOSSES,                              // float[steps], or null
    X, TARGETS, SAMPLE_WEIGHT, CLASS_WEIGHT,  // targets: int64 labels or float[rows, units]; weights may be null
    ORDER,                                    // int64: numbers of rows, epoch after epoch
    STEPS, START, EPOCH_ROWS, BATCH_ROWS, DATA_ROWS, TILE_ROWS,
    UPDATE, SLOTS, CLIPS, LOSS, FIRST_LAYER, LAYERS, SHARES,
    WEIGHTS_AT, WEIGHTS_END, COUNT, SLICE, X_AT, X_STRIDE, TARGETS_AT, TARGETS_STRIDE, ROW_WEIGHTS_AT,
    HAS_LABELS, HAS_IGNORE_INDEX, IGNORE_INDEX, REDUCTION, EMPTY_IS_ZERO, COUNTS_CORRECT,
    WEIGHTS_BY_ORDER,                         // sample_weight is in the order of `order`, not of the data
    ONE_MINUS_EPS, EPS_OVER_K, Z_LOSS, SOFT_CAP, LOSS_PARAMETER,
    PROBABILITY_EPS,                          // reported losses are of probabilities within eps and 1 - eps; or 0
    WORDS
};
enum Reduction { MEAN, SUM, ELEMENTWISE_MEAN };

// A layer's numbers; `..._from` are places in the flat buffer of parameters, the rest in shared memory.
struct Layer {
    int inputs, outputs;
    int weights_from, biases_from;
    int weights, stride, biases;  // W[outputs][stride], b[outputs]
    int units, units_stride;      // [tile][units_stride]: h, of the last layer the logits; then delta
    int slopes;                   // of its own, if the slope is no function of what `units` has; else 0
    int activation;               // of activation_numbers
    uint32 threshold;             // of dropout; 0 for none
    float parameter, scale;       // of the activation; of dropout
    int reserved[2];  // 16 words
};
constexpr int LAYER_WORDS = int(sizeof(Layer)) / 4;

// A network as its block sees it: everything is in shared memory.
struct Network {
    const uint64* words;
    const Layer* layers;
    float* memory;

    __device__ __forceinline__ int number(Word word) const { return int(words[word]); }
    __device__ __forceinline__ float real(Word word) const { return ptx::float_of(uint32(words[word])); }
    template <class X> __device__ __forceinline__ X* address(Word word) const {
        return reinterpret_cast<X*>(words[word]);
    }
    __device__ __forceinline__ const Layer& last() const { return layers[number(LAYERS) - 1]; }
};

// The parameters that a block updates: `count` from `first` on, of the flat ones in shared memory. It has the
// slots of these alone.
struct Slice {
    int first, count;
};
template <int CLUSTER> __device__ __forceinline__ Slice slice_of_block(const Network& net) {
    int count = net.number(COUNT);
    if (CLUSTER == 1) return {0, count};
    int size = net.number(SLICE), first = int(ptx::cluster_rank()) * size;
    return {first, first >= count ? 0 : count - first < size ? count - first : size};
}
template <int CLUSTER> __device__ __forceinline__ float* slot_of_block(const Network& net, int slot) {
    int count = net.number(COUNT), size = CLUSTER == 1 ? count : net.number(SLICE);
    return net.memory + net.number(WEIGHTS_AT) + 2 * count + slot * size;
}

// A tile of a batch: rows [first, first + count) of the batch of step `step`, all of one share.
template <int CLUSTER> struct Tile {
    enum { NOTHING, SHARE, BATCH };
    int step, first, count;
    int begins;       // the block's part of a share or of a batch, or nothing
    int share, end;   // its number, and the row behind it
    int rows, begin;  // of the batch, and where it begins in the order

    __device__ __forceinline__ void to_batch(const Network& net, int number) {
        step = number;
        int epoch_rows = net.number(EPOCH_ROWS), batch_rows = net.number(BATCH_ROWS);
        int batches = (epoch_rows + batch_rows - 1) / batch_rows, place = net.number(START) + step;
        int epoch = place / batches, batch = place - epoch * batches;
        begin = epoch * epoch_rows + batch * batch_rows;
        int left = epoch_rows - batch * batch_rows;
        rows = left < batch_rows ? left : batch_rows;
        to_share(net, CLUSTER == 1 ? 0 : int(ptx::cluster_rank()));
        begins = BATCH;
    }
    __device__ __forceinline__ void to_share(const Network& net, int number) {
        int shares = net.number(SHARES);
        share = number, begins = SHARE;
        first = int(int64(rows) * number / shares), end = int(int64(rows) * (number + 1) / shares);
        to_rows(net);
    }
    __device__ __forceinline__ void to_rows(const Network& net) {
        int most = net.number(TILE_ROWS);
        count = end - first < most ? end - first : most;
    }
    __device__ __forceinline__ void advance(const Network& net) {
        first += count, begins = NOTHING;
        if (first < end) to_rows(net);
        else if (CLUSTER == 1 && share + 1 < net.number(SHARES)) to_share(net, share + 1);
        else to_batch(net, step + 1);
    }
};

// Number of the data's row that is the i-th of the order; one outside is moved to the nearest inside.
__device__ __forceinline__ int64 row_of_data(const Network& net, int i) {
    int64 row = global::load_element(net.address<const int64>(ORDER) + i), rows = net.number(DATA_ROWS);
    return row < 0 ? 0 : row >= rows ? rows - 1 : row;
}

// A row of `count` floats to shared memory, by a warp.
__device__ __forceinline__ void request_row(const float* from, float* to, int count) {
    int lane = thread() % 32, done = 0;
    if (aligned<float, 4>(from)) {
        done = count / 4 * 4;
        for (int i = 4 * lane; i < done; i += 128) ptx::copy_async<16>(to + i, from + i);
    }
    for (int i = done + lane; i < count; i += 32) ptx::copy_async<4>(to + i, from + i);
}

// Inputs, targets and weights of a tile's rows, as a group of asynchronous copies. A warp has every WARPS-th
// row: a lane reads the number of one of its rows, all 32 in one round trip, and copies its label and its
// weight; then the lanes copy row after row together.
template <class Tile>
__device__ __forceinline__ void request_tile(const Network& net, const Tile& tile, int stage) {
    int tile_rows = net.number(TILE_ROWS), count = tile.count, begin = tile.begin + tile.first;
    int inputs = net.layers[0].inputs, units = net.last().outputs;
    int x_stride = net.number(X_STRIDE), targets_stride = net.number(TARGETS_STRIDE);
    float* x = net.memory + net.number(X_AT) + stage * tile_rows * x_stride;
    float* targets = net.memory + net.number(TARGETS_AT) + stage * tile_rows * targets_stride;
    const float* data = net.address<const float>(X);
    bool has_labels = net.number(HAS_LABELS) != 0;
#pragma unroll 1
    for (int first = thread() / 32; first < count; first += 32 * WARPS) {
        int own = first + WARPS * (thread() % 32);
        int64 row = 0;
        if (own < count) {
            row = row_of_data(net, begin + own);
            if (has_labels)
                ptx::copy_async<8>(targets + own * targets_stride, net.address<const int64>(TARGETS) + row);
            if (net.words[SAMPLE_WEIGHT] != 0) {
                float* weight = net.memory + net.number(ROW_WEIGHTS_AT) + stage * tile_rows + own;
                int64 at = net.number(WEIGHTS_BY_ORDER) ? begin + own : row;
                ptx::copy_async<4>(weight, net.address<const float>(SAMPLE_WEIGHT) + at);
            }
        }
#pragma unroll 1
        for (int lane = 0, n = first; lane < 32 && n < count; ++lane, n += WARPS) {
            int64 its_row = __shfl_sync(0xffffffffu, row, lane);
            request_row(data + its_row * inputs, x + n * x_stride, inputs);
            if (has_labels) continue;
            request_row(
                net.address<const float>(TARGETS) + its_row * units, targets + n * targets_stride, units);
        }
    }
    ptx::copy_async_commit();
}

// Between a flat buffer of the device and its place in shared memory, where rows of W are `stride` apart.
template <class Move> __device__ __forceinline__ void for_each_parameter(const Network& net, Move move) {
    for (int l = 0; l < net.number(LAYERS); ++l) {
        const Layer layer = net.layers[l];
        for (int o = thread() / 32; o < layer.outputs; o += WARPS)
            for (int j = thread() % 32; j < layer.inputs; j += 32)
                move(layer.weights_from + o * layer.inputs + j, layer.weights + o * layer.stride + j);
        for (int o = thread(); o < layer.outputs; o += THREADS)
            move(layer.biases_from + o, layer.biases + o);
    }
}

}  // namespace resident
