// resident_layers.cuh - the layers of resident training, forward and backward, on a tile of rows.
//   `Product` is Fma or Tensor. Phases end with a barrier of the block. A product applies the activation, or its
//   slope, to elements in registers before it stores them; and the gradient's also sums delta for the biases.
//   Where the slope is no function of h alone (it is one of a, or h was dropped), a pass over the units behind the
//   product computes h and the slope, times what dropout multiplied by, and keeps both.
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

// h = g(a) and the slope over the tile, both times dropout's factor; four neighbouring units of a row at a time.
// Where the slope is kept, that is: else the products do it (UnitStore, DeltaStore).
template <class Tile>
__device__ __forceinline__ void activate(const Network& net, int l, const Tile& tile, const uint64* random) {
    const Layer& layer = net.layers[l];
    int outputs = layer.outputs, stride = layer.units_stride, activation = layer.activation;
    float k = layer.parameter;
    bool drops = layer.threshold != 0;
    struct {
        const uint64* dropout_state;
        int64 dropout_layer, dropout_threshold, dropout_row, cols;
        float dropout_scale;
    } fields{drops ? random : net.words, l, int64(layer.threshold), tile.first, outputs, layer.scale};
    const Dropout<float> dropout(fields);
    int quads = (outputs + 3) / 4, all = tile.count * quads;
#pragma unroll 1
    for (int i = thread(); i < all; i += THREADS) {
        int n = i / quads, j = 4 * (i - n * quads), at = n * stride + j;
        float *units = net.memory + layer.units + at, *slopes = net.memory + layer.slopes + at;
        Pack<float, 4> values = shared_pack<4>(units), kept{};
#pragma unroll 1
        for (int e = 0; e < 4; ++e) {  // what comes next to the first place: so each formula is there once
            float a = values.v[0], h = a, slope = 1.f;
            switch (activation) {
#define CASE(name)                                                                \
    case activation_numbers::name: {                                              \
        using Act = activations::name;                                            \
        h = Act::value(a, k), slope = Act::slope(Act::SAVES_A ? a : h, k);        \
        break;                                                                    \
    }
                FOR_EACH_ACTIVATION(FORMULA_OF)
#undef CASE
            }
#pragma unroll
            for (int f = 1; f < 4; ++f) values.v[f - 1] = values.v[f], kept.v[f - 1] = kept.v[f];
            values.v[3] = h, kept.v[3] = slope;
        }
        if (drops) {
            float factor[4];
            dropout.draw(int64(n) * outputs + j, factor);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                values.v[e] = dropped<Dropout<float>>(values.v[e], factor[e]);
                kept.v[e] = dropped<Dropout<float>>(kept.v[e], factor[e]);
            }
        }
        store_shared_pack(units, values);
        store_shared_pack(slopes, kept);
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

// a to g(a), and h to the slope, where that is a function of h.
template <class Act, int COUNT> __device__ __forceinline__ void to_values(float (&x)[COUNT], float k) {
    if constexpr (Act::SAVES_A) return;
#pragma unroll
    for (int e = 0; e < COUNT; ++e) x[e] = Act::value(x[e], k);
}
template <class Act, int COUNT> __device__ __forceinline__ void to_slopes(float (&x)[COUNT], float k) {
    if constexpr (Act::SAVES_A || !Act::READS_SAVED) return;
#pragma unroll
    for (int e = 0; e < COUNT; ++e) x[e] = Act::slope(x[e], k);
}

// h = g(a + b) where the slope is a function of h; else `activation` is the identity, and `activate` comes behind.
struct UnitStore : Destination {
    const float* biases;
    int activation;
    float parameter;

    __device__ __forceinline__ float of_column(int o) const { return biases[o]; }
    template <int COUNT>
    __device__ __forceinline__ void finish(
        float (&own)[COUNT], const float (&bias)[COUNT], const float (&)[COUNT]) const {
#pragma unroll
        for (int e = 0; e < COUNT; ++e) own[e] += bias[e];
        switch (activation) {
#define CASE(name) case activation_numbers::name: to_values<activations::name>(own, parameter); break;
            FOR_EACH_ACTIVATION(FORMULA_OF)
#undef CASE
        }
    }
};

// Where the product of a gradient goes, and the sum of delta beside it; `from` is there where they add to what a
// tile before has left.
struct GradientStore : Destination {
    static constexpr bool SUMS_A = true;
    float* biases;

    template <int COUNT>
    __device__ __forceinline__ void finish(
        float (&own)[COUNT], const float (&)[COUNT], const float (&before)[COUNT]) const {
        if (from == nullptr) return;
#pragma unroll
        for (int e = 0; e < COUNT; ++e) own[e] = before[e] + own[e];
    }
    __device__ __forceinline__ void row_sum(int o, float sum) const {
        biases[o] = from == nullptr ? sum : biases[o] + sum;
    }
};

// Where delta W goes, times the slopes, which `from` has, or h (then the place is the same), or nothing.
struct DeltaStore : Destination {
    int activation;  // whose slopes are functions of h; the identity where they are kept
    float parameter;
    bool stopped;    // a slope of 0 stops what is not finite, too

    template <int COUNT>
    __device__ __forceinline__ void finish(
        float (&own)[COUNT], const float (&)[COUNT], float (&slope)[COUNT]) const {
        if (from == nullptr) return;
        switch (activation) {
#define CASE(name) case activation_numbers::name: to_slopes<activations::name>(slope, parameter); break;
            FOR_EACH_ACTIVATION(FORMULA_OF)
#undef CASE
        }
#pragma unroll
        for (int e = 0; e < COUNT; ++e) own[e] = stopped && slope[e] == 0.f ? 0.f : own[e] * slope[e];
    }
};

// a_l = h_{l-1} W_l^T + b_l, h_l = g_l(a_l) for all layers; the last has no activation.
template <class Product, class Tile>
__device__ __forceinline__ void forward(
    const Network& net, const Tile& tile, int stage, const uint64* random) {
    int layers = net.number(LAYERS);
#pragma unroll 1
    for (int l = 0; l < layers; ++l) {
        const Layer& layer = net.layers[l];
        bool kept = layer.slopes != 0;
        Matrix W{net.memory + layer.weights, layer.stride};
        Product::template product<true, true>(
            inputs_of(net, l, stage), W, tile.count, layer.outputs, layer.inputs,
            UnitStore{
                {net.memory + layer.units, nullptr, layer.units_stride}, net.memory + layer.biases,
                kept ? activation_numbers::identity : layer.activation, layer.parameter});
        __syncthreads();
        if (!kept) continue;
        activate(net, l, tile, random);
        __syncthreads();
    }
}

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
        GradientStore{{grad_W, first ? nullptr : grad_W, layer.stride}, grad_b});
}

