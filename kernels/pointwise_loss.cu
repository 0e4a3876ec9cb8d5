// pointwise_loss<Loss, T>: a loss that is a sum over output units, and its gradient, in one pass
//   row_loss[i] = weight_i * sum_k value(a_ik, t_ik);  delta[i, k] = scale_i * value'(a_ik, t_ik)
//   scale_i = weight_i * upstream_i / divisor (include/rows.cuh)
//   correct[i] = 1 where every unit is on its target's side of 1/2: a > 0 exactly where t > 1/2
//   over all rows: loss = sum_i row_loss[i] / divisor, NaN where that is 0, or 0 with empty_is_zero, where
//   delta then is not divided; correct_rows = sum_i correct[i]. Each block leaves its sums, the last block
//   adds them (include/last_block.cuh): sums: C[2, blocks]; loss and correct_rows null: counter may be, too
//   a, delta: T[rows, cols]; targets: compute_of<T>[rows, cols]; each with its stride between rows
//   delta may be a; delta null: loss only; row_loss, correct null: not wanted
//   moves rows * cols * (2 sizeof(T) + sizeof(compute_of<T>)): reads a and targets, writes delta
//   16-byte accesses, two packs of a thread in flight; a row's head and tail, rows that start off 16
//   bytes, and rows of at most two packs, element by element
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/last_block.cuh"
#include "include/rows.cuh"
#include "include/vector.cuh"
#include "losses.cuh"

template <class T> struct PointwiseLossArguments {
    const T* a;
    const compute_of<T>* targets;
    T* delta;
    compute_of<T>* row_loss;
    u8* correct;
    const compute_of<T>* sample_weight;
    Number<compute_of<T>> upstream, divisor;
    compute_of<T>* loss;
    int64* correct_rows;
    compute_of<T>* sums;
    int* counter;
    int64 upstream_stride, rows, cols, stride_a, stride_targets, stride_delta;
    compute_of<T> parameter;  // of the loss
    int empty_is_zero;
};

// Loss of a pack's elements [lo, hi), with delta in place of x; `wrong` becomes 1 where a target is missed.
template <class Loss, class T, int E>
__device__ __forceinline__ compute_of<T> loss_of_pack(
    Pack<T, E>& x, const Pack<compute_of<T>, E>& targets, int lo, int hi, compute_of<T> parameter,
    compute_of<T> scale, compute_of<T>& wrong) {
    using C = compute_of<T>;
    C sum = C(0);
#pragma unroll
    for (int e = 0; e < E; ++e) {
        C a = widen(x.v[e]), t = targets.v[e], d;
        C value = Loss::value_and_delta(a, t, d, parameter);
        bool exists = e >= lo && e < hi;
        if (exists) sum += value;
        if (exists && (a > C(0)) != (t > C(0.5))) wrong = C(1);
        x.v[e] = to_storage<T>(d * scale);
    }
    return sum;
}

template <class T>
__device__ __forceinline__ compute_of<T> scale_of(const PointwiseLossArguments<T>& p, int64 row) {
    compute_of<T> divisor = p.divisor.get(), scale = row_weight(p, row);
    if (p.empty_is_zero && divisor == compute_of<T>(0)) divisor = compute_of<T>(1);
    return scale * p.upstream.get(row * p.upstream_stride) / divisor;
}

