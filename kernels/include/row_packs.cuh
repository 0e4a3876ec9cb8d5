// row_packs.cuh - one thread's packs of a row in registers, shared memory and memory; see
// softmax_cross_entropy.cu. blockDim.x is a power of two from 32 on.
#pragma once
#include "softmax.cuh"
#include "vector.cuh"

// Bytes of a row that a thread keeps in registers; as many elements as fit 16 words of 32 bits.
template <class T> constexpr int HELD_BYTES = sizeof(T) == 2 ? 32 : 64;
constexpr int GROUP_THREADS = 256;  // of a block, at most

// Statistics of a group of threads in each of them. `turn` alternates between two sets of slots: a
// thread overwrites a slot only after a barrier that follows its last read, so one barrier a row is enough.
template <int CLUSTER, class C>
__device__ __forceinline__ Statistics<C> combine_group(
    Statistics<C> own, bool spread, bool best, int turn) {
    own = combine_lanes(own, 32, spread, best);
    if (CLUSTER == 1 && blockDim.x == 32) return own;
    __shared__ Statistics<C> slots[2][GROUP_THREADS / 32];
    int warps = int(blockDim.x) / 32, lane = int(threadIdx.x) % 32;
    if (lane == 0) slots[turn][threadIdx.x / 32] = own;
    if constexpr (CLUSTER > 1) ptx::cluster_sync();
    else __syncthreads();
    Statistics<C> all = Statistics<C>::none();
    for (int i = lane; i < CLUSTER * warps; i += 32) {
        const Statistics<C>* slot = &slots[turn][i & (warps - 1)];
        if constexpr (CLUSTER > 1) slot = ptx::shared_of_rank(slot, uint32(i / warps));
        all = merge(all, *slot);
    }
    return combine_lanes(all, 32, spread, best);
}

// The same of what the blocks of a row have left in memory.
template <class C>
__device__ __forceinline__ Statistics<C> combine_parts(
    const Statistics<C>* partial, int parts, bool spread, bool best) {
    Statistics<C> all = Statistics<C>::none();
    for (int i = int(threadIdx.x) % 32; i < parts; i += 32) all = merge(all, partial[i]);
    return combine_lanes(all, 32, spread, best);
}

