// softmax_cross_entropy_pairs<K, T>: softmax_cross_entropy of rows of K <= 32 columns without gaps, two rows a thread
//   the mathematics and the arguments are those of softmax_cross_entropy.cu, with labels and without options of
//   single rows or classes, save an index to ignore; logits and delta lie on 16 bytes
//   K is known to the compiler, so a row costs no counting: its place in two rows of registers is in the code.
//   Two rows are a multiple of 4, 8 or 16 bytes where one is of half that: an odd number of pieces for each
//   thread, which is free of bank conflicts. Rows of a multiple of 16 bytes lie 32 rows apart, and start at different
//   places, where they would meet in a bank (j ^ turn).
//   A warp has tiles of 64 rows of its own, which come and go in packs of 16 bytes; it waits for no other warp.
//   Two tiles are on their way while one is computed, the labels of the next one with it. A row that is not
//   usual (a label out of range, a logit that is not finite) is computed again, element by element.
//   block (128): four warps; shared memory: 2 or 3 tiles for each
//   moves 2 * rows * cols * sizeof(T): reads logits once, writes delta once
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/piece.cuh"
#include "include/short_row.cuh"

constexpr int WARPS = TILE_THREADS / 32, TILE_ROWS = 64;  // rows of a warp's tile
template <int K> constexpr int BLOCKS = K <= 16 ? 4 : 3;  // that run at once
constexpr float MANY = 1e30f;  // losses below it have finite sums

// Two rows of K columns in registers.
template <class T, int K> struct RowPair {
    using C = compute_of<T>;
    static constexpr int BYTES = K * int(sizeof(T));
    static constexpr bool APART = BYTES % 16 == 0;  // rows `lane` and `lane + 32` of the tile, else neighbours
    static constexpr int W = APART ? 16 : 2 * (BYTES & -BYTES);
    static constexpr int PIECES = 2 * BYTES / W, OF_ROW = PIECES / 2;
    static constexpr int COMMON = (OF_ROW & -OF_ROW) > 8 ? 8 : OF_ROW & -OF_ROW;  // of 8 rows that meet in a bank
    using P = Piece<T, W>;
    static constexpr int E = P::E;
    C v[2 * K];  // a row behind the other
    P* z;        // the first piece in the tile: logits, then delta
    int turn;

    __device__ __forceinline__ explicit RowPair(int lane) : turn(0) {
        if constexpr (APART) turn = lane % 8 / (8 / COMMON);
    }
    static __device__ __forceinline__ int row(int lane, int r) {
        return APART ? lane + 32 * r : 2 * lane + r;
    }
    __device__ __forceinline__ P& at(int j) const {
        return APART ? z[j / OF_ROW * (32 * OF_ROW) + (j % OF_ROW ^ turn)] : z[j];
    }
    __device__ __forceinline__ int column(int g) const {
        return APART ? (g % K / E ^ turn) * E + g % E : g % K;
    }

    // Bring the rows of a tile.
    __device__ __forceinline__ void read(T* tile, int lane) {
        z = reinterpret_cast<P*>(tile) + (APART ? OF_ROW : PIECES) * lane;
#pragma unroll
        for (int j = 0; j < PIECES; ++j) at(j).widen_to(v + j * E);
    }
    // The first column whose logit is the largest.
    __device__ __forceinline__ int best(int r, C m) const {
        int place = K;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int at = column(r * K + k);
            if (v[r * K + k] == m && at < place) place = at;
        }
        return place;
    }
    static __device__ __forceinline__ C largest(const C* row) {
        C m = row[0];  // a NaN is not kept
#pragma unroll
        for (int k = 1; k < K; ++k) m = Maximum::of(m, row[k]);
        return m;
    }
    // Exponentials in place of the logits; their sum, neighbours first, which does not depend on `turn`.
    static __device__ __forceinline__ C exponentials(C* row, C m) {
#pragma unroll
        for (int k = 0; k < K; ++k) row[k] = exponential_of_finite<T>(row[k] - m);
        return sum_of<K>(row);
    }
    template <int N> static __device__ __forceinline__ C sum_of(const C* x) {
        constexpr int GROUP = APART && N > COMMON * E ? COMMON * E : 1;
        constexpr int HALF = (N / GROUP - N / GROUP / 2) * GROUP;
        if constexpr (N == 1) return x[0];
        else return sum_of<HALF>(x) + sum_of<N - HALF>(x + HALF);
    }
    __device__ __forceinline__ void write(const C (&scale)[2]) const {
#pragma unroll
        for (int j = 0; j < PIECES; ++j) {
            C d[E];
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = v[j * E + e] * scale[(j * E + e) / K];
            at(j) = P::of(d);
        }
    }
};

