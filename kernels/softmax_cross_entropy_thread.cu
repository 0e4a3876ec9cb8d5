// softmax_cross_entropy_thread<W, T>: softmax_cross_entropy of short rows without gaps, a thread to a row
//   the mathematics and the arguments are those of softmax_cross_entropy.cu, with labels; a row is at most
//   128 bytes, 32 columns of float32, and a multiple of W bytes
//   A tile of 128 rows is contiguous, so it goes to shared memory and back in packs of 16 bytes, any number of
//   columns at full width. There a thread takes a row, W bytes at a time, into its registers: no shuffles, and
//   what is done once for a row is done for 32 of them by one warp instruction. Two tiles are in flight: the
//   next one is brought while this one is computed, its labels with it.
//   banks: lanes W bytes wide lie cols * sizeof(T) apart. If that is an odd number of times W, no two meet in
//   a bank; W is therefore the largest power of two that divides it, up to 16. Beyond it the lanes start at
//   different places: lane i takes its accesses in the order j ^ turned(i).
//   moves 2 * rows * cols * sizeof(T): reads logits once, writes delta once
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/loss_sums.cuh"
#include "include/tile.cuh"

constexpr int ROWS = 128;  // of a tile, and threads of a block
constexpr int MOST_BYTES = 128;  // of a row

template <class T> constexpr int BLOCKS = sizeof(T) == 4 ? 4 : 3;  // that run at once

// W bytes of a row.
template <class T, int W> struct Piece {
    static constexpr int E = W / int(sizeof(T));
    typename word<W>::type bits;

    template <class C> __device__ __forceinline__ void widen_to(C* v) const {
        Words<T, E> both;
        both.words[0] = bits;
        if constexpr (sizeof(T) == 2 && E >= 2) {
            union { typename word<W>::type all; uint32 pairs[W / 4]; } read;
            read.all = bits;
#pragma unroll
            for (int i = 0; i < W / 4; ++i) widen_pair<T>(read.pairs[i], v[2 * i], v[2 * i + 1]);
        } else {
#pragma unroll
            for (int e = 0; e < E; ++e) v[e] = C(widen(both.pack.v[e]));
        }
    }
    template <class C> static __device__ __forceinline__ Piece of(const C* v) {
        Piece made;
        if constexpr (sizeof(T) == 2 && E >= 2) {
            union { typename word<W>::type all; uint32 pairs[W / 4]; } both;
#pragma unroll
            for (int i = 0; i < W / 4; ++i) both.pairs[i] = to_storage_pair<T>(v[2 * i], v[2 * i + 1]);
            made.bits = both.all;
        } else {
            Words<T, E> both;
#pragma unroll
            for (int e = 0; e < E; ++e) both.pack.v[e] = to_storage<T>(v[e]);
            made.bits = both.words[0];
        }
        return made;
    }
};

// How far the lanes are turned against one another: groups of lanes that would meet in a bank.
__device__ __forceinline__ int turned(int pieces, int width) {
    int lanes = 128 / width, common = pieces & -pieces;  // lanes of one access; the power of two in pieces
    if (common > lanes) common = lanes;
    return int(threadIdx.x) % lanes / (lanes / common);
}

