// softmax_cross_entropy_lanes<W, T>: softmax_cross_entropy of rows without gaps, one lane or a few to a row
//   the mathematics and the arguments are those of softmax_cross_entropy.cu, with labels; a row is a multiple of
//   W bytes, and at most 128 bytes for each of blockDim.x lanes; blockDim.y rows are a multiple of 16 bytes
//   A tile of blockDim.y rows is contiguous, so it goes to shared memory and back in packs of 16 bytes, any
//   number of columns at full width. There a lane takes pieces of W bytes into its registers: the lanes of a row
//   take its pieces in turn. So what is done once for a row is done for up to 32 rows by one warp instruction,
//   and of up to 32 columns of float32 nothing is shuffled. A piece belongs to one lane from first to last, and
//   the lane that has the label's writes what is stored once for a row. Three tiles are there at a time: two are
//   on their way while one is computed, the labels of the next one with it.
//   banks: rows that would meet in one start at different places, where each lane has equally many pieces of 16
//   bytes: it takes them in the order j ^ turn. Elsewhere at most two lanes meet, with pieces of 8 and 4 bytes four.
//   block (x, y): x a power of two up to 32, x * y = TILE_THREADS
//   moves 2 * rows * cols * sizeof(T): reads logits once, writes delta once
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/loss_sums.cuh"
#include "include/piece.cuh"

constexpr int LANE_BYTES = 128;  // of a row that a lane takes, at most

template <class T> constexpr int BLOCKS = sizeof(T) == 4 ? 4 : 3;  // that run at once

// A lane's pieces of a row. A loop over them ends where the row does: `pieces` is 0 beyond the last row.
template <class T, int W> struct LaneRow {
    using C = compute_of<T>;
    using P = Piece<T, W>;
    static constexpr int E = P::E, MOST = LANE_BYTES / W;
    C v[MOST][E];
    P* z;  // its first piece in the tile: logits, then delta
    int lanes, lane, all, pieces, turn;

    __device__ __forceinline__ explicit LaneRow(int cols)
        : lanes(int(blockDim.x)), lane(int(threadIdx.x)), all((cols / E + lanes - 1 - lane) / lanes), turn(0) {
        int rows = 128 / W / lanes;  // of one access
        if (W < 16 || rows == 0 || cols / E % lanes != 0) return;
        int common = all & -all;  // the power of two in it: so many of those rows would meet in a bank
        if (common > rows) common = rows;
        turn = int(threadIdx.y) % rows / (rows / common);
    }
    __device__ __forceinline__ void begin(T* row, bool there) {
        z = reinterpret_cast<P*>(row) + lane;
        pieces = there ? all : 0;
    }
    __device__ __forceinline__ P& at(int j) const { return z[(j ^ turn) * lanes]; }
    __device__ __forceinline__ bool has(int64 column) const { return (int(column) / E & (lanes - 1)) == lane; }

    // Bring them; the largest logit.
    __device__ __forceinline__ C read() {
        C m = minus_infinity<C>();  // a NaN is not kept
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
            at(j).widen_to(v[j]);
#pragma unroll
            for (int e = 0; e < E; ++e) m = Maximum::of(m, v[j][e]);
        }
        return m;
    }
    // The first column whose logit is m; behind all columns where there is none.
    __device__ __forceinline__ int place_of(C m) const {
        int place = 0x7fffffff;
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
#pragma unroll
            for (int e = 0; e < E; ++e) {
                int column = ((j ^ turn) * lanes + lane) * E + e;
                if (v[j][e] == m && column < place) place = column;
            }
        }
        return place;
    }
    // sum_k (z_k - origin), in an order of its own: an option's
    __device__ __forceinline__ C sum_from(C origin) const {
        C sum = C(0);
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
#pragma unroll
            for (int e = 0; e < E; ++e) sum += v[j][e] - origin;
        }
        return sum;
    }
    // Exponentials in place of the logits; their sum. Neighbours are added first, then pairs of them, and so
    // on: few roundings, and the sum does not depend on how far the row is turned.
    __device__ __forceinline__ C exponentials(const Exponential<T>& x) {
        C level[8] = {};  // sums of 2^l pieces each, which wait for their neighbours
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
#pragma unroll
            for (int e = 0; e < E; ++e) v[j][e] = x.of(v[j][e]);
            C sum = sum_of<E>(v[j]);
            int l = 0;
#pragma unroll
            for (; (j >> l) % 2 == 1; ++l) sum = level[l] + sum;
            level[l] = sum;
        }
        C sum = C(0);
#pragma unroll
        for (int l = 0; 1 << l <= MOST; ++l)
            if (pieces >> l & 1) sum += level[l];
        return sum;
    }
    template <int N> static __device__ __forceinline__ C sum_of(const C* x) {
        if constexpr (N == 1) return x[0];
        else return sum_of<N / 2>(x) + sum_of<N / 2>(x + N / 2);
    }
    __device__ __forceinline__ void write(C grad_scale, C smoothing) const {
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
            C d[E];
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = ::fma(v[j][e], grad_scale, -smoothing);
            at(j) = P::of(d);
        }
    }
    __device__ __forceinline__ void write_zeros() const {
        C d[E] = {};
        for (int j = 0; j < pieces; ++j) at(j) = P::of(d);
    }
};