// A warp's tiles in memory.
template <class T, int K> struct WarpTiles {
    static constexpr int PACKS = TILE_ROWS * K * int(sizeof(T)) / 16, E = PACK<T>;
    int lane;

    // Every 32nd pack: of a whole tile, so that their number is known, or of `count` elements.
    template <class F, class G, class H>
    __device__ __forceinline__ void move(int64 left, F&& pack, G&& element, H&& beyond) const {
        if (left >= TILE_ROWS) {
#pragma unroll
            for (int at = 0; at < PACKS; at += 32)
                if (at + 32 <= PACKS || at + lane < PACKS) pack(at);
            return;
        }
        int count = left <= 0 ? 0 : int(left) * K;
#pragma unroll 1
        for (int at = 0; at + lane < count / E; at += 32) pack(at);
        if (count / E * E + lane < count) element(count / E * E + lane);
        if (left > 0)
#pragma unroll 1
            for (int at = count + lane; at < TILE_ROWS * K; at += 32) beyond(at);
    }
    __device__ __forceinline__ void request(const T* from, T* tile, int64 left) const {
        const uint4* packs = reinterpret_cast<const uint4*>(from) + lane;
        uint4* to = reinterpret_cast<uint4*>(tile) + lane;
        move(left, [&](int at) { ptx::copy_async<16>(to + at, packs + at); },
             [&](int at) { tile[at] = from[at]; }, [&](int at) { tile[at] = T{}; });
        ptx::copy_async_commit();
    }
    __device__ __forceinline__ void back(const T* tile, T* to, int64 left) const {
        uint4* packs = reinterpret_cast<uint4*>(to) + lane;
        const uint4* from = reinterpret_cast<const uint4*>(tile) + lane;
        move(left, [&](int at) { ptx::store_global(packs + at, from[at]); },
             [&](int at) { to[at] = tile[at]; }, [](int) {});
    }
};

// What all rows have in common.
template <class T, int K> struct Common {
    using C = compute_of<T>;
    C factor;     // of the gradient
    int classes;  // no label is below it where the factor is not finite: then no row is usual
    int ignored;  // the label, if it is one of them
    int wanted;   // bits of what is
    __device__ __forceinline__ explicit Common(const SoftmaxArguments<T>& p) : factor(p.factor) {
        if (p.delta == nullptr) factor = C(0);
        else if (!p.factor_is_known) {
            C divisor = p.weigh == FIRST ? divisor_of_block<C>() : p.divisor.get();
            factor = p.upstream.get() / (p.empty_is_zero && divisor == C(0) ? C(1) : divisor);
        }
        classes = is_finite(factor) ? K : 0;
        ignored = p.has_ignore_index && uint64(p.ignore_index) < K ? int(p.ignore_index) : -1;
        wanted = (p.delta != nullptr ? DELTA : 0) | (p.row_loss != nullptr ? ROW_LOSS : 0)
            | (p.loss != nullptr ? LOSS : 0) | (p.weigh != KNOWN || p.correct_rows != nullptr ? COUNTS : 0)
            | (p.correct_rows != nullptr ? CORRECT : 0);
        ptx::forget(classes), ptx::forget(ignored), ptx::forget(wanted);  // kept, not made for each tile
    }
    enum { DELTA = 1, ROW_LOSS = 2, LOSS = 4, COUNTS = 8, CORRECT = 16 };
};

