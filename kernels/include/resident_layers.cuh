// resident_layers.cuh - the layers of resident training, forward and backward, on a tile of rows.
//   `Product` is Fma or Tensor. Phases end with a barrier of the block. What the gradient is multiplied by on its way through an
//   activation (its slope, times what dropout multiplied by) is kept from the forward pass where it is no
//   function of h alone; else it takes the place of h, once h has been used.
#pragma once
#include "../activations.cuh"
#include "dropout.cuh"
#include "resident_tensor.cuh"

namespace resident {

// A layer has the number of its activation in the registry's order.
namespace activation_numbers {
#define CASE(name) name,
enum { FOR_EACH_ACTIVATION(FORMULA_OF) };
#undef CASE
}  // namespace activation_numbers

// h = g(a) over the tile, and the slope where it is kept; or the slope in the place of h (BACKWARD).
template <bool BACKWARD>
__device__ __forceinline__ void activate(const Network& net, const Layer& layer, int rows) {
    float *units = net.memory + layer.units, *slopes = net.memory + layer.slopes, k = layer.parameter;
    bool keeps = layer.slopes != 0;
    int outputs = layer.outputs, stride = layer.units_stride, activation = layer.activation;
#pragma unroll 1
    for (int i = thread(); i < rows * outputs; i += THREADS) {
        int n = i / outputs, at = n * stride + i - n * outputs;
        float value = units[at], slope = 0.f;
        switch (activation) {
#define CASE(name)                                                                                      \
    case activation_numbers::name: {                                                                    \
        using Act = activations::name;                                                                   \
        float saved = value;                                                                             \
        if (!BACKWARD) value = Act::value(value, k);                                                     \
        if (BACKWARD || keeps) slope = Act::slope(Act::SAVES_A ? saved : value, k);                      \
        break;                                                                                           \
    }
            FOR_EACH_ACTIVATION(FORMULA_OF)
#undef CASE
        }
        units[at] = BACKWARD ? slope : value;
        if (!BACKWARD && keeps) slopes[at] = slope;
    }
}

// Dropout of h and of the slopes, four neighbouring units of a row at a time.
template <class Tile>
__device__ __forceinline__ void drop(const Network& net, int l, const Tile& tile, const uint64* random) {
    const Layer& layer = net.layers[l];
    struct {
        const uint64* dropout_state;
        int64 dropout_layer, dropout_threshold, dropout_row, cols;
        float dropout_scale;
    } fields{random, l, int64(layer.threshold), tile.first, layer.outputs, layer.scale};
    const Dropout<float> dropout(fields);
    int quads = (layer.outputs + 3) / 4;
#pragma unroll 1
    for (int i = thread(); i < tile.count * quads; i += THREADS) {
        int n = i / quads, j = 4 * (i - n * quads), at = n * layer.units_stride + j;
        float factor[4];
        dropout.draw(int64(n) * layer.outputs + j, factor);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (j + e >= layer.outputs) continue;
            float *h = net.memory + layer.units + at + e, *slope = net.memory + layer.slopes + at + e;
            *h = dropped<Dropout<float>>(*h, factor[e]);
            *slope = dropped<Dropout<float>>(*slope, factor[e]);
        }
    }
}

__device__ __forceinline__ bool stops(int activation) {
    switch (activation) {
#define CASE(name) case activation_numbers::name: return activations::name::STOPS;
        FOR_EACH_ACTIVATION(FORMULA_OF)
#undef CASE
    }
    return false;
}

// What enters layer l: the units below, or x of this stage.
__device__ __forceinline__ Matrix inputs_of(const Network& net, int l, int stage) {
    int at, stride;
    if (l > 0) {
        at = net.layers[l - 1].units, stride = net.layers[l - 1].units_stride;
    } else {
        stride = net.number(X_STRIDE), at = net.number(X_AT) + stage * net.number(TILE_ROWS) * stride;
    }
    return {net.memory + at, stride};  // in one expression: the compiler then knows that it is shared memory
}
__device__ __forceinline__ Matrix units_of(const Network& net, const Layer& layer) {
    return {net.memory + layer.units, layer.units_stride};
}

