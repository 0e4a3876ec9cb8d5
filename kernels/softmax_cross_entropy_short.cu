// softmax_cross_entropy_short<T>: softmax_cross_entropy, general form, of rows of at most 256 columns without gaps
//   the mathematics and the arguments are those of softmax_cross_entropy.cu; with labels and without soft cap or
//   class weights together with smoothing, softmax_cross_entropy_lanes.cu takes such rows
//   Rows this short lie badly for 16-byte accesses: ten float32 are two and a half of them. So a block
//   brings a tile of whole rows, which is contiguous, to shared memory in packs; there blockDim.x lanes
//   take a row, each every blockDim.x-th element, and leave delta in place of the logits; the tile goes
//   back in packs. Any number of columns moves at full width, and every byte once. An element costs more
//   than a second read, so the logits are taken from the tile each time.
//   block (x, y): x a power of two up to 32 with SHORT_VALUES * x >= cols, x * y = TILE_THREADS
//   moves 2 * rows * cols * sizeof(T): reads logits once, writes delta once
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/short_row.cuh"
#include "include/tile.cuh"

constexpr int SHORT_VALUES = 8;  // elements of a row for each lane, at most
template <class T> constexpr int SHORT_BLOCKS = sizeof(T) == 8 ? 3 : 5;  // that run at once
template <class T> constexpr int TILE = 8192 / int(sizeof(T));  // elements

template <class T>
__device__ __forceinline__ void softmax_cross_entropy_short(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    __shared__ __align__(16) T tile[TILE<T> + PACK<T>];
    int cols = int(p.cols), groups = int(blockDim.y), lanes = int(blockDim.x);
    int turns = TILE<T> / cols / groups;  // rows of a group in a tile
    int64 rows = int64(turns) * groups;   // of a tile
    RowSums<C> sums;                      // of the rows of a group, in its lane 0
    sums.clear();
    if (p.weigh == FIRST) weigh_all_rows(p);
    for (int64 first = blockIdx.x * rows; first < p.rows; first += gridDim.x * rows) {
        int count = int(p.rows - first < rows ? p.rows - first : rows) * cols;
        const T* from = p.logits + first * cols;
        T* begin = tile + misalignment(from);
        request_tile(from, begin, count);
        ptx::copy_async_wait<0>();
        __syncthreads();
        for (int turn = 0; turn < turns && first + turn * groups < p.rows; ++turn) {
            int local = turn * groups + int(threadIdx.y);
            int64 row = first + local;
            ShortRow<T> mine(p, row, begin + local * cols, lanes, int(threadIdx.x));
            Target<C> target(p, row);
            target.resolve(p, row);
            bool owns = row < p.rows && mine.lane == 0;
            C z_label = C(0);
            if (owns && target.label >= 0) z_label = p.capped(C(widen(mine.z[target.label])));
            Statistics<C> own = mine.statistics(!target.ignored || p.reads_ignored());
            own = combine_lanes(own, lanes, p.spread, p.wants_best);
            Outcome<T> outcome(p, target, own, C(1));
            __syncwarp();  // lane 0 has read its label's logit, which may be another lane's
            if (p.delta != nullptr) mine.write(target, outcome);
            __syncwarp();  // and writes the gradient there
            if (!owns) continue;
            if (target.label >= 0 && p.delta != nullptr)
                mine.z[target.label] = outcome.label_delta(p, target, z_label);
            outcome.store_row(p, target, row, z_label, sums);
        }
        __syncthreads();
        if (p.delta == nullptr) continue;
        return_tile(begin, p.delta + first * cols, count);
        __syncthreads();
    }
    finish_sums_of_threads(p, sums);
}

#define ENTRY_(T)                                                               \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, SHORT_BLOCKS<T>) \
        softmax_cross_entropy_short_general_##T(                                \
            const __grid_constant__ SoftmaxArguments<T> p) {                    \
        softmax_cross_entropy_short<T>(p);                                      \
    }
#define ENTRY(form, T) ENTRY_(T)
FOR_EACH_DTYPE(ENTRY, general)