// The labels of a thread's rows in a tile; requested, not waited for.
template <class T, int K> struct PairLabels {
    using Rows = RowPair<T, K>;
    int64 y[2];

    template <class L> __device__ __forceinline__ void load(const void* at) {
        const L* labels = static_cast<const L*>(at);
        if (!Rows::APART && aligned<L, 2>(labels)) {
            Pack<L, 2> two = global::load<L, 2>(labels);
            y[0] = int64(two.v[0]), y[1] = int64(two.v[1]);
        } else {
            y[0] = int64(labels[0]), y[1] = int64(labels[Rows::row(0, 1)]);
        }
    }
    // at: the thread's first label in a tile of `left` rows and more
    __device__ __forceinline__ void request(
        const SoftmaxArguments<T>& p, const char* at, int lane, int64 left) {
        if (left >= TILE_ROWS) {
            if (p.label_bytes == 8) load<int64>(at);
            else if (p.label_bytes == 4) load<int>(at);
            else load<u8>(at);
        } else {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int row = Rows::row(lane, r);
                if (row < left) y[r] = p.label(p.rows - left + row);
            }
        }
    }
};

// Sums over the usual rows of a thread: losses after Kahan (1965), since all are finite and of one sign.
template <class C> struct UsualSums {
    C loss = C(0), over = C(0);
    int rows = 0, correct = 0;
    __device__ __forceinline__ void add_loss(C x) {
        C part = x - over, next = loss + part;
        over = (next - loss) - part;
        loss = next;
    }
    __device__ __forceinline__ void add_to(RowSums<C>& sums) const {
        sums.add_loss(loss), sums.add_loss(-over);
        sums.add_weight(C(rows));
        sums.correct += correct;
    }
};

// What the rounding of sum = a + b lost (Knuth 1969).
template <class C> __device__ __forceinline__ C lost_in(C sum, C a, C b) {
    C part = sum - a;
    return (a - (sum - part)) + (b - part);
}

// delta at the label, with p - 1 formed before it is rounded; the loss, with what its additions lose.
template <class T, class C> __device__ __forceinline__ T label_delta(C below, C scale, C factor) {
    return to_storage<T>(::fma(exponential_of_finite<T>(-below), scale, -factor));
}
template <class C> __device__ __forceinline__ C loss_of_row(C m, C z, C below, C sum) {  // log S + (m - z)
    C log_sum = log_of_sum(sum), loss = below + log_sum;
    return loss + (lost_in(below, m, -z) + lost_in(loss, below, log_sum));
}

// A usual row whose neighbour is not, with the same bits; its logits are in the tile.
template <class T, int K>
__device__ __forceinline__ void row_alone(
    const Common<T, K>& common, T* row, int label, bool counts, compute_of<T>* row_loss,
    UsualSums<compute_of<T>>& usual) {
    using C = compute_of<T>;
    C v[K];
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = C(widen(row[k]));
    C m = RowPair<T, K>::largest(v), z = C(widen(row[counts ? label : 0])), below = m - z;
    int best = 0;
    while (common.wanted & Common<T, K>::CORRECT && C(widen(row[best])) != m) ++best;
    C sum = RowPair<T, K>::exponentials(v, m);
    if (common.wanted & Common<T, K>::DELTA) {
        C scale = counts ? quotient_by_sum<T>(common.factor, sum) : C(0);
#pragma unroll
        for (int k = 0; k < K; ++k) row[k] = to_storage<T>(v[k] * scale);
        if (counts) row[label] = label_delta<T>(below, scale, common.factor);
    }
    C loss = counts ? loss_of_row(m, z, below, sum) : C(0);
    usual.add_loss(loss);
    if (common.wanted & Common<T, K>::ROW_LOSS) *row_loss = loss;
    usual.rows += counts;
    usual.correct += counts && best == label;
}