// a_l = h_{l-1} W_l^T + b_l, h_l = g_l(a_l) for all layers; the last has no activation.
template <class Product, class Tile>
__device__ __forceinline__ void forward(
    const Network& net, const Tile& tile, int stage, const uint64* random) {
    int layers = net.number(LAYERS);
#pragma unroll 1
    for (int l = 0; l < layers; ++l) {
        const Layer& layer = net.layers[l];
        const float* bias = net.memory + layer.biases;
        float* a = net.memory + layer.units;
        int stride = layer.units_stride;
        Matrix W{net.memory + layer.weights, layer.stride};
        Product::template product<true, true>(
            inputs_of(net, l, stage), W, tile.count, layer.outputs, layer.inputs,
            [&](int n, int o, Pack<float, 1> sum) { a[n * stride + o] = sum.v[0] + bias[o]; });
        __syncthreads();
        if (l + 1 == layers || (layer.activation == 0 && layer.slopes == 0)) continue;
        activate<false>(net, layer, tile.count);
        __syncthreads();
        if (layer.threshold == 0) continue;
        drop(net, l, tile, random);
        __syncthreads();
    }
}

// Where the product of a gradient goes; a block's first tile of a batch replaces what was there.
struct GradientStore {
    float* gradient;
    int stride;
    bool adds;
    template <int E> __device__ __forceinline__ void operator()(int o, int j, Pack<float, E> sums) const {
        float* to = gradient + o * stride + j;
        if (adds) sums = sum_of(shared_pack<E>(to), sums);
        store_shared_pack(to, sums);
    }
};

// Where delta W goes, times the slopes; they may lie in the same place.
struct DeltaStore {
    float* delta;
    const float* slopes;
    int stride;
    bool has_slopes, stopped;  // a slope of 0 stops what is not finite, too
    template <int E> __device__ __forceinline__ void operator()(int n, int j, Pack<float, E> sums) const {
        int at = n * stride + j;
        if (has_slopes) {
            Pack<float, E> slope = shared_pack<E>(slopes + at);
#pragma unroll
            for (int e = 0; e < E; ++e)
                sums.v[e] = stopped && slope.v[e] == 0.f ? 0.f : sums.v[e] * slope.v[e];
        }
        store_shared_pack(delta + at, sums);
    }
};

// grad_W_l = delta_l^T h_{l-1}, grad_b_l = sum_n delta_l[n]; 0 where the block has no row of the batch.
template <class Product, class Tile>
__device__ __forceinline__ void parameter_gradients(const Network& net, int l, const Tile& tile, int stage) {
    const Layer& layer = net.layers[l];
    int gradient = net.number(COUNT);  // from a parameter to its gradient
    bool first = tile.begins == Tile::BATCH;
    Matrix delta = units_of(net, layer);
    float* grad_W = net.memory + layer.weights + gradient;
    float* grad_b = net.memory + layer.biases + gradient;
    Product::template product<false, false>(
        delta, inputs_of(net, l, stage), layer.outputs, layer.inputs, tile.count,
        GradientStore{grad_W, layer.stride, !first});
    column_sums(delta, tile.count, layer.outputs, [&](int o, float sum) {
        grad_b[o] = first ? sum : grad_b[o] + sum;
    });
}

// delta_{l-1} = (delta_l W_l) * slope, in the place of the slopes; then they change places with h.
template <class Product, class Tile>
__device__ __forceinline__ void unit_gradients(const Network& net, int l, const Tile& tile) {
    const Layer &layer = net.layers[l], &below = net.layers[l - 1];
    const float* slopes = net.memory + (below.slopes != 0 ? below.slopes : below.units);
    float* delta = net.memory + below.units;
    bool is_one = below.activation == 0 && below.slopes == 0;
    bool stopped = below.threshold != 0 || stops(below.activation);
    Matrix W{net.memory + layer.weights, layer.stride};
    Product::template product<true, false>(
        units_of(net, layer), W, tile.count, layer.inputs, layer.outputs,
        DeltaStore{delta, slopes, below.units_stride, !is_one, stopped});
}

// The gradients of all parameters from delta_L, which stands in the place of the logits.
template <class Product, class Tile>
__device__ __forceinline__ void backward(const Network& net, const Tile& tile, int stage) {
#pragma unroll 1
    for (int l = net.number(LAYERS) - 1; l >= 0; --l) {
        parameter_gradients<Product>(net, l, tile, stage);
        __syncthreads();
        if (l == 0) break;
        const Layer& below = net.layers[l - 1];
        if (below.slopes == 0 && below.activation != 0) {
            activate<true>(net, below, tile.count);
            __syncthreads();
        }
        unit_gradients<Product>(net, l, tile);
        __syncthreads();
    }
}

}  // namespace resident
