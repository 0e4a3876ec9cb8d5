// resident_update.cuh - the update of a network's parameters in shared memory, as prepare_update.cu and
//   update.cu compute it: every parameter by some thread.
#pragma once
#include "../updates.cuh"
#include "last_block.cuh"
#include "resident_loss.cuh"

namespace resident {

// A network has the number of its update in the registry's order.
namespace update_numbers {
#define CASE(name) name,
enum { FOR_EACH_UPDATE(CASE) };
#undef CASE
}  // namespace update_numbers

using updates::COEFFICIENTS;
// Of a step: the formula's coefficients, the decay and the penalty, from the host, which knows them all
// before. (After an update that is skipped the number in a bias correction is one too high; such a
// training is ended.)
constexpr int GIVEN = updates::L2 + 1;

// What a block keeps of its network between steps; written by thread 0 alone, but for c.
struct Progress {
    double done, skipped;  // updates
    double totals[6];      // accumulate.cu
    uint64 random[2];      // {seed, updates done}
    float c[COEFFICIENTS];
    float divisor;         // of the batch's losses
    int step, rows;        // its number, and how many rows it has
    Tile tile, behind;     // that is worked on, and the next one
    int stage;             // where the inputs of `tile` are

    __device__ __forceinline__ void advance(const Network& net) {
        tile = behind;
        behind.advance(net);
        stage = 1 - stage;
    }
};

// What is known of a step before it is done: its numbers, and its coefficients but for the clipping.
__device__ __forceinline__ void prepare_step(const Network& net, Progress& progress) {
    const Tile& tile = progress.tile;
    float divisor = divisor_of_batch(net, tile);
    int i = thread();
    if (i == 0) progress.divisor = divisor, progress.step = tile.step, progress.rows = tile.rows;
    if (i >= COEFFICIENTS) return;
    const float* given = net.address<const float>(COEFFICIENT_TABLE) + int64(tile.step) * GIVEN;
    progress.c[i] = i < GIVEN ? global::load_element(given + i) : 1.f;
}

// {sum of squares of the weights, of the gradient with its penalty, whether that is not finite}, in thread 0.
struct Norms { float weights, gradient; bool bad; };

__device__ __forceinline__ Norms norms(const Network& net, float l2, bool clips) {
    const float* p = net.memory + net.number(WEIGHTS_AT);
    int count = net.number(COUNT), penalized = l2 == 0.f ? 0 : net.number(WEIGHTS_END);
    Compensated<float> weights, gradient;
    bool bad = false;
#pragma unroll 1
    for (int i = thread(); i < count; i += THREADS) {
        float x = p[i];
        if (i < penalized) weights.add(x * x);
        if (!clips) continue;
        float y = p[count + i];
        if (i < penalized) y += x * l2;
        gradient.add(y * y);
        bad |= !is_finite(y);
    }
    Norms all;
    all.weights = block_total(weights);
    all.gradient = block_total(gradient);
    all.bad = __syncthreads_or(bad) != 0;
    return all;
}

template <class Rule> __device__ __forceinline__ void update(const Network& net, const float* shared_c) {
    float c[COEFFICIENTS];
#pragma unroll
    for (int i = 0; i < COEFFICIENTS; ++i) c[i] = shared_c[i];
    float* p = net.memory + net.number(WEIGHTS_AT);
    int count = net.number(COUNT), penalized = c[updates::L2] == 0.f ? 0 : net.number(WEIGHTS_END);
#pragma unroll 1
    for (int i = thread(); i < count; i += THREADS) {
        float x = p[i], y = p[count + i], state[updates::MOST_SLOTS] = {};
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) state[n] = p[(2 + n) * count + i];
        if (i < penalized) y += x * c[updates::L2];
        y *= c[updates::GRADIENT_FACTOR];
        if (Rule::DECOUPLED) x *= c[updates::DECAY];
        else if (c[updates::DECAY] != 0.f) y += x * c[updates::DECAY];  // 0 * inf would be NaN
        p[i] = Rule::apply(x, y, state, c);
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) p[(2 + n) * count + i] = state[n];
    }
}

// One step's figures into the totals, as accumulate.cu does, by thread 0.
__device__ __forceinline__ void add_to_totals(
    const Network& net, Progress& progress, float loss, float penalty, int correct) {
    double *totals = progress.totals, rows = double(progress.rows);
    totals[0] += double(loss) * rows;
    totals[1] += 0.5 * double(penalty) * rows;
    if (net.number(COUNTS_CORRECT)) totals[2] += double(correct);
    totals[3] += rows;
    if (!is_finite(loss) && totals[5] < 0.0) totals[5] = totals[4];
    totals[4] += 1.0;
    if (net.words[STEP_LOSSES] != 0) net.address<float>(STEP_LOSSES)[progress.step] = loss;
}

// The end of a step: clipping, the figures, the update. Every thread calls, behind a barrier.
__device__ __forceinline__ void finish_step(
    const Network& net, Progress& progress, float loss, int correct) {
    float l2 = progress.c[updates::L2];
    bool clips = net.number(CLIPS) != 0;
    Norms sums{};
    if (l2 != 0.f || clips) sums = norms(net, l2, clips);
    if (threadIdx.x == 0) {
        float divisor = progress.divisor, rows = float(progress.rows);
        bool summed = net.number(REDUCTION) == SUM;
        float value = divisor != 0.f ? loss / divisor : net.number(EMPTY_IS_ZERO) ? 0.f : not_a_number<float>();
        if (summed) value /= rows;
        float penalty = sums.weights * (summed ? l2 / rows : l2);
        add_to_totals(net, progress, value, penalty, correct);
        if (clips) {
            double factor = *net.address<const double>(CLIP_NORM) / (::sqrt(double(sums.gradient)) + 1e-6);
            progress.c[updates::GRADIENT_FACTOR] = float(factor < 1.0 ? factor : 1.0);
            progress.c[updates::PROCEED] = sums.bad ? 0.f : 1.f;
        }
        (sums.bad ? progress.skipped : progress.done) += 1.0;
        if (!sums.bad) progress.random[1] += 1;
    }
    __syncthreads();
    if (progress.c[updates::PROCEED] == 0.f) return;
    switch (net.number(UPDATE)) {
#define CASE(name) case update_numbers::name: update<updates::name>(net, progress.c); break;
        FOR_EACH_UPDATE(CASE)
#undef CASE
    }
}

}  // namespace resident