// Both rows of a thread, of a tile of which `left` rows are there; `first` is the tile's first row.
template <class T, int K>
__device__ __forceinline__ void pair(
    const SoftmaxArguments<T>& p, const Common<T, K>& common, RowPair<T, K>& mine, T* tile, int lane,
    int64 first, int left, const PairLabels<T, K>& labels, compute_of<T>* row_loss,
    UsualSums<compute_of<T>>& usual, RowSums<compute_of<T>>& sums) {
    using C = compute_of<T>;
    using Rows = RowPair<T, K>;
    int best[2] = {};
    C m[2], s[2], below[2], z[2];  // largest logit, sum of exponentials, m - z of the label
    T* at_label[2];
    bool counts[2], usual_row[2];
    mine.read(tile, lane);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        int row = Rows::row(lane, r), label = int(labels.y[r]);
        counts[r] = uint64(labels.y[r]) < uint64(common.classes) && label != common.ignored && row < left;
        at_label[r] = tile + row * K + (counts[r] ? label : 0);
        z[r] = C(widen(*at_label[r]));
        m[r] = Rows::largest(mine.v + r * K);
    }
    if (common.wanted & Common<T, K>::CORRECT) best[0] = mine.best(0, m[0]), best[1] = mine.best(1, m[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        s[r] = Rows::exponentials(mine.v + r * K, m[r]), below[r] = m[r] - z[r];
        usual_row[r] = s[r] + below[r] < C(MANY);  // no NaN
    }
    if (!(counts[0] && counts[1])) {
#pragma unroll
        for (int r = 0; r < 2; ++r)  // or nothing is wanted of it
            usual_row[r] = usual_row[r] && (counts[r] || Rows::row(lane, r) >= left
                                            || (p.has_ignore_index && labels.y[r] == p.ignore_index));
    }
    if (!(usual_row[0] && usual_row[1])) {
#pragma unroll 1
        for (int r = 0; r < 2; ++r) {
            int row = Rows::row(lane, r), label = int(r == 0 ? labels.y[0] : labels.y[1]);
            T* at = tile + row * K;
            if (row >= left) continue;
            if (!(r == 0 ? usual_row[0] : usual_row[1])) whole_row(p, first + row, at, sums);
            else row_alone(common, at, label, r == 0 ? counts[0] : counts[1],
                           row_loss + r * Rows::row(0, 1), usual);
        }
        return;
    }
    if (common.wanted & Common<T, K>::DELTA) {
        C scale[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) scale[r] = counts[r] ? quotient_by_sum<T>(common.factor, s[r]) : C(0);
        mine.write(scale);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            T d = label_delta<T>(below[r], scale[r], common.factor);
            if (counts[r]) *at_label[r] = d;
        }
    }
    if (common.wanted & (Common<T, K>::LOSS | Common<T, K>::ROW_LOSS)) {
        Pack<C, 2> losses;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            losses.v[r] = counts[r] ? loss_of_row(m[r], z[r], below[r], s[r]) : C(0);
            usual.add_loss(losses.v[r]);
        }
        if (common.wanted & Common<T, K>::ROW_LOSS) {
            if (!Rows::APART && left == TILE_ROWS && aligned<C, 2>(row_loss)) global::store(row_loss, losses);
            else
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    if (Rows::row(lane, r) < left) row_loss[r * Rows::row(0, 1)] = losses.v[r];
        }
    }
    if (common.wanted & Common<T, K>::COUNTS)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            usual.rows += counts[r];
            usual.correct += counts[r] && best[r] == int(labels.y[r]);
        }
}