template <class T, int W> struct ThreadRow {
    using C = compute_of<T>;
    static constexpr int E = Piece<T, W>::E, MOST = MOST_BYTES / W;
    C v[MOST][E];
    int pieces, turn;

    __device__ __forceinline__ static Piece<T, W>* at(T* z, int piece) {
        return reinterpret_cast<Piece<T, W>*>(z + piece * E);
    }
    // Bring the row; its largest logit.
    __device__ __forceinline__ C read(T* z) {
        C m = minus_infinity<C>();  // a NaN is not kept
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
            at(z, j ^ turn)->widen_to(v[j]);
#pragma unroll
            for (int e = 0; e < E; ++e) m = Maximum::of(m, v[j][e]);
        }
        return m;
    }
    // The first column whose logit is m; behind all columns where there is none.
    __device__ __forceinline__ int64 place_of(C m) const {
        int place = 0x7fffffff;
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
#pragma unroll
            for (int e = 0; e < E; ++e) {
                int column = (j ^ turn) * E + e;
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
    __device__ __forceinline__ void write(T* z, C grad_scale, C smoothing) const {
#pragma unroll
        for (int j = 0; j < MOST; ++j) {
            if (j >= pieces) break;
            C d[E];
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = ::fma(v[j][e], grad_scale, -smoothing);
            *at(z, j ^ turn) = Piece<T, W>::of(d);
        }
    }
    __device__ __forceinline__ void write_zeros(T* z) const {
        C d[E] = {};
        for (int j = 0; j < pieces; ++j) *at(z, j) = Piece<T, W>::of(d);
    }
};

// What Outcome does, of a row without options: tau is 1 at the label, and every row counts alike.
template <class T, int W, class C>
__device__ __forceinline__ void plain_row(
    const SoftmaxArguments<T>& p, const ThreadRow<T, W>& mine, T* z, int label, const Exponential<T>& x,
    C z_label, C sum, int64 best, RowSums<C>& sums) {
    if (p.delta != nullptr) {
        C scale = over_sum<T>(p.factor, sum);
        mine.write(z, scale, C(0));
        z[label] = to_storage<T>(::fma(x.of(z_label), scale, -p.factor));
    }
    if (p.loss != nullptr) {  // log S - (z_y - m), with what the difference loses
        Compensated<C> terms;
        terms.sum = x.origin;
        terms.add(-z_label);
        terms.add(::log(sum));
        sums.add_loss(terms.value());
    }
    if (p.correct_rows != nullptr) sums.correct += best == label;
}

template <class T, int W>
__device__ __forceinline__ void softmax_cross_entropy_thread(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    extern __shared__ uint4 tiles_in_shared_memory[];
    int cols = int(p.cols), tiles = p.shared_packs;  // how many there is room for: 2 or 3
    int64 step = int64(gridDim.x) * ROWS;
    int distance = (ROWS * cols * int(sizeof(T)) / 16 + 1) * PACK<T>;  // of two tiles, in elements
    T* room = reinterpret_cast<T*>(tiles_in_shared_memory) + misalignment(p.logits);
    ThreadRow<T, W> mine;
    mine.pieces = cols / Piece<T, W>::E;
    mine.turn = W < 16 ? 0 : turned(mine.pieces, W);
    RowSums<C> sums;
    sums.clear();
    if (p.weigh == FIRST) weigh_all_rows(p);

    auto elements = [&](int64 first) {  // of the tile that begins with that row
        return first >= p.rows ? 0 : int(p.rows - first < ROWS ? p.rows - first : ROWS) * cols;
    };
    int64 first = int64(blockIdx.x) * ROWS;
    request_tile(p.logits + first * cols, room, elements(first));
    Target<C> target(p, first + threadIdx.x);
    if (tiles > 2) request_tile(p.logits + (first + step) * cols, room + distance, elements(first + step));
    int place = 0, ahead = tiles > 2 ? 2 : 1;  // of the tile, of the one that is requested next
    for (; first < p.rows; first += step) {
        if (tiles > 2) ptx::copy_async_wait<1>();
        else ptx::copy_async_wait<0>();
        __syncthreads();  // the tile is there, and the one before has left its place
        int64 later = first + step * (tiles - 1);
        request_tile(p.logits + later * cols, room + ahead * distance, elements(later));
        Target<C> next(p, first + step + threadIdx.x);

        int64 row = first + threadIdx.x;
        T *tile = room + place * distance, *z = tile + int(threadIdx.x) * cols;
        if (row < p.rows) {
            C m = mine.read(z);
            Exponential<T> x(m);
            int64 best = p.wants_best ? mine.place_of(m) : 0;
            C above = p.spread ? mine.sum_from(x.origin) : C(0), sum = mine.exponentials(x);
            bool counts = uint64(target.label) < uint64(cols) && !target.is_ignored(p);
            if (p.is_plain && counts && is_finite(sum)) {
                C z_label = C(widen(z[target.label]));
                plain_row(p, mine, z, int(target.label), x, z_label, sum, best, sums);
            } else {
                target.resolve(p, row);
                C z_label = target.label < 0 ? C(0) : C(widen(z[target.label]));
                Statistics<C> all = {m, sum, above, p.spread ? C(cols) : C(0), best};
                Outcome<T> outcome(p, target, all, p.eps_over_K);
                if (p.delta != nullptr) {
                    if (target.ignored) mine.write_zeros(z);
                    else mine.write(z, outcome.grad_scale, p.eps_over_K * outcome.factor);
                    if (target.label >= 0) z[target.label] = outcome.label_delta(p, target, z_label);
                }
                outcome.store_row(p, target, row, z_label, sums);
            }
        }
        if (p.delta != nullptr) {
            __syncthreads();
            return_tile(tile, p.delta + first * cols, elements(first));
        }
        target = next;
        place = place + 1 < tiles ? place + 1 : 0;
        ahead = ahead + 1 < tiles ? ahead + 1 : 0;
    }
    finish_sums_of_threads(p, sums);
}

#define ENTRY_(width, T)                                                                            \
    extern "C" __global__ void __launch_bounds__(ROWS, BLOCKS<T>) softmax_cross_entropy_thread_##width##_##T( \
        const __grid_constant__ SoftmaxArguments<T> p) {                                            \
        softmax_cross_entropy_thread<T, WIDTH_##width>(p);                                          \
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