// delta_{l-1} = (delta_l W_l) * slope, in the place of h.
template <class Product, class Tile>
__device__ __forceinline__ void unit_gradients(const Network& net, int l, const Tile& tile) {
    const Layer &layer = net.layers[l], &below = net.layers[l - 1];
    bool kept = below.slopes != 0, is_one = below.activation == 0 && !kept;
    float *units = net.memory + below.units, *slopes = net.memory + below.slopes;
    Matrix W{net.memory + layer.weights, layer.stride};
    Product::template product<true, false>(
        units_of(net, layer), W, tile.count, layer.inputs, layer.outputs,
        DeltaStore{
            {units, is_one ? nullptr : kept ? slopes : units, below.units_stride},
            kept ? activation_numbers::identity : below.activation, below.parameter,
            below.threshold != 0 || stops(below.activation)});
}

// The gradients of all parameters from delta_L, which stands in the place of the logits.
template <class Product, class Tile>
__device__ __forceinline__ void backward(const Network& net, const Tile& tile, int stage) {
#pragma unroll 1
    for (int l = net.number(LAYERS) - 1; l >= 0; --l) {
        parameter_gradients<Product>(net, l, tile, stage);
        __syncthreads();
        if (l == 0) break;
        unit_gradients<Product>(net, l, tile);
        __syncthreads();
    }
}

}  // namespace resident