// The part of a row that one thread has, in packs of E.
template <class Loss, int E, class T>
__device__ __forceinline__ compute_of<T> loss_of_row(
    const PointwiseLossArguments<T>& p, int64 row, compute_of<T>& wrong) {
    using C = compute_of<T>;
    constexpr int TOGETHER = E == 1 ? 1 : 2;
    const T* a = p.a + row * p.stride_a;
    const C* targets = p.targets + row * p.stride_targets;
    T* delta = p.delta == nullptr ? nullptr : p.delta + row * p.stride_delta;
    int64 step = int64(blockDim.x) * E, head = E == 1 ? 0 : misalignment(a);
    C loss = C(0);
    for (int64 k = int64(threadIdx.x) * E - head; k < p.cols; k += TOGETHER * step) {
        Pack<T, E> x[TOGETHER];
        Pack<C, E> t[TOGETHER];
        int lo = k < 0 ? int(-k) : 0;  // of the first alone
#pragma unroll
        for (int n = 0; n < TOGETHER; ++n) {
            int64 at = k + n * step;
            x[n] = global::load_part<T, E>(a + at, n > 0 ? 0 : lo, elements<E>(p.cols - at));
            t[n] = global::load_part<C, E>(targets + at, n > 0 ? 0 : lo, elements<E>(p.cols - at));
        }
        C scale = p.delta == nullptr ? C(0) : scale_of(p, row);
#pragma unroll
        for (int n = 0; n < TOGETHER; ++n) {
            int64 at = k + n * step;
            int from = n > 0 ? 0 : lo, to = elements<E>(p.cols - at);
            loss += loss_of_pack<Loss>(x[n], t[n], from, to, p.parameter, scale, wrong);
            if (delta != nullptr) global::store_part(delta + at, x[n], from, to);
        }
    }
    return loss;
}

// The end of a launch, by all threads of all blocks: `own` and `correct` are those of the thread's rows.
template <class T, class C = compute_of<T>>
__device__ __forceinline__ void finish_sums(
    const PointwiseLossArguments<T>& p, const Compensated<C>& own, int64 correct) {
    const uint32 blocks = blocks_of_grid();
    C loss = block_total(own);
    correct = block_sum(correct);
    if (thread_of_block() == 0) {
        p.sums[block_of_grid()] = loss;
        p.sums[blocks + block_of_grid()] = C(correct);  // exact: a block has below 2^24 rows
    }
    if (!is_last_block(p.counter)) return;
    Compensated<C> all;
    correct = 0;
#pragma unroll 4
    for (uint32 i = uint32(thread_of_block()); i < blocks; i += uint32(threads_of_block())) {
        all.add(p.sums[i]);
        correct += int64(p.sums[blocks + i]);
    }
    loss = block_total(all), correct = block_sum(correct);
    if (thread_of_block() != 0) return;
    C divisor = p.divisor.get();
    if (p.correct_rows != nullptr) *p.correct_rows = correct;
    if (p.loss != nullptr)
        *p.loss = divisor != C(0) ? loss / divisor : p.empty_is_zero ? C(0) : not_a_number<C>();
}

// Up to two packs a row has more heads and tails than packs: then its elements come one by one.
template <class Loss, class T>
__device__ __forceinline__ void pointwise_loss(const PointwiseLossArguments<T>& p) {
    using C = compute_of<T>;
    const bool narrow = p.cols <= 2 * PACK<T>;
    Compensated<C> own;  // of the rows of a group's first thread
    int64 correct_rows = 0;
    FOR_EACH_ROW(row, p.rows) {
        C loss = C(0), wrong = C(0);
        if (row < p.rows)
            loss = narrow ? loss_of_row<Loss, 1>(p, row, wrong) : loss_of_row<Loss, PACK<T>>(p, row, wrong);
        loss = reduce_group<Sum>(loss);
        const bool counts = p.correct != nullptr || p.correct_rows != nullptr;
        if (counts) wrong = reduce_group<Maximum>(wrong);
        if (row < p.rows && threadIdx.x == 0) {
            loss *= row_weight(p, row);
            own.add(loss);
            correct_rows += wrong == C(0);
            if (p.row_loss != nullptr) p.row_loss[row] = loss;
            if (p.correct != nullptr) p.correct[row] = wrong == C(0);
        }
    }
    if (p.loss != nullptr || p.correct_rows != nullptr) finish_sums(p, own, correct_rows);
}

template <class T> constexpr int BLOCKS = sizeof(T) == 8 ? 2 : 3;  // of a multiprocessor, at least

#define ENTRY_(loss, T)                                                                                \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS, BLOCKS<T>) pointwise_loss_##loss##_##T( \
        const __grid_constant__ PointwiseLossArguments<T> p) {                                         \
        ptx::follow_the_grid_in_front();                                                               \
        pointwise_loss<losses::loss, T>(p);                                                            \
    }
#define ENTRY(loss, T) ENTRY_(loss, T)
FOR_EACH_LOSS(ENTRY)
