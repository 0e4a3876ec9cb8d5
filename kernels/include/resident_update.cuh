// resident_update.cuh - the update of a network's parameters in shared memory, as prepare_update.cu and
//   update.cu compute it: every parameter by some thread.
#pragma once
#include "../updates.cuh"
#include "last_block.cuh"
#include "resident_loss.cuh"
#include "resident_product.cuh"

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

// What a block keeps of its network between steps; written by thread 0 alone, but for c. All blocks of a
// cluster come to the same; only the first writes it to the device.
template <int CLUSTER> struct Progress {
    double done, skipped;  // updates
    double totals[6];      // accumulate.cu
    uint64 random[2];      // {seed, updates done}
    float c[COEFFICIENTS];
    float divisor;         // of the batch's losses
    int step, rows;        // its number, and how many rows it has
    Tile<CLUSTER> tile, behind;  // that is worked on, and the next one
    int stage;             // where the inputs of `tile` are
    float loss;            // of the block's shares of the batch, as all below, which other blocks read
    int correct, bad;      // rows; whether a gradient is not finite
    float weights, gradient;  // squares of the block's slice

    __device__ __forceinline__ void advance(const Network& net) {
        tile = behind;
        behind.advance(net);
        stage = 1 - stage;
    }
};

template <int CLUSTER> __device__ __forceinline__ bool is_first_block() {
    return CLUSTER == 1 || ptx::cluster_rank() == 0;
}
template <int CLUSTER> __device__ __forceinline__ void barrier_of_network() {
    if (CLUSTER == 1) __syncthreads();
    else ptx::cluster_sync();
}

// The sum over the blocks of a network, in their order, of what each has at `own`.
template <int CLUSTER, class X> __device__ __forceinline__ X over_blocks(X* own) {
    if (CLUSTER == 1) return *own;
    X all[CLUSTER], sum = X(0);
#pragma unroll
    for (int rank = 0; rank < CLUSTER; ++rank) all[rank] = *ptx::shared_of_rank(own, uint32(rank));
#pragma unroll
    for (int rank = 0; rank < CLUSTER; ++rank) sum += all[rank];
    return sum;
}

// What is known of a step before it is done: its numbers, and its coefficients but for the clipping.
template <int CLUSTER>
__device__ __forceinline__ void prepare_step(const Network& net, Progress<CLUSTER>& progress) {
    const Tile<CLUSTER>& tile = progress.tile;
    float divisor = divisor_of_batch(net, tile);
    int i = thread();
    if (i == 0) {
        progress.divisor = divisor, progress.step = tile.step, progress.rows = tile.rows;
        progress.loss = 0.f, progress.correct = 0;
    }
    if (i >= COEFFICIENTS) return;
    const float* given = net.address<const float>(COEFFICIENT_TABLE) + int64(tile.step) * GIVEN;
    progress.c[i] = i < GIVEN ? global::load_element(given + i) : 1.f;
}

// The sum of value(i)^2 over the parameters before `end`, slice by slice: over the block's, or over all in one
// block; in thread 0.
template <int CLUSTER, class Value>
__device__ __forceinline__ float squares(const Network& net, int end, Value value) {
    int size = net.number(SLICE), begin = CLUSTER == 1 ? 0 : slice_of_block<CLUSTER>(net).first;
    float sum = 0.f;
#pragma unroll 1
    for (; begin < end; begin += size) {
        int behind = end - begin < size ? end : begin + size;
        Compensated<float> own;
#pragma unroll 1
        for (int i = begin + thread(); i < behind; i += THREADS) {
            float x = value(i);
            own.add(x * x);
        }
        sum += block_total(own);
        if (CLUSTER > 1) break;
    }
    return sum;
}

// The squares of the weights that have a penalty, into progress; they change no more before the update.
template <int CLUSTER>
__device__ __forceinline__ void square_weights(const Network& net, Progress<CLUSTER>& progress) {
    const float* p = net.memory + net.number(WEIGHTS_AT);
    float sum = squares<CLUSTER>(net, net.number(WEIGHTS_END), [&](int i) { return p[i]; });
    if (threadIdx.x == 0) progress.weights = sum;
}

// The squares of the gradient with its penalty, likewise.
template <int CLUSTER>
__device__ __forceinline__ void square_gradient(const Network& net, Progress<CLUSTER>& progress) {
    const float *p = net.memory + net.number(WEIGHTS_AT), l2 = progress.c[updates::L2];
    int count = net.number(COUNT), penalized = l2 == 0.f ? 0 : net.number(WEIGHTS_END);
    bool bad = false;
    float sum = squares<CLUSTER>(net, count, [&](int i) {
        float y = p[count + i];
        if (i < penalized) y += p[i] * l2;
        bad |= !is_finite(y);
        return y;
    });
    int any = __syncthreads_or(bad);
    if (threadIdx.x == 0) progress.gradient = sum, progress.bad = any;
}

