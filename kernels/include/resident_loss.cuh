// resident_loss.cuh - the loss of a tile's rows in resident training: delta in the place of the logits.
//   The mathematics is that of softmax_cross_entropy.cu and pointwise_loss.cu, by their headers.
#pragma once
#include "../losses.cuh"
#include "loss_sums.cuh"
#include "resident.cuh"

namespace resident {

// The losses: softmax cross entropy, then the pointwise ones in the registry's order.
namespace loss_numbers {
#define CASE(name) name,
enum { softmax_cross_entropy, FOR_EACH_LOSS(FORMULA_OF) };
#undef CASE
}  // namespace loss_numbers

constexpr int FEW_UNITS = 32, FEW_LANES = 4;  // lanes of a row of at most FEW_UNITS; of a longer one 32

// The sums over a thread's rows of a batch, as RowSums, without the weights that are summed apart.
struct BatchSums {
    float loss = 0.f, lost = 0.f;
    int correct = 0;
    __device__ __forceinline__ void add_loss(float x) { RowSums<float>::add(loss, lost, x); }
    __device__ __forceinline__ void add_weight(float) {}
};

// The arguments of the loss kernels for the rows of a tile.
template <class Tile>
__device__ __forceinline__ SoftmaxArguments<float> loss_arguments(
    const Network& net, const Tile& tile, int stage, float divisor) {
    SoftmaxArguments<float> p{};
    int tile_rows = net.number(TILE_ROWS), targets_stride = net.number(TARGETS_STRIDE);
    float* targets = net.memory + net.number(TARGETS_AT) + stage * tile_rows * targets_stride;
    bool has_labels = net.number(HAS_LABELS) != 0;
    p.delta = net.memory + net.last().units;
    p.logits = p.delta;
    p.stride_delta = p.stride_logits = net.last().units_stride;
    p.labels = has_labels ? targets : nullptr;
    p.label_bytes = 8;
    p.probabilities = has_labels ? nullptr : targets;
    p.stride_probabilities = targets_stride;
    if (net.words[SAMPLE_WEIGHT] != 0)
        p.sample_weight = net.memory + net.number(ROW_WEIGHTS_AT) + stage * tile_rows;
    p.class_weight = net.address<const float>(CLASS_WEIGHT);
    p.correct_rows = reinterpret_cast<int64*>(p.delta);  // not written: it says that hits are wanted
    p.upstream.value = 1.f;
    p.divisor.value = divisor;
    p.rows = tile.count;
    p.cols = net.last().outputs;
    p.has_ignore_index = net.number(HAS_IGNORE_INDEX);
    p.ignore_index = int64(net.words[IGNORE_INDEX]);
    p.one_minus_eps = net.real(ONE_MINUS_EPS);
    p.eps_over_K = net.real(EPS_OVER_K);
    p.z_loss = net.real(Z_LOSS);
    p.soft_cap = net.real(SOFT_CAP);
    p.empty_is_zero = net.number(EMPTY_IS_ZERO);
    p.spread = !has_labels || p.eps_over_K != 0.f;
    p.wants_best = 1;
    return p;
}

// tau of column k, but for what the label itself adds.
__device__ __forceinline__ float tau_of(const SoftmaxArguments<float>& p, const float* probabilities, int k) {
    if (!p.spread) return 0.f;
    float tau = p.eps_over_K;
    if (probabilities != nullptr) tau = ::fma(p.one_minus_eps, probabilities[k], tau);
    return p.class_weight == nullptr ? tau : tau * p.class_weight[k];
}

// A row's loss with its weight, as scikit-learn reports it: that of a probability within eps and 1 - eps, by
// float32's eps. NaN stays.
__device__ __forceinline__ float bounded(float loss, float weight, float eps) {
    float least = weight * eps, most = weight * -::log(eps);  // -log(1 - eps) is eps in float32
    if (weight < 0.f) {
        float other = least;
        least = most, most = other;
    }
    return loss < least ? least : loss > most ? most : loss;
}

// Binary cross entropy of a target 0 or 1, likewise: p is rounded, bounded, and subtracted from 1.
__device__ __forceinline__ float bounded_binary(float a, float t, float eps) {
    float p = 1.f / (1.f + ::exp(-a)), most = 1.f - eps;
    p = p < eps ? eps : p > most ? most : p;
    return -(t * ::log(p) + (1.f - t) * ::log(1.f - p));
}

// Softmax cross entropy of a row by `lanes` lanes; all lanes of the warp come, also for a row beyond the last.
__device__ __forceinline__ void softmax_row(
    const SoftmaxArguments<float>& p, float eps, int row, int lane, int lanes, BatchSums& sums) {
    bool there = row < int(p.rows);
    float* z = p.delta + (there ? row : 0) * p.stride_delta;
    const float* probabilities =
        p.probabilities == nullptr ? nullptr : p.probabilities + (there ? row : 0) * p.stride_probabilities;
    int cols = there ? int(p.cols) : 0;
    Target<float> target(p, row);
    target.resolve(p, row);
    Statistics<float> own = Statistics<float>::none();
    for (int k = lane; k < (target.ignored ? 0 : cols); k += lanes) {
        float value = p.capped(z[k]);
        if (value > own.maximum) own.maximum = value, own.best = k;
    }
    Exponential<float> x(own.maximum);
    for (int k = lane; k < (target.ignored ? 0 : cols); k += lanes) {
        float value = p.capped(z[k]), tau = tau_of(p, probabilities, k);
        own.sum += x.of(value);
        if (p.spread) own.dot_tau_z = ::fma(tau, value - x.origin, own.dot_tau_z);
        own.sum_tau += tau;
    }
    own = combine_lanes(own, lanes, p.spread, true);
    Outcome<float> outcome(p, target, own, 1.f);
    bool owns = there && lane == 0;
    float z_label = owns && target.label >= 0 ? p.capped(z[target.label]) : 0.f;
    __syncwarp();  // lane 0 has read its label's logit, which may be another lane's
    float grad_scale = x.to(outcome.origin) * outcome.grad_scale;
    for (int k = lane; k < cols; k += lanes) {
        float value = p.capped(z[k]);
        float d = ::fma(x.of(value), grad_scale, -tau_of(p, probabilities, k) * outcome.factor);
        if (p.soft_cap != 0.f) d *= cap_slope(value, 1.f / p.soft_cap);
        z[k] = target.ignored ? 0.f : d;
    }
    __syncwarp();  // and writes the gradient there
    if (!owns) return;
    if (target.label >= 0) z[target.label] = outcome.label_delta(p, target, z_label);
    outcome.store_row(p, target, row, z_label, sums);
    float loss = outcome.loss(p, target, row, z_label);
    sums.add_loss(eps == 0.f || target.ignored ? loss : bounded(loss, row_weight(p, row), eps));
}

// A pointwise loss of a row, likewise.
template <class Loss, bool BINARY>
__device__ __forceinline__ void pointwise_row(
    const SoftmaxArguments<float>& p, float parameter, float eps, int row, int lane, int lanes,
    BatchSums& sums) {
    bool there = row < int(p.rows);
    float* a = p.delta + (there ? row : 0) * p.stride_delta;
    const float* t = p.probabilities + (there ? row : 0) * p.stride_probabilities;
    float weight = there ? row_weight(p, row) : 0.f, divisor = p.divisor.value;
    if (p.empty_is_zero && divisor == 0.f) divisor = 1.f;
    float scale = weight / divisor, loss = 0.f, wrong = 0.f;
    for (int k = lane; k < (there ? int(p.cols) : 0); k += lanes) {
        float d;
        float value = Loss::value_and_delta(a[k], t[k], d, parameter);
        loss += BINARY && eps != 0.f ? bounded_binary(a[k], t[k], eps) : value;
        if ((a[k] > 0.f) != (t[k] > 0.5f)) wrong = 1.f;
        a[k] = d * scale;
    }
    loss = reduce_lanes<Sum>(loss, lanes);
    wrong = reduce_lanes<Maximum>(wrong, lanes);
    if (!there || lane != 0) return;
    sums.add_loss(loss * weight);
    sums.correct += wrong == 0.f;
}

// The losses of the tile's rows into the thread's sums, and delta_L in the place of the logits.
template <class Tile>
__device__ __forceinline__ void loss_of_rows(
    const Network& net, const Tile& tile, int stage, float divisor, BatchSums& sums) {
    SoftmaxArguments<float> p = loss_arguments(net, tile, stage, divisor);
    int lanes = p.cols <= FEW_UNITS ? FEW_LANES : 32, lane = thread() % lanes;
    int loss = net.number(LOSS);
    float parameter = net.real(LOSS_PARAMETER), eps = net.real(PROBABILITY_EPS);
#pragma unroll 1
    for (int first = 0; first < tile.count; first += THREADS / lanes) {
        int row = first + thread() / lanes;
        if (loss == loss_numbers::softmax_cross_entropy) softmax_row(p, eps, row, lane, lanes, sums);
#define CASE(name)                                                                    \
    if (loss == loss_numbers::name)                                                   \
        pointwise_row<losses::name, int(loss_numbers::name) == int(loss_numbers::binary_cross_entropy)>( \
            p, parameter, eps, row, lane, lanes, sums);
        FOR_EACH_LOSS(FORMULA_OF)
#undef CASE
    }
    __syncthreads();
}

// What the sum of a batch's losses is divided by, the batch of a whole cluster; every thread calls and has it.
template <class Tile>
__device__ __forceinline__ float divisor_of_batch(const Network& net, const Tile& tile) {
    int reduction = net.number(REDUCTION);
    if (reduction == SUM) return 1.f;
    float units = reduction == ELEMENTWISE_MEAN ? float(net.last().outputs) : 1.f;
    bool has_labels = net.number(HAS_LABELS) != 0;
    bool by_label = has_labels && (net.number(HAS_IGNORE_INDEX) || net.words[CLASS_WEIGHT] != 0);
    if (net.words[SAMPLE_WEIGHT] == 0 && !by_label) return float(tile.rows) * units;
    SoftmaxArguments<float> p{};  // of the data, not of a tile
    p.labels = has_labels ? net.address<const void>(TARGETS) : nullptr;
    p.label_bytes = 8;
    p.class_weight = net.address<const float>(CLASS_WEIGHT);
    p.has_ignore_index = net.number(HAS_IGNORE_INDEX);
    p.ignore_index = int64(net.words[IGNORE_INDEX]);
    p.cols = net.last().outputs;
    const float* weights = net.address<const float>(SAMPLE_WEIGHT);
    Compensated<float> own;
#pragma unroll 1
    for (int i = thread(); i < tile.rows; i += THREADS) {
        int64 row = row_of_data(net, tile.begin + i), at = net.number(WEIGHTS_BY_ORDER) ? tile.begin + i : row;
        float counts = row_counts(p, row);
        own.add(weights == nullptr ? counts : counts * weights[at]);
    }
    float all = block_total(own);
    __shared__ float divisor;
    if (threadIdx.x == 0) divisor = all * units;
    __syncthreads();
    return divisor;
}

}  // namespace resident