template <class T, bool GENERAL> struct RowPacks {
    using C = compute_of<T>;
    static constexpr int E = PACK<T>, HELD = GENERAL ? 0 : HELD_BYTES<T> / 16;
    using Values = C[E];
    using Raw = Words<T, E>;  // a pack as it lies in memory

    const SoftmaxArguments<T>& p;
    int64 row, base;   // base: column of the row at which pack 0 begins, below 0 in a head
    const T* z;        // pack 0 of the logits, on 16 bytes
    T* delta;          // its place in the gradient, from begin_writing on
    int begin, end;    // elements of the packs that the row has, from pack 0 on: 32 bits are enough
    int packs, limit;  // limit: packs from here on are not read: `packs`, or 0 for an ignored row
    int shared_packs;  // of each thread
    C kept[HELD == 0 ? 1 : HELD][E];  // exponentials
    Exponential<T> kept_x;            // of those

    __device__ __forceinline__ RowPacks(
        const SoftmaxArguments<T>& p, int64 row, int part, int parts, int shared_packs)
        : p(p), row(row), delta(nullptr), shared_packs(shared_packs), kept_x(minus_infinity<C>()) {
        const T* first = p.logits + row * p.stride_logits;
        int head = misalignment(first);
        int64 all = row < p.rows ? (head + p.cols + E - 1) / E : 0;
        int64 each = (all + parts - 1) / parts, from = each * part < all ? each * part : all;
        base = from * E - head;
        z = first + base;
        packs = int(each);  // from `end` on they are empty
        begin = base < 0 ? int(-base) : 0;
        end = p.cols - base < int64(packs) * E ? int(p.cols - base) : packs * E;
        limit = packs;
    }

    __device__ __forceinline__ int pack(int turn) const {
        return turn * int(blockDim.x) + int(threadIdx.x);
    }
    __device__ __forceinline__ int lo(int pack) const { return pack == 0 ? begin : 0; }
    __device__ __forceinline__ int hi(int pack) const {
        return end - pack * E < E ? end - pack * E : E;
    }
    __device__ __forceinline__ bool whole(int pack) const {
        return (pack > 0 || begin == 0) && pack * E + E <= end;
    }

    // One thread of all that work on the row: whose pack has column `label`; the first one for -1.
    __device__ __forceinline__ bool owns(int64 label) const {
        if (label < 0) return base <= 0 && threadIdx.x == 0;
        int64 at = label - base;
        return at >= begin && at < end && (int(at) / E & int(blockDim.x - 1)) == int(threadIdx.x);
    }
    __device__ __forceinline__ T logit(int64 label) const { return z[label - base]; }

    // -- reading ---------------------------------------------------------------------------------

    __device__ __forceinline__ Raw read(int pack) const {
        Raw raw;
        if (pack < limit && whole(pack)) {
            raw.words[0] = *reinterpret_cast<const uint4*>(z + pack * E);
        } else {
            int from = lo(pack), to = pack < limit ? hi(pack) : 0;
#pragma unroll
            for (int e = 0; e < E; ++e)
                raw.pack.v[e] = e >= from && e < to ? z[pack * E + e] : to_storage<T>(minus_infinity<C>());
        }
        ptx::as_words(raw.words[0]);
        return raw;
    }
    static __device__ __forceinline__ uint4* shared_slot(int turn) {
        extern __shared__ uint4 rows_in_shared_memory[];
        int thread = (turn * int(blockDim.y) + int(threadIdx.y)) * int(blockDim.x) + int(threadIdx.x);
        return rows_in_shared_memory + thread;
    }
    // A pack beyond the registers: in shared memory, or else read again.
    __device__ __forceinline__ Raw kept_outside(int turn) const {
        Raw raw;
        if (turn < HELD + shared_packs) raw.words[0] = *shared_slot(turn - HELD);
        else raw = read(pack(turn));
        ptx::as_words(raw.words[0]);
        return raw;
    }
    __device__ __forceinline__ void fetch(int pack, uint4* slot) const {
        if (pack < limit && whole(pack)) ptx::copy_async<16>(slot, z + pack * E);
        else *slot = read(pack).words[0];
    }
    // The logits of a pack, capped; -inf where there are none, which counts for nothing.
    __device__ __forceinline__ void logits_of(const Raw& raw, int pack, Values& v) const {
#pragma unroll
        for (int e = 0; e < E; ++e) v[e] = C(widen(raw.pack.v[e]));
        if (!GENERAL || p.soft_cap == C(0) || pack >= limit) return;
        int from = lo(pack), to = hi(pack);
#pragma unroll
        for (int e = 0; e < E; ++e)
            if (e >= from && e < to) v[e] = soft_capped<T>(v[e], p.soft_cap);
    }

    // Start the copies to shared memory, then fill the registers.
    __device__ __forceinline__ void load(bool wanted) {
        if (!wanted) limit = 0;
        for (int s = 0; s < shared_packs && pack(HELD + s) < packs; ++s)
            fetch(pack(HELD + s), shared_slot(s));
        ptx::copy_async_commit();
        if constexpr (HELD > 0) {
            Raw raw[HELD];
#pragma unroll
            for (int j = 0; j < HELD; ++j) raw[j] = read(pack(j));
#pragma unroll
            for (int j = 0; j < HELD; ++j) logits_of(raw[j], pack(j), kept[j]);
        }
    }

    // -- statistics ------------------------------------------------------------------------------

    static __device__ __forceinline__ C largest(const Values& v) {
        C m = minus_infinity<C>();
#pragma unroll
        for (int e = 0; e < E; ++e) m = Maximum::of(v[e], m);
        return m;
    }
    __device__ __forceinline__ int64 place_of(C value, const Values& v, int pack) const {
        int place = 0;
#pragma unroll
        for (int e = E - 1; e >= 0; --e)
            if (v[e] == value) place = e;
        return base + pack * E + place;
    }
    __device__ __forceinline__ void taus(int pack, Values& tau) const {
        int from = lo(pack), to = hi(pack);
        int64 k = base + pack * E;
        if (p.probabilities != nullptr) {
            Pack<C, E> t = load_part<C, E>(p.probabilities + row * p.stride_probabilities + k, from, to);
#pragma unroll
            for (int e = 0; e < E; ++e) tau[e] = ::fma(p.one_minus_eps, t.v[e], p.eps_over_K);
        } else {
#pragma unroll
            for (int e = 0; e < E; ++e) tau[e] = p.eps_over_K;
        }
        if (p.class_weight == nullptr) return;
        Pack<C, E> w = load_part<C, E>(p.class_weight + k, from, to);
#pragma unroll
        for (int e = 0; e < E; ++e) tau[e] *= w.v[e];
    }
    // Add tau (z - origin) and tau of a pack; in the labels form in units of eps / K.
    __device__ __forceinline__ void add_targets(
        const Values& v, int pack, C origin, Statistics<C>& s) const {
        Values tau;
        if constexpr (GENERAL) taus(pack, tau);
        int from = lo(pack), to = hi(pack);
        C dot_tau_z = C(0), sum_tau = C(0);
#pragma unroll
        for (int e = 0; e < E; ++e) {
            C t = C(1);
            if constexpr (GENERAL) t = tau[e];
            if (e >= from && e < to) dot_tau_z = ::fma(t, v[e] - origin, dot_tau_z), sum_tau += t;
        }
        s.dot_tau_z += dot_tau_z;
        s.sum_tau += sum_tau;
    }
    // Add a pack to statistics that are relative to `x`, and move both to a larger maximum.
    __device__ __forceinline__ void add(
        const Values& v, int pack, Statistics<C>& s, Exponential<T>& x) const {
        C m = largest(v);
        if (m > s.maximum) {
            s.move_to(m);
            x = Exponential<T>(m);
            if (p.wants_best()) s.best = place_of(m, v, pack);
        }
        C sum = C(0);
#pragma unroll
        for (int e = 0; e < E; ++e) sum += x.of(v[e]);
        s.sum += sum;
        if (p.spread()) add_targets(v, pack, x.origin, s);
    }

    __device__ __forceinline__ Statistics<C> statistics() {
        Statistics<C> s = Statistics<C>::none();
        add_held(s);
        Exponential<T> running = kept_x;
        ptx::copy_async_wait<0>();
#pragma unroll 1
        for (int turn = HELD; pack(turn) < limit; ++turn) {
            Values v;
            logits_of(kept_outside(turn), pack(turn), v);
            add(v, pack(turn), s, running);
        }
        return s;
    }
    // What is in registers, all at once: there the maximum is known before the first exponential.
    __device__ __forceinline__ void add_held(Statistics<C>& s) {
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            C m = largest(kept[j]);
            if (m > s.maximum) {
                s.maximum = m;
                if (p.wants_best()) s.best = place_of(m, kept[j], pack(j));
            }
        }
        kept_x = Exponential<T>(s.maximum);
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            if (p.spread() && pack(j) < limit) add_targets(kept[j], pack(j), kept_x.origin, s);
            C sum = C(0);
#pragma unroll
            for (int e = 0; e < E; ++e) sum += kept[j][e] = kept_x.of(kept[j][e]);
            s.sum += sum;
        }
    }

    // -- writing ---------------------------------------------------------------------------------

    __device__ __forceinline__ void begin_writing() {
        delta = p.delta + row * p.stride_delta + base;
    }
    __device__ __forceinline__ void put(int pack, const Values& d) const {
        store_words<T>(delta + pack * E, to_storage_all<T>(d), lo(pack), hi(pack));
    }
    __device__ __forceinline__ void write_zeros() const {
        Values zeros = {};
        for (int turn = 0; pack(turn) < packs; ++turn) put(pack(turn), zeros);
    }
    // delta of a pack of logits; `grad_scale` takes x.of(z) to the softmax times what multiplies it.
    __device__ __forceinline__ void put_logits(
        int pack, const Values& v, const Exponential<T>& x, C grad_scale, const Target<C>& target,
        const Outcome<T>& outcome, C log_sum) const {
        Values d;
        if constexpr (GENERAL) {
            Values tau;
            if (p.spread()) taus(pack, tau);
            C inverse = C(1) / p.soft_cap;
#pragma unroll
            for (int e = 0; e < E; ++e) {
                d[e] = x.of(v[e]) * grad_scale;
                if (p.spread()) d[e] -= tau[e] * target.factor;
                if (p.soft_cap != C(0)) d[e] *= cap_slope(v[e], inverse);
                if (p.log_output) d[e] = v[e] - outcome.origin - log_sum;
            }
        } else {
            C smoothing = p.eps_over_K * target.factor;
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = ::fma(x.of(v[e]), grad_scale, -smoothing);
        }
        put(pack, d);
    }
    template <bool ALL_FROM_MEMORY>
    __device__ __forceinline__ void write(const Target<C>& target, const Outcome<T>& outcome) const {
        Exponential<T> x(outcome.all.maximum);
        C grad_scale = x.to(outcome.origin) * outcome.grad_scale;
        C log_sum = GENERAL && p.log_output ? ::log(outcome.all.sum) : C(0);
        if constexpr (!ALL_FROM_MEMORY) write_held(target, outcome);
#pragma unroll 1
        for (int turn = ALL_FROM_MEMORY ? 0 : HELD; pack(turn) < packs; ++turn) {
            Values v;
            logits_of(ALL_FROM_MEMORY ? read(pack(turn)) : kept_outside(turn), pack(turn), v);
            put_logits(pack(turn), v, x, grad_scale, target, outcome, log_sum);
        }
    }
    __device__ __forceinline__ void write_held(
        const Target<C>& target, const Outcome<T>& outcome) const {
        C grad_scale = kept_x.to(outcome.origin) * outcome.grad_scale;
        C smoothing = p.eps_over_K * target.factor;
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            if (pack(j) >= packs) break;
            Values d;
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = ::fma(kept[j][e], grad_scale, -smoothing);
            put(pack(j), d);
        }
    }
};