// The gradient of the block's slice, of all shares, in the place of its own: behind a barrier of the cluster.
template <int CLUSTER> __device__ __forceinline__ void sum_gradients(const Network& net) {
    Slice slice = slice_of_block<CLUSTER>(net);
    float* own = net.memory + net.number(WEIGHTS_AT) + net.number(COUNT) + slice.first;
#pragma unroll 1
    for (int i = 4 * thread(); i < slice.count; i += 4 * THREADS) {
        Pack<float, 4> all[CLUSTER];
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank)
            all[rank] = shared_pack<4>(ptx::shared_of_rank(own, uint32(rank)) + i);
#pragma unroll
        for (int rank = 1; rank < CLUSTER; ++rank) all[0] = sum_of(all[0], all[rank]);
        store_shared_pack(own + i, all[0]);
    }
}

// The parameters of the block's slice, into every block of its cluster.
template <int CLUSTER, class Rule>
__device__ __forceinline__ void update(const Network& net, const float* shared_c) {
    float c[COEFFICIENTS];
#pragma unroll
    for (int i = 0; i < COEFFICIENTS; ++i) c[i] = shared_c[i];
    Slice slice = slice_of_block<CLUSTER>(net);
    int count = net.number(COUNT), size = CLUSTER == 1 ? count : net.number(SLICE);
    float *p = net.memory + net.number(WEIGHTS_AT) + slice.first, *slots = slot_of_block<CLUSTER>(net, 0);
    int penalized = c[updates::L2] == 0.f ? 0 : net.number(WEIGHTS_END) - slice.first;
#pragma unroll 1
    for (int i = thread(); i < slice.count; i += THREADS) {
        float x = p[i], y = p[count + i], state[updates::MOST_SLOTS] = {};
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) state[n] = slots[n * size + i];
        if (i < penalized) y += x * c[updates::L2];
        y *= c[updates::GRADIENT_FACTOR];
        if (Rule::DECOUPLED) x *= c[updates::DECAY];
        else if (c[updates::DECAY] != 0.f) y += x * c[updates::DECAY];  // 0 * inf would be NaN
        x = Rule::apply(x, y, state, c);
#pragma unroll
        for (int rank = 0; rank < CLUSTER; ++rank)
            (CLUSTER == 1 ? p : ptx::shared_of_rank(p, uint32(rank)))[i] = x;
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) slots[n * size + i] = state[n];
    }
}

// One step's figures into the totals, as accumulate.cu does, by thread 0.
template <int CLUSTER>
__device__ __forceinline__ void add_to_totals(
    const Network& net, Progress<CLUSTER>& progress, float loss, float penalty, int correct) {
    double *totals = progress.totals, rows = double(progress.rows);
    totals[0] += double(loss) * rows;
    totals[1] += 0.5 * double(penalty) * rows;
    if (net.number(COUNTS_CORRECT)) totals[2] += double(correct);
    totals[3] += rows;
    if (!is_finite(loss) && totals[5] < 0.0) totals[5] = totals[4];
    totals[4] += 1.0;
    if (net.words[STEP_LOSSES] != 0 && is_first_block<CLUSTER>())
        net.address<float>(STEP_LOSSES)[progress.step] = loss;
}

// The end of a step: the blocks' sums, clipping, the figures, the update. Every thread calls, behind a barrier
// of the block; other blocks write parameters until the next barrier of the network.
template <int CLUSTER>
__device__ __forceinline__ void finish_step(const Network& net, Progress<CLUSTER>& progress) {
    float l2 = progress.c[updates::L2];
    bool clips = net.number(CLIPS) != 0;
    if (l2 != 0.f) square_weights(net, progress);
    if (CLUSTER > 1) {
        ptx::cluster_sync();
        sum_gradients<CLUSTER>(net);
        __syncthreads();
    }
    if (clips) {
        square_gradient(net, progress);
        if (CLUSTER > 1) ptx::cluster_sync();
    }
    if (threadIdx.x == 0) {
        float divisor = progress.divisor, rows = float(progress.rows);
        float loss = over_blocks<CLUSTER>(&progress.loss);
        bool summed = net.number(REDUCTION) == SUM;
        float value = divisor != 0.f ? loss / divisor : net.number(EMPTY_IS_ZERO) ? 0.f : not_a_number<float>();
        if (summed) value /= rows;
        float penalty = l2 == 0.f ? 0.f : over_blocks<CLUSTER>(&progress.weights) * (summed ? l2 / rows : l2);
        add_to_totals(net, progress, value, penalty, over_blocks<CLUSTER>(&progress.correct));
        bool bad = clips && over_blocks<CLUSTER>(&progress.bad) != 0;
        if (clips) {
            double squares = double(over_blocks<CLUSTER>(&progress.gradient));
            double factor = *net.address<const double>(CLIP_NORM) / (::sqrt(squares) + 1e-6);
            progress.c[updates::GRADIENT_FACTOR] = float(factor < 1.0 ? factor : 1.0);
            progress.c[updates::PROCEED] = bad ? 0.f : 1.f;
        }
        (bad ? progress.skipped : progress.done) += 1.0;
        if (!bad) progress.random[1] += 1;
    }
    __syncthreads();
    if (progress.c[updates::PROCEED] == 0.f) return;
    switch (net.number(UPDATE)) {
#define CASE(name) case update_numbers::name: update<CLUSTER, updates::name>(net, progress.c); break;
        FOR_EACH_UPDATE(CASE)
#undef CASE
    }
}

}  // namespace resident
