// softmax_cross_entropy<Form, T>: cross entropy of softmax(logits) and its gradient, in one pass
//   tau: targets with class weights w and smoothing eps;  T = sum_k tau_k, m = max_k z_k,
//   S = sum_k exp(z_k - m), lse = m + log S;  scale_i as in include/rows.cuh
//   row_loss[i] = weight_i * (T log S - sum_k tau_k (z_k - m) + z_loss * lse^2)
//   delta[i, k] = scale_i * ((T + 2 z_loss lse) exp(z_k - m) / S - tau_k)
//     never lse - z_y, which cancels under a large common offset; formed in compute_of<T>
//   labels [rows]: tau_k = w_k ((1 - eps) [k = y] + eps / K); probabilities [rows, cols]:
//     tau_k = w_k ((1 - eps) t_k + eps / K), need not sum to 1; neither: delta is softmax(z), or with
//     log_output log softmax(z)
//   soft_cap c > 0: z = c tanh(logits / c), and delta is with respect to the logits
//   a row with label ignore_index: loss, delta 0. A label outside [0, K): loss and delta of the row
//   NaN, and bad_label = {row, label} if its first word was -1; never an access outside the row.
//   Its first word is -2 while another writes there: {row, label} hold from row >= 0 on
//
//   loss, weight_sum, correct_rows: over all rows, by the last block of the grid (include/loss_sums.cuh)
//
//   The row is requested first; label, weights and divisor arrive while it is on its way, and the label's
//   logit is taken from it. Of a row to ignore the first 16 KiB of a block are therefore read all the same.
//   A group of threads takes a row: a warp, a block, a cluster of blocks, or blocks in two launches.
//   A row is cut into packs of 16 bytes (include/vector.cuh); a pack belongs to one thread from first
//   to last, so delta may be logits. A thread keeps its packs in three places, one after another:
//     registers  HELD packs, as exponentials: each is computed once (as logits in the general form)
//     shared     shared_packs for each thread, as they came, brought by asynchronous copies
//     memory     what is left is read a second time: the portable path
//   forms  rows      blockDim.x threads of one block to a row; blockDim.y rows at a time
//          clusterN  N blocks to a row (sm_90 and later), their statistics in distributed shared memory
//          parts     gridDim.x blocks to a row: statistics only, into `partial`
//          finish    after it: the rest
//          each `labels`: class indices, smoothing; or `general`: probabilities, class weights with
//          smoothing, soft cap, log softmax
//   moves 2 * rows * cols * sizeof(T): reads logits once, writes delta once; parts + finish read twice
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/loss_sums.cuh"
#include "include/row_packs.cuh"

enum Phase { WHOLE, PARTS, FINISH };

template <int CLUSTER, bool GENERAL, Phase PHASE, class T>
__device__ __forceinline__ void softmax_cross_entropy(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    __shared__ RowSums<C> sums[GROUP_THREADS / 32];  // of each group of the block
    int64 blocks = PHASE == WHOLE ? gridDim.x / CLUSTER : gridDim.y;
    int64 block = PHASE == WHOLE ? blockIdx.x / CLUSTER : blockIdx.y;
    int parts = PHASE == WHOLE ? CLUSTER : int(gridDim.x);
    int part = PHASE == WHOLE ? CLUSTER > 1 ? int(ptx::cluster_rank()) : 0 : int(blockIdx.x);
    int turn = 0;
    if (threadIdx.x == 0) sums[threadIdx.y].clear();
    if (PHASE != PARTS && p.weigh == FIRST) weigh_all_rows(p);
    for (int64 first = block * blockDim.y; first < p.rows; first += blocks * blockDim.y, turn ^= 1) {
        int64 row = first + threadIdx.y;
        RowPacks<T, GENERAL, PHASE != WHOLE> mine(p, row, part, parts, PHASE == FINISH ? 0 : p.shared_packs);
        if constexpr (PHASE != FINISH) mine.request();
        Target<C> target(p, row);
        if constexpr (PHASE != FINISH)
            mine.request_rest(p.reads_ignored() || !target.is_ignored(p));
        target.resolve(p, row);
        bool owns = mine.owns(target.label), has_logit = owns && target.label >= 0;
        C z_label = C(0);

        Statistics<C> all;
        if constexpr (PHASE == FINISH) {
            all = combine_parts(p.partial + row * parts, parts, p.spread, p.wants_best);
        } else {
            if (has_logit) z_label = mine.logit_in_registers(target.label);
            all = combine_group<CLUSTER>(mine.statistics(), p.spread, p.wants_best, turn);
        }
        if constexpr (PHASE == PARTS) {
            if (threadIdx.x == 0) p.partial[row * parts + part] = all;
        } else {
            if (has_logit && (PHASE == FINISH || mine.is_outside(target.label)))
                z_label = mine.template logit_outside<PHASE == FINISH>(target.label);
            Outcome<T> outcome(p, target, all, GENERAL ? C(1) : p.eps_over_K);
            if (p.delta != nullptr && row < p.rows) {
                mine.begin_writing();
                if (target.ignored) mine.write_zeros();
                else mine.template write<PHASE == FINISH>(outcome);
            }
            __syncwarp();  // what the owner of the row before has added
            if (!owns || row >= p.rows) continue;
            if (has_logit && p.delta != nullptr)
                p.delta[row * p.stride_delta + target.label] = outcome.label_delta(p, target, z_label);
            outcome.store_row(p, target, row, z_label, sums[threadIdx.y]);
        }
    }
    if constexpr (CLUSTER > 1) ptx::cluster_sync();  // nobody ends while others read its statistics
    if (PHASE == PARTS || !p.reduces()) return;
    __syncthreads();
    for (int y = 1; thread_of_block() == 0 && y < int(blockDim.y); ++y) sums[0].add(sums[y]);
    finish_sums(p, sums[0]);
}

