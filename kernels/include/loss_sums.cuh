// loss_sums.cuh - the sums of a loss over the rows, from the launch that computes the rows.
//   loss = sum_i row_loss_i / divisor;  divisor of a mean: sum_i weight_i class_weight[y_i] over the rows that
//   are not ignored, a label out of range counting NaN. Where it is 0, loss is NaN, or 0 with empty_is_zero.
//   Each block leaves three sums, the last block adds them (last_block.cuh).
#pragma once
#include "last_block.cuh"
#include "softmax.cuh"

// Of the rows of one group of threads. In shared memory where the rows' owners are different threads, so
// it has no constructor.
template <class C> struct RowSums {
    C loss, loss_lost, weight, weight_lost;
    int64 correct;
    __device__ __forceinline__ void clear() {
        loss = loss_lost = weight = weight_lost = C(0);
        correct = 0;
    }
    static __device__ __forceinline__ void add(C& sum, C& lost, C x) {
        Compensated<C> both;
        both.sum = sum, both.lost = lost;
        both.add(x);
        sum = both.sum, lost = both.lost;
    }
    __device__ __forceinline__ void add_loss(C x) { add(loss, loss_lost, x); }
    __device__ __forceinline__ void add_weight(C x) { add(weight, weight_lost, x); }
    __device__ __forceinline__ void add(const RowSums& other) {
        add_loss(other.loss), add_loss(other.loss_lost);
        add_weight(other.weight), add_weight(other.weight_lost);
        correct += other.correct;
    }
};

// Leave what all rows count in the mean in `divisor_of_block`; every thread of the block calls.
template <class T> __device__ __forceinline__ void weigh_all_rows(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    Compensated<C> own;
#pragma unroll 1
    for (int64 row = thread_of_block(); row < p.rows; row += threads_of_block()) own.add(row_counts(p, row));
    C all = block_total(own);
    if (thread_of_block() == 0) divisor_of_block<C>() = all;
    __syncthreads();
}

// The end of a launch: `own` are the block's sums, in its thread 0.
template <class T>
__device__ __forceinline__ void finish_sums(
    const SoftmaxArguments<T>& p, const RowSums<compute_of<T>>& own) {
    using C = compute_of<T>;
    uint32 blocks = blocks_of_grid(), block = block_of_grid();
    if (thread_of_block() == 0) {
        p.sums[block] = own.loss + own.loss_lost;
        p.sums[blocks + block] = own.weight + own.weight_lost;
        p.sums[2 * uint64(blocks) + block] = C(own.correct);  // exact: a block has below 2^24 rows
    }
    if (!is_last_block(p.counter)) return;
    RowSums<C> all;
    all.clear();
    constexpr int AHEAD = 8;  // loads of each sum in flight: one after another they would be as many round trips
    uint32 step = uint32(threads_of_block());
    for (uint32 first = uint32(thread_of_block()); first < blocks; first += AHEAD * step) {
        C losses[AHEAD], weights[AHEAD], corrects[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) {
            uint32 i = first + uint32(n) * step;
            bool there = i < blocks;
            losses[n] = there ? p.sums[i] : C(0);
            weights[n] = there ? p.sums[blocks + i] : C(0);
            corrects[n] = there ? p.sums[2 * uint64(blocks) + i] : C(0);
        }
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) {
            all.add_loss(losses[n]);
            all.add_weight(weights[n]);
            all.correct += int64(corrects[n]);
        }
    }
    C loss = block_total(all.loss, all.loss_lost), weight = block_total(all.weight, all.weight_lost);
    int64 correct = block_sum(all.correct);
    if (thread_of_block() != 0) return;
    if (p.correct_rows != nullptr) *p.correct_rows = correct;
    if (p.loss == nullptr) return;
    if (p.weigh == KNOWN) weight = p.divisor.get();
    if (p.weight_sum != nullptr) *p.weight_sum = weight;
    *p.loss = weight != C(0) ? loss / weight : p.empty_is_zero ? C(0) : not_a_number<C>();
}

// The same, where each thread has sums of its own.
template <class T>
__device__ __forceinline__ void finish_sums_of_threads(
    const SoftmaxArguments<T>& p, const RowSums<compute_of<T>>& own) {
    if (!p.reduces()) return;
    RowSums<compute_of<T>> all;
    all.clear();
    if (p.loss != nullptr) all.loss = block_total(own.loss, own.loss_lost);
    if (p.weigh != KNOWN) all.weight = block_total(own.weight, own.weight_lost);
    if (p.correct_rows != nullptr) all.correct = block_sum(own.correct);
    finish_sums(p, all);
}