template <class T, int K>
__device__ __forceinline__ void softmax_cross_entropy_pairs(const SoftmaxArguments<T>& p) {
    using C = compute_of<T>;
    using Rows = RowPair<T, K>;
    extern __shared__ uint4 tiles_in_shared_memory[];
    constexpr int TILE = TILE_ROWS * K;
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, tiles = p.shared_packs;
    WarpTiles<T, K> copy = {lane};
    T* room = reinterpret_cast<T*>(tiles_in_shared_memory) + warp * tiles * TILE;
    int64 first = (int64(blockIdx.x) * WARPS + warp) * TILE_ROWS, left = p.rows - first, later = left;
    uint64 step = uint64(gridDim.x) * (WARPS * TILE_ROWS);  // rows, from one tile to the next
    const T* from = p.logits + first * K;
    int place = 0, ahead = 0;  // of the tile, of the one that is requested next
    auto request = [&]() {
        copy.request(from, room + ahead * TILE, later);
        from += step * K, later -= step;
        ahead = ahead + 1 < tiles ? ahead + 1 : 0;
    };
    for (int n = 1; n < tiles; ++n) request();
    const char* at = static_cast<const char*>(p.labels) + (first + Rows::row(lane, 0)) * p.label_bytes;
    PairLabels<T, K> labels, next = {};
    next.request(p, at, lane, left);
    C* row_loss = p.row_loss + first + Rows::row(lane, 0);
    T* to = p.delta + first * K;
    RowSums<C> sums;  // of the rows that are not usual
    UsualSums<C> usual;
    sums.clear();
    if (p.weigh == FIRST) weigh_all_rows(p);
    Common<T, K> common(p);
    RowPair<T, K> mine(lane);
    for (; left > 0; left -= step, first += step) {
        if (tiles > 2) ptx::copy_async_wait<1>();
        else ptx::copy_async_wait<0>();
        __syncwarp();  // the tile is there, and the one before has left its place
        request();
        labels = next;
        at += step * uint32(p.label_bytes);
        next.request(p, at, lane, left - int64(step));
        T* tile = room + place * TILE;
        int here = left < TILE_ROWS ? int(left) : TILE_ROWS;
        pair(p, common, mine, tile, lane, first, here, labels, row_loss, usual, sums);
        if (common.wanted & Common<T, K>::DELTA) {
            __syncwarp();
            copy.back(tile, to, left);
        }
        to += step * K, row_loss += step;
        place = place + 1 < tiles ? place + 1 : 0;
    }
    usual.add_to(sums);
    finish_sums_of_threads(p, sums);
}

enum Columns {
    k1 = 1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11, k12, k13, k14, k15, k16,
    k17, k18, k19, k20, k21, k22, k23, k24, k25, k26, k27, k28, k29, k30, k31, k32
};

#define ENTRY(columns, T)                                                   \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS<columns>) \
        softmax_cross_entropy_pairs_##columns##_##T(                        \
            const __grid_constant__ SoftmaxArguments<T> p) {                \
        softmax_cross_entropy_pairs<T, columns>(p);                         \
    }
#define EACH(columns) ENTRY(columns, f32) ENTRY(columns, f16) ENTRY(columns, bf16)
#ifdef ONLY_FORMULA
#define JOIN(columns, T) ENTRY(columns, T)
JOIN(ONLY_FORMULA, ONLY_DTYPE)
#else
EACH(k1) EACH(k2) EACH(k3) EACH(k4) EACH(k5) EACH(k6) EACH(k7) EACH(k8)
EACH(k9) EACH(k10) EACH(k11) EACH(k12) EACH(k13) EACH(k14) EACH(k15) EACH(k16)
EACH(k17) EACH(k18) EACH(k19) EACH(k20) EACH(k21) EACH(k22) EACH(k23) EACH(k24)
EACH(k25) EACH(k26) EACH(k27) EACH(k28) EACH(k29) EACH(k30) EACH(k31) EACH(k32)
#endif