#define ENTRY_(name, T, BOUND, CLUSTER, GENERAL, PHASE)                  \
    extern "C" __global__ void BOUND softmax_cross_entropy_##name##_##T( \
        const __grid_constant__ SoftmaxArguments<T> p) {                 \
        softmax_cross_entropy<CLUSTER, GENERAL, PHASE>(p);               \
    }
// Blocks of 256 threads that run at once.
template <class T, bool GENERAL> constexpr int AT_ONCE = 2;
#define BLOCKS(T, GENERAL) __launch_bounds__(GROUP_THREADS, AT_ONCE<T, GENERAL>)
#define CLUSTERED(n, T, GENERAL) CLUSTER_DIMS(n) BLOCKS(T, GENERAL)
#define ENTRY_rows_labels(T) ENTRY_(rows_labels, T, BLOCKS(T, false), 1, false, WHOLE)
#define ENTRY_rows_general(T) ENTRY_(rows_general, T, BLOCKS(T, true), 1, true, WHOLE)
#define ENTRY_cluster2_labels(T) ENTRY_(cluster2_labels, T, CLUSTERED(2, T, false), 2, false, WHOLE)
#define ENTRY_cluster2_general(T) ENTRY_(cluster2_general, T, CLUSTERED(2, T, true), 2, true, WHOLE)
#define ENTRY_cluster4_labels(T) ENTRY_(cluster4_labels, T, CLUSTERED(4, T, false), 4, false, WHOLE)
#define ENTRY_cluster4_general(T) ENTRY_(cluster4_general, T, CLUSTERED(4, T, true), 4, true, WHOLE)
#define ENTRY_cluster8_labels(T) ENTRY_(cluster8_labels, T, CLUSTERED(8, T, false), 8, false, WHOLE)
#define ENTRY_cluster8_general(T) ENTRY_(cluster8_general, T, CLUSTERED(8, T, true), 8, true, WHOLE)
#define ENTRY_parts_labels(T) ENTRY_(parts_labels, T, BLOCKS(T, false), 1, false, PARTS)
#define ENTRY_parts_general(T) ENTRY_(parts_general, T, BLOCKS(T, true), 1, true, PARTS)
#define ENTRY_finish_labels(T) ENTRY_(finish_labels, T, BLOCKS(T, false), 1, false, FINISH)
#define ENTRY_finish_general(T) ENTRY_(finish_general, T, BLOCKS(T, true), 1, true, FINISH)
#define JOIN(form) ENTRY_##form
#define ENTRY(form, T) NAMED(form)(T)
#define NAMED(form) JOIN(form)
#ifdef ONLY_FORMULA
FOR_EACH_DTYPE(ENTRY, ONLY_FORMULA)
#else
FOR_EACH_DTYPE(ENTRY, rows_labels) FOR_EACH_DTYPE(ENTRY, rows_general)
FOR_EACH_DTYPE(ENTRY, parts_labels) FOR_EACH_DTYPE(ENTRY, parts_general)
FOR_EACH_DTYPE(ENTRY, finish_labels) FOR_EACH_DTYPE(ENTRY, finish_general)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
FOR_EACH_DTYPE(ENTRY, cluster2_labels) FOR_EACH_DTYPE(ENTRY, cluster2_general)
FOR_EACH_DTYPE(ENTRY, cluster4_labels) FOR_EACH_DTYPE(ENTRY, cluster4_general)
FOR_EACH_DTYPE(ENTRY, cluster8_labels) FOR_EACH_DTYPE(ENTRY, cluster8_general)
#endif
#endif