// What Outcome does, of a row without options: tau is 1 at the label, and every row counts alike.
template <class T, int W, class C>
__device__ __forceinline__ void plain_row(
    const SoftmaxArguments<T>& p, const LaneRow<T, W>& mine, T* z, int64 row, int label,
    const Exponential<T>& x, C z_label, C sum, int64 best, RowSums<C>& sums) {
    C scale = over_sum<T>(p.factor, sum);
    if (p.delta != nullptr) mine.write(scale, C(0));
    if (!mine.has(label)) return;
    if (p.delta != nullptr) z[label] = to_storage<T>(::fma(x.of(z_label), scale, -p.factor));
    if (p.row_loss != nullptr || p.loss != nullptr) {  // log S - (z_y - m), with what the difference loses
        Compensated<C> terms;
        terms.sum = x.origin;
        terms.add(-z_label);
        terms.add(::log(sum));
        if (p.row_loss != nullptr) p.row_loss[row] = terms.value();
        if (p.loss != nullptr) sums.add_loss(terms.value());
    }
    if (p.correct_rows != nullptr) sums.correct += best == label;
}

// A row whose pieces are in registers: delta in place of its logits, and what is stored once for it.
template <class T, int W, class C>
__device__ __forceinline__ void finish_row(
    const SoftmaxArguments<T>& p, LaneRow<T, W>& mine, T* z, int64 row, Target<C>& target, C m, C above, C sum,
    const Exponential<T>& x, int64 best, RowSums<C>& sums) {
    bool counts = uint64(target.label) < uint64(p.cols) && !target.is_ignored(p);
    C z_label = counts && mine.has(target.label) ? C(widen(z[target.label])) : C(0);
    if (p.is_plain && counts && is_finite(sum))
        return plain_row(p, mine, z, row, int(target.label), x, z_label, sum, best, sums);
    target.resolve(p, row);
    Statistics<C> all = {m, sum, above, p.spread ? C(p.cols) : C(0), best};
    Outcome<T> outcome(p, target, all, p.eps_over_K);
    if (p.delta != nullptr) {
        if (target.ignored) mine.write_zeros();
        else mine.write(outcome.grad_scale, p.eps_over_K * outcome.factor);
    }
    if (!mine.has(counts ? target.label : 0)) return;
    if (p.delta != nullptr && counts) z[target.label] = outcome.label_delta(p, target, z_label);
    outcome.store_row(p, target, row, z_label, sums);
}

template <class T, int W>
__device__ __forceinline__ void softmax_cross_entropy_lanes(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    extern __shared__ uint4 tiles_in_shared_memory[];
    int cols = int(p.cols), rows = int(blockDim.y), tiles = p.shared_packs;  // how many there is room for: 2 or 3
    int64 step = int64(gridDim.x) * rows, start = int64(blockIdx.x) * rows;
    int distance = (rows * cols * int(sizeof(T)) / 16 + 1) * PACK<T>;  // of two tiles, in elements
    T* room = reinterpret_cast<T*>(tiles_in_shared_memory) + misalignment(p.logits);
    LaneRow<T, W> mine(cols);
    RowSums<C> sums;
    sums.clear();
    if (p.weigh == FIRST) weigh_all_rows(p);

    auto elements = [&](int64 first) {  // of the tile that begins with that row
        return first >= p.rows ? 0 : int(p.rows - first < rows ? p.rows - first : rows) * cols;
    };
    Target<C> target(p, p.rows);
    int place = 0, ahead = 0;  // of the tile, of the one that is requested next
    for (int64 first = start - (tiles - 1) * step; first < p.rows; first += step) {
        if (first >= start) {
            if (tiles > 2) ptx::copy_async_wait<1>();
            else ptx::copy_async_wait<0>();
            __syncthreads();  // the tile is there, and the one before has left its place
        }
        int64 later = first + step * (tiles - 1);
        request_tile(p.logits + later * cols, room + ahead * distance, elements(later));
        ahead = ahead + 1 < tiles ? ahead + 1 : 0;
        Target<C> next(p, first + step < start ? p.rows : first + step + threadIdx.y);
        if (first >= start) {
            int64 row = first + threadIdx.y;
            T *tile = room + place * distance, *z = tile + int(threadIdx.y) * cols;
            mine.begin(z, row < p.rows);
            C m = reduce_lanes<Maximum>(mine.read(), mine.lanes);
            Exponential<T> x(m);
            int best = p.wants_best ? reduce_lanes<First>(mine.place_of(m), mine.lanes) : 0;
            C above = p.spread ? reduce_lanes<Sum>(mine.sum_from(x.origin), mine.lanes) : C(0);
            C sum = reduce_lanes<Sum>(mine.exponentials(x), mine.lanes);
            if (row < p.rows) finish_row(p, mine, z, row, target, m, above, sum, x, best, sums);
            if (p.delta != nullptr) {
                __syncthreads();
                return_tile(tile, p.delta + first * cols, elements(first));
            }
            place = place + 1 < tiles ? place + 1 : 0;
        }
        target = next;
    }
    finish_sums_of_threads(p, sums);
}

#define ENTRY_(width, T)                                                 \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS<T>) \
        softmax_cross_entropy_lanes_##width##_##T(                       \
            const __grid_constant__ SoftmaxArguments<T> p) {             \
        softmax_cross_entropy_lanes<T, WIDTH_##width>(p);                \
    }
#define WIDTH_w16 16
#define WIDTH_w8 8
#define WIDTH_w4 4
#define WIDTH_w2 2
#define JOIN(width, T) ENTRY_(width, T)
#define ENTRY(width, T) JOIN(width, T)
#ifdef ONLY_FORMULA
FOR_EACH_DTYPE(ENTRY, ONLY_FORMULA)
#else
FOR_EACH_DTYPE(ENTRY, w16) FOR_EACH_DTYPE(ENTRY, w8)
ENTRY(w4, f32) ENTRY(w4, f16) ENTRY(w4, bf16) ENTRY(w2, f16) ENTRY(w2, bf16)
#endif
