// row_packs.cuh - one thread's packs of a row in registers, shared memory and memory; see
// softmax_cross_entropy.cu. blockDim.x is a power of two from 32 on.
#pragma once
#include "softmax.cuh"
#include "vector.cuh"

constexpr int HELD_BYTES = 64;  // of a row that a thread keeps in registers
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

template <bool LONG> struct place_type { using type = int; using count = uint32; };
template <> struct place_type<true> { using type = int64; using count = uint64; };

// LONG: a row may have 2^31 elements and more; of others a position has 32 bits.
template <class T, bool GENERAL, bool LONG> struct RowPacks {
    using C = compute_of<T>;
    static constexpr int E = PACK<T>, HELD = GENERAL ? 0 : HELD_BYTES / 16;
    static constexpr int EAGER = GENERAL ? 4 : 0;  // packs in shared memory that do not wait for the label
    using Values = C[E];
    using Raw = Words<T, E>;  // a pack as it lies in memory

    using Place = typename place_type<LONG>::type;

    const SoftmaxArguments<T>& p;
    int64 row;
    Place base;        // column of the row at which pack 0 begins, below 0 in a head
    const T* z;        // pack 0 of the logits, on 16 bytes
    T* delta;          // its place in the gradient, from begin_writing on
    int begin, end;    // elements of the packs that the row has, from pack 0 on: 32 bits are enough
    int packs, limit;  // limit: packs from here on are not read: `packs`, or 0 for an ignored row
    int whole_from, whole_to;  // the packs that the row fills
    int shared_packs;  // of each thread
    Raw held[HELD == 0 ? 1 : HELD];
    C kept[HELD == 0 ? 1 : HELD][E];  // exponentials of those
    Exponential<T> kept_x;            // relative to this

    __device__ __forceinline__ RowPacks(
        const SoftmaxArguments<T>& p, int64 row, int part, int parts, int shared_packs)
        : p(p), row(row), delta(nullptr), shared_packs(shared_packs), kept_x(minus_infinity<C>()) {
        using Count = typename place_type<LONG>::count;
        const T* first = p.logits + row * p.stride_logits;
        int head = misalignment(first);
        Count cols = Count(p.cols), all = row < p.rows ? (cols + Count(head + E - 1)) / E : 0;
        Count each = (all + Count(parts - 1)) / Count(parts), from = each * Count(part) < all ? each * Count(part) : all;
        base = Place(from * E) - head;
        z = first + base;
        packs = int(each);  // from `end` on they are empty
        begin = base < 0 ? int(-base) : 0;
        Count left = part > 0 && from == all ? 0 : cols - Count(base);
        end = int(left < each * E ? left : each * E);
        limit = packs;
        whole_from = begin > 0;
        whole_to = int(uint32(end) / E);
    }

    // The packs of a thread in turn. In registers those of a warp are neighbours, so that their distance is
    // a constant of the code.
    __device__ __forceinline__ int pack(int turn) const {
        if (turn >= HELD) return turn * int(blockDim.x) + int(threadIdx.x);
        return int(threadIdx.x) / 32 * (32 * HELD) + int(threadIdx.x) % 32 + 32 * turn;
    }
    // The thread whose pack it is.
    __device__ __forceinline__ int thread_of(int pack) const {
        if (pack >= HELD * int(blockDim.x)) return pack & int(blockDim.x - 1);
        return int(uint32(pack) / (32 * (HELD == 0 ? 1 : HELD)) * 32 + uint32(pack) % 32);
    }
    __device__ __forceinline__ int lo(int pack) const { return pack == 0 ? begin : 0; }
    __device__ __forceinline__ int hi(int pack) const {
        return end - pack * E < E ? end - pack * E : E;
    }
    __device__ __forceinline__ bool whole(int pack) const {
        return pack >= whole_from && pack < whole_to;
    }

    // Whether the row fills all that the thread holds.
    __device__ __forceinline__ bool complete() const {
        return pack(0) >= whole_from && pack(HELD - 1) < whole_to;
    }
    __device__ __forceinline__ bool has_parts() const { return begin > 0 || end % E != 0; }
    __device__ __forceinline__ bool is_part(int pack) const { return pack < packs && !whole(pack); }

    // One thread of all that work on the row: whose pack has column `label`; the first one for -1.
    __device__ __forceinline__ bool owns(int64 label) const {
        if (label < 0) return base <= 0 && threadIdx.x == 0;
        int64 at = label - base;
        return at >= begin && at < end && thread_of(int(uint32(at) / E)) == int(threadIdx.x);
    }

    // -- reading ---------------------------------------------------------------------------------

    __device__ __forceinline__ Raw read(int pack) const {
        Raw raw;
        if (pack < limit && whole(pack)) raw.words[0] = *reinterpret_cast<const uint4*>(z + pack * E);
        else raw = read_part(pack, pack < limit ? hi(pack) : 0);
        ptx::as_words(raw.words[0]);
        return raw;
    }
    __device__ __forceinline__ Raw read_part(int pack, int to) const {
        Raw raw;
        int from = lo(pack);
#pragma unroll
        for (int e = 0; e < E; ++e)
            raw.pack.v[e] = e >= from && e < to ? z[pack * E + e] : to_storage<T>(minus_infinity<C>());
        return raw;
    }
    static __device__ __forceinline__ uint4* shared_slot(int turn) {
        extern __shared__ uint4 rows_in_shared_memory[];
        int thread = (turn * int(blockDim.y) + int(threadIdx.y)) * int(blockDim.x) + int(threadIdx.x);
        return rows_in_shared_memory + thread;
    }
    // The thread's packs beyond the registers, one after another. The first ones are in shared memory. Their
    // addresses there are added up: a product for each would cost more than all else that a turn does.
    struct Cursor {
        int pack;
        uint4* slot;
    };
    __device__ __forceinline__ Cursor outside(int slot) const {
        return {pack(HELD + slot), shared_slot(slot)};
    }
    static __device__ __forceinline__ void advance(Cursor& at) {
        at.pack += int(blockDim.x);
        at.slot += int(blockDim.x * blockDim.y);
    }
    // The first of the thread's packs that is behind `slots` slots of shared memory, or `to` if it is less.
    __device__ __forceinline__ int behind(int slots, int to) const {
        int first = pack(HELD + slots);
        return first < to ? first : to;
    }
    static __device__ __forceinline__ Raw in_slot(const Cursor& at) {
        Raw raw;
        raw.words[0] = *at.slot;
        ptx::as_words(raw.words[0]);
        return raw;
    }
    __device__ __forceinline__ void fetch(int from, int to) const {
        if (pack(HELD + from) >= limit) return ptx::copy_async_commit();
        Cursor at = outside(from);
        int end = behind(to, limit), whole_end = end < whole_to ? end : whole_to;
        if (GENERAL && at.pack < whole_from && at.pack < end) *at.slot = read(at.pack).words[0], advance(at);
        const uint4* source = reinterpret_cast<const uint4*>(z);
#pragma unroll 1
        for (; at.pack < whole_end; advance(at)) ptx::copy_async<16>(at.slot, source + at.pack);
#pragma unroll 1
        for (; at.pack < end; advance(at)) *at.slot = read(at.pack).words[0];
        ptx::copy_async_commit();
    }
    // The logits of a pack, capped; -inf where there are none, which counts for nothing.
    __device__ __forceinline__ void logits_of(const Raw& raw, int pack, Values& v) const {
        widen_all(raw, v);
        if (!GENERAL || p.soft_cap == C(0) || pack >= limit) return;
        int from = lo(pack), to = hi(pack);
#pragma unroll
        for (int e = 0; e < E; ++e)
            if (e >= from && e < to) v[e] = soft_capped<T>(v[e], p.soft_cap);
    }

    // Request what the registers hold, or the first packs in shared memory. It is done before anything of
    // the row is known, so that an ignored row costs these bytes: 16 KiB of a block at most.
    __device__ __forceinline__ void request() {
        if constexpr (HELD == 0) return fetch(0, shared_packs < EAGER ? shared_packs : EAGER);
        const uint4* at = reinterpret_cast<const uint4*>(z) + pack(0);
        // In one place, whatever the row fills: where two met, words were copied, which waits for them.
#pragma unroll
        for (int j = 0; j < HELD; ++j)
            if ((j > 0 || pack(0) >= whole_from) && pack(j) < whole_to) held[j].words[0] = at[32 * j];
        if (complete()) return;
        C nothing[E];
#pragma unroll
        for (int e = 0; e < E; ++e) nothing[e] = minus_infinity<C>();
#pragma unroll
        for (int j = 0; j < HELD; ++j)
            if (!whole(pack(j))) held[j] = to_storage_all<T>(nothing);
        if (!has_parts()) return;
#pragma unroll
        for (int j = 0; j < HELD; ++j)
            if (is_part(pack(j))) held[j] = read_part(pack(j), hi(pack(j)));
    }
    // Request the rest, of a row that is wanted.
    __device__ __forceinline__ void request_rest(bool wanted) {
        if (!wanted) limit = 0;
        fetch(EAGER, shared_packs);
    }

    // The label's logit, of its owner: from the registers before `statistics`, from elsewhere after it.
    __device__ __forceinline__ C logit_in_registers(int64 label) const {
        C found = C(0);
        int at = int(label - base) - pack(0) * E;  // from the thread's first pack on
#pragma unroll
        for (int j = 0; j < HELD; ++j, at -= 32 * E) {
            Values v;
            widen_all(held[j], v);
#pragma unroll
            for (int e = 0; e < E; ++e) found = at == e ? v[e] : found;
        }
        return found;
    }
    __device__ __forceinline__ bool is_outside(int64 label) const {
        return uint32(label - base) / E >= HELD * blockDim.x;
    }
    template <bool ALL_FROM_MEMORY> __device__ __forceinline__ C logit_outside(int64 label) const {
        int at = int(label - base), turn = at / E / int(blockDim.x);
        if (ALL_FROM_MEMORY || turn >= HELD + shared_packs) return p.capped(C(widen(z[at])));
        return p.capped(C(widen(reinterpret_cast<const T*>(shared_slot(turn - HELD))[at % E])));
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
        C dot_tau_z = C(0), sum_tau = C(0);
        if (whole(pack)) {
#pragma unroll
            for (int e = 0; e < E; ++e) {
                C t = GENERAL ? tau[e] : C(1);
                dot_tau_z = ::fma(t, v[e] - origin, dot_tau_z), sum_tau += t;
            }
        } else {
            int from = lo(pack), to = hi(pack);
#pragma unroll
            for (int e = 0; e < E; ++e) {
                C t = GENERAL ? tau[e] : C(1);
                if (e >= from && e < to) dot_tau_z = ::fma(t, v[e] - origin, dot_tau_z), sum_tau += t;
            }
        }
        s.dot_tau_z += dot_tau_z;
        s.sum_tau += sum_tau;
    }
    // Add a pack to statistics that are relative to `x`, and move both to a larger maximum.
    __device__ __forceinline__ void add(
        const Raw& raw, int pack, Statistics<C>& s, Exponential<T>& x) const {
        Values v;
        logits_of(raw, pack, v);
        C m = GENERAL ? largest(v) : largest_of<T>({raw});
        if (m > s.maximum) {
            s.move_to(m);
            x = Exponential<T>(m);
            if (p.wants_best) s.best = place_of(m, v, pack);
        }
        C sum = x.of(v[0]);
#pragma unroll
        for (int e = 1; e < E; ++e) sum += x.of(v[e]);
        s.sum += sum;
        if (p.spread) add_targets(v, pack, x.origin, s);
    }

    __device__ __forceinline__ Statistics<C> statistics() {
        Statistics<C> s = Statistics<C>::none();
        add_held(s);
        Exponential<T> running = kept_x;
        ptx::copy_async_wait<0>();  // of an ignored row, too: its slots serve the next one
        if (pack(HELD) >= limit) return s;
        Cursor at = outside(0);
        int end = behind(shared_packs, limit);
#pragma unroll 1
        for (; at.pack < end; advance(at)) add(in_slot(at), at.pack, s, running);
#pragma unroll 1
        for (; at.pack < limit; at.pack += int(blockDim.x)) add(read(at.pack), at.pack, s, running);
        return s;
    }
    // What is in registers, all at once: there the maximum is known before the first exponential.
    __device__ __forceinline__ void add_held(Statistics<C>& s) {
        if constexpr (HELD == 0) return;
        s.maximum = largest_of(held);
        kept_x = Exponential<T>(s.maximum);
        if (p.wants_best) s.best = place_in_registers(s.maximum);
        if (p.spread) {
#pragma unroll
            for (int j = 0; j < HELD; ++j) {
                Values v;
                widen_all(held[j], v);
                if (pack(j) < limit) add_targets(v, pack(j), kept_x.origin, s);
            }
        }
#pragma unroll
        for (int j = 0; j < HELD; ++j) {
            Values v;
            widen_all(held[j], v);
#pragma unroll
            for (int e = 0; e < E; ++e) kept[j][e] = kept_x.of(v[e]);
            C sum = kept[j][0];
#pragma unroll
            for (int e = 1; e < E; ++e) sum += kept[j][e];
            s.sum = j == 0 ? sum : s.sum + sum;
        }
    }
    __device__ __forceinline__ int64 place_in_registers(C value) const {
        int64 place = Statistics<C>::none().best;
#pragma unroll
        for (int j = HELD - 1; j >= 0; --j) {
            Values v;
            widen_all(held[j], v);
            if (largest(v) == value && value != minus_infinity<C>()) place = place_of(value, v, pack(j));
        }
        return place;
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
        int pack, const Values& v, const Exponential<T>& x, C grad_scale, const Outcome<T>& outcome,
        C log_sum) const {
        Values d;
        if constexpr (GENERAL) {
            Values tau;
            if (p.spread) taus(pack, tau);
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = x.of(v[e]) * grad_scale;
            if (p.spread) {
#pragma unroll
                for (int e = 0; e < E; ++e) d[e] -= tau[e] * outcome.factor;
            }
            if (p.soft_cap != C(0)) {
                C inverse = C(1) / p.soft_cap;
#pragma unroll
                for (int e = 0; e < E; ++e) d[e] *= cap_slope(v[e], inverse);
            }
            if (p.log_output) {
#pragma unroll
                for (int e = 0; e < E; ++e) d[e] = v[e] - outcome.origin - log_sum;
            }
        } else {
            C smoothing = p.eps_over_K * outcome.factor;
#pragma unroll
            for (int e = 0; e < E; ++e) d[e] = ::fma(x.of(v[e]), grad_scale, -smoothing);
        }
        put(pack, d);
    }
    template <bool ALL_FROM_MEMORY>
    __device__ __forceinline__ void write(const Outcome<T>& outcome) const {
        Exponential<T> x(outcome.all.maximum);
        C grad_scale = x.to(outcome.origin) * outcome.grad_scale;
        C log_sum = GENERAL && p.log_output ? ::log(outcome.all.sum) : C(0);
        auto put_raw = [&](int pack, const Raw& raw) {
            Values v;
            logits_of(raw, pack, v);
            put_logits(pack, v, x, grad_scale, outcome, log_sum);
        };
        if constexpr (ALL_FROM_MEMORY) {
#pragma unroll 1
            for (int turn = 0; pack(turn) < packs; ++turn) put_raw(pack(turn), read(pack(turn)));
            return;
        }
        write_held(outcome);
        if (pack(HELD) >= packs) return;
        Cursor at = outside(0);
        int end = behind(shared_packs, packs);
        if (!GENERAL && aligned<T, E>(delta)) {  // whole packs, of which nothing is to be asked
            C smoothing = p.eps_over_K * outcome.factor;
            int whole_end = end < whole_to ? end : whole_to;
            uint4* to = reinterpret_cast<uint4*>(delta);
#pragma unroll 1
            for (; at.pack < whole_end; advance(at)) {
                Values d;
                widen_all(in_slot(at), d);
#pragma unroll
                for (int e = 0; e < E; ++e) d[e] = ::fma(x.of(d[e]), grad_scale, -smoothing);
                ptx::store_global(to + at.pack, to_storage_all<T>(d).words[0]);
            }
        }
#pragma unroll 1
        for (; at.pack < packs; advance(at)) put_raw(at.pack, at.pack < end ? in_slot(at) : read(at.pack));
    }
    __device__ __forceinline__ void write_held(const Outcome<T>& outcome) const {
        C grad_scale = kept_x.to(outcome.origin) * outcome.grad_scale;
        C smoothing = p.eps_over_K * outcome.factor;
        uint4* to = reinterpret_cast<uint4*>(delta) + pack(0);
        bool apart = !aligned<T, E>(delta);  // from the logits, modulo 16 bytes
        if (!apart && complete()) {  // nothing to ask of each pack
#pragma unroll
            for (int j = 0; j < HELD; ++j)
                ptx::store_global(to + 32 * j, delta_of_held(j, grad_scale, smoothing).words[0]);
            return;
        }
#pragma unroll
        for (int j = 0; j < HELD; ++j)
            if (!apart && whole(pack(j)))
                ptx::store_global(to + 32 * j, delta_of_held(j, grad_scale, smoothing).words[0]);
        if (!apart && !has_parts()) return;
        C again = smoothing;
        ptx::forget(again);  // so that nothing of the above is kept for what seldom follows
#pragma unroll
        for (int j = 0; j < HELD; ++j)
            if (apart || is_part(pack(j))) put_part(pack(j), delta_of_held(j, grad_scale, again));
    }
    __device__ __forceinline__ Raw delta_of_held(int j, C grad_scale, C smoothing) const {
        Values d;
#pragma unroll
        for (int e = 0; e < E; ++e) d[e] = ::fma(kept[j][e], grad_scale, -smoothing);
        return to_storage_all<T>(d);
    }
    __device__ __forceinline__ void put_part(int pack, const Raw& made) const {
        int from = lo(pack), to = hi(pack);
#pragma unroll
        for (int e = 0; e < E; ++e)
            if (e >= from && e < to) delta[pack * E + e] = made.pack.v[e];
    }
};
