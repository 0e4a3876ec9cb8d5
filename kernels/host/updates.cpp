// updates.cpp - an optimizer's step over flat buffers in one pass, and what a step needs beside it.
#include "host.hpp"
#include "../include/rounding.cuh"
#include "../updates.cuh"

namespace {

using namespace updates;

template <class C> using Apply = void (*)(C* p, const C* g, C* const* s, const C* c, int64 n);

template <class Rule, class C> void apply(C* p, const C* g, C* const* s, const C* c, int64 n) {
    C own[FORMULA_COEFFICIENTS];
    for (int i = 0; i < FORMULA_COEFFICIENTS; ++i) own[i] = c[i];
    C *s0 = s[0], *s1 = s[1], *s2 = s[2];
    INDEPENDENT for (int64 i = 0; i < n; ++i) {
        C state[MOST_SLOTS] = {};
        if constexpr (Rule::SLOTS > 0) state[0] = s0[i];
        if constexpr (Rule::SLOTS > 1) state[1] = s1[i];
        if constexpr (Rule::SLOTS > 2) state[2] = s2[i];
        p[i] = Rule::apply(p[i], g[i], state, own);
        if constexpr (Rule::SLOTS > 0) s0[i] = state[0];
        if constexpr (Rule::SLOTS > 1) s1[i] = state[1];
        if constexpr (Rule::SLOTS > 2) s2[i] = state[2];
    }
}

using Prepare = void (*)(const double* h, double lr, double step, double* c);

#define APPLY(rule) apply<rule, C>,
#define PREPARE(rule) rule::prepare,
#define DECOUPLED_(rule) rule::DECOUPLED,
#define SLOTS_(rule) rule::SLOTS,
template <class C> constexpr Apply<C> APPLIES[] = {FOR_EACH_UPDATE(APPLY)};
constexpr Prepare PREPARES[] = {FOR_EACH_UPDATE(PREPARE)};
constexpr bool DECOUPLES[] = {FOR_EACH_UPDATE(DECOUPLED_)};
constexpr int SLOT_COUNTS[] = {FOR_EACH_UPDATE(SLOTS_)};

// How many coefficients a formula has: those that its `prepare` writes.
int coefficients_of(int formula) {
    constexpr double unwritten = -1e300;
    double h[FORMULA_COEFFICIENTS] = {}, c[FORMULA_COEFFICIENTS];
    for (double& number : c) number = unwritten;
    PREPARES[formula](h, 1.0, 1.0, c);
    int count = 0;
    while (count < FORMULA_COEFFICIENTS && c[count] != unwritten) ++count;
    return count;
}

template <class T, class C> ONCE void round_randomly(const C* from, void* to, const uint32* words, int64 n) {
    T* stored = static_cast<T*>(to);
    INDEPENDENT for (int64 i = 0; i < n; ++i) stored[i] = round_stochastic<T>(from[i], words[i]);
}

// Writes pieces of a flat buffer, rounded to nearest or stochastically.
template <class C> struct Writer {
    Matrix<C> to;
    int storage;
    const uint64* random;

    Writer(void* to, int storage, const uint64* random)
        : to(to, 0, storage), storage(storage), random(storage > STORED_F32 ? random : nullptr) {}
    void put(const C* from, int64 first, int64 n) const {
        if (random == nullptr) return to.put(from, 0, first, n);
        uint32 room[PIECE + 8];
        unsigned short rounded[PIECE];
        const uint32* words = draw(first, n, stream(random[1], ROUNDING_STREAM), random[0], room);
        if (storage == STORED_F16) round_randomly<float16>(from, rounded, words, n);
        else round_randomly<bfloat16>(from, rounded, words, n);
        to.put_bits(rounded, first, n);
    }
};

// g' of update.cu for elements of one piece: in `buffer`, or where g lies if nothing changes it.
template <class C> class Gradient {
    Matrix<C> g;
    int64 penalized;
    bool decoupled;
    C unscale, clip, l2, decay;
    bool scaled, clipped, decayed;

    static C number(const void* at, C none) { return at == nullptr ? none : *static_cast<const C*>(at); }

public:
    explicit Gradient(const UpdateArguments& a)
        : g(a.g, 0, a.gradient_storage), penalized(a.l2 == nullptr ? 0 : a.penalized),
          decoupled(DECOUPLES[a.formula]), unscale(number(a.unscale, C(1))), clip(number(a.clip, C(1))),
          l2(number(a.l2, C(0))), decay(number(a.decay, C(0))), scaled(a.unscale != nullptr),
          clipped(a.clip != nullptr), decayed(a.decay != nullptr) {}
    // Scales p first if the decay is decoupled.
    const C* piece(C* p, int64 first, int64 n, C* buffer) const {
        const C* x = g.read(0, first, n, buffer);
        if (scaled) {
            INDEPENDENT for (int64 i = 0; i < n; ++i) buffer[i] = x[i] * unscale;
            x = buffer;
        }
        if (first < penalized) {
            int64 count = smaller(n, penalized - first);
            INDEPENDENT for (int64 i = 0; i < count; ++i) buffer[i] = x[i] + p[i] * l2;
            for (int64 i = count; i < n; ++i) buffer[i] = x[i];
            x = buffer;
        }
        if (clipped) {
            INDEPENDENT for (int64 i = 0; i < n; ++i) buffer[i] = x[i] * clip;
            x = buffer;
        }
        if (decayed && decoupled) {
            INDEPENDENT for (int64 i = 0; i < n; ++i) p[i] *= decay;
        } else if (decayed) {
            INDEPENDENT for (int64 i = 0; i < n; ++i) buffer[i] = x[i] + p[i] * decay;
            x = buffer;
        }
        return x;
    }
};

template <class C> void update(const UpdateArguments& a) {
    Matrix<C> p(a.p, 0, a.storage);
    Gradient<C> gradient(a);
    Writer<C> weights(a.p, a.storage, a.random), copy(a.copy, a.copy_storage, a.random);
    C *s0 = static_cast<C*>(a.s0), *s1 = static_cast<C*>(a.s1), *s2 = static_cast<C*>(a.s2);
    const C* c = static_cast<const C*>(a.c);
    int slots = SLOT_COUNTS[a.formula], count = coefficients_of(a.formula);
    C own[FORMULA_COEFFICIENTS] = {}, wide[PIECE], buffer[PIECE];
    for (int i = 0; i < count; ++i) own[i] = c[i];
    for (int64 first = a.first; first < a.last; first += PIECE) {
        int64 n = smaller(PIECE, a.last - first);
        C* x = const_cast<C*>(p.read(0, first, n, wide));
        C* states[MOST_SLOTS] = {
            slots > 0 ? s0 + first : nullptr, slots > 1 ? s1 + first : nullptr, slots > 2 ? s2 + first : nullptr};
        const C* g = gradient.piece(x, first, n, buffer);
        APPLIES<C>[a.formula](x, g, states, own, n);
        weights.put(x, first, n);
        if (a.copy != nullptr) copy.put(x, first, n);
    }
}

template <class C> void prepare_update(const PrepareUpdateArguments& a) {
    double own[FORMULA_COEFFICIENTS] = {};
    PREPARES[a.formula](a.hyperparameters, a.lr, a.step, own);
    for (int i = 0; i < coefficients_of(a.formula); ++i) static_cast<C*>(a.c)[i] = C(own[i]);
    if (a.decay == nullptr) return;
    *static_cast<C*>(a.decay) = C(DECOUPLES[a.formula] ? 1.0 - a.lr * a.weight_decay : a.weight_decay);
}

// The sum of squares of a piece, in float64.
template <class C> ONCE double squares(const C* x, int64 n) {
    constexpr int CHAINS = 16;
    double sums[CHAINS] = {};
    int64 i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int chain = 0; chain < CHAINS; ++chain) {
            double wide = double(x[i + chain]);
            sums[chain] += wide * wide;
        }
    for (; i < n; ++i) sums[0] += double(x[i]) * double(x[i]);
    for (int half = CHAINS / 2; half > 0; half /= 2)
        for (int chain = 0; chain < half; ++chain) sums[chain] += sums[chain + half];
    return sums[0];
}

void finish_squares(const double* partial, double* out, int64 chunks) {
    *out = 0.0;
    for (int64 chunk = 0; chunk < chunks; ++chunk) *out += partial[chunk];
}

template <class C> void sum_of_squares(const SumOfSquaresArguments& a) {
    Matrix<C> x(a.x, 0, a.storage);
    C wide[PIECE];
    int64 chunk = a.chunk > 0 ? a.chunk : 1;
    for (int64 first = a.first; first < a.last; first += chunk) {
        int64 last = smaller(first + chunk, a.last);
        double sum = 0.0;
        for (int64 i = first; i < last; i += PIECE) {
            int64 n = smaller(PIECE, last - i);
            sum += squares(x.read(0, i, n, wide), n);
        }
        a.partial[first / chunk] = sum;
    }
    if (a.out != nullptr) finish_squares(a.partial, a.out, (a.count + chunk - 1) / chunk);
}

template <class C> void add_scaled(const AddScaledArguments& a) {
    Matrix<C> x(a.x, 0, a.storage), out(a.out, 0, a.storage);
    C scale = *static_cast<const C*>(a.scale), left[PIECE], right[PIECE];
    for (int64 first = a.first; first < a.last; first += PIECE) {
        int64 n = smaller(PIECE, a.last - first);
        const C *terms = x.read(0, first, n, left), *sums = out.read(0, first, n, right);
        C* to = out.place(0, first, right);
        INDEPENDENT for (int64 i = 0; i < n; ++i) to[i] = sums[i] + terms[i] * scale;
        out.put(to, 0, first, n);
    }
}

template <class C> void round_to_storage(const RoundToStorageArguments& a) {
    Matrix<C> x(a.x, 0, a.storage);
    Writer<C> out(a.out, a.out_storage, a.random);
    C wide[PIECE];
    for (int64 first = a.first; first < a.last; first += PIECE) {
        int64 n = smaller(PIECE, a.last - first);
        out.put(x.read(0, first, n, wide), first, n);
    }
}

}  // namespace

extern "C" {

#define NAME(formula) #formula,
extern const char* const gb_update_names[];
const char* const gb_update_names[] = {FOR_EACH_UPDATE(NAME) nullptr};

void gb_update(const UpdateArguments* a) {
    with_compute(a->storage, [&](auto c) { update<decltype(c)>(*a); });
}

void gb_prepare_update(const PrepareUpdateArguments* a) {
    with_compute(a->storage, [&](auto c) { prepare_update<decltype(c)>(*a); });
}

void gb_sum_of_squares(const SumOfSquaresArguments* a) {
    with_compute(a->storage, [&](auto c) { sum_of_squares<decltype(c)>(*a); });
}

void gb_sum_of_squares_finish(const SumOfSquaresFinishArguments* a) {
    finish_squares(a->partial, a->out, a->chunks);
}

void gb_add_scaled(const AddScaledArguments* a) {
    with_compute(a->storage, [&](auto c) { add_scaled<decltype(c)>(*a); });
}

void gb_round_to_storage(const RoundToStorageArguments* a) {
    with_compute(a->storage, [&](auto c) { round_to_storage<decltype(c)>(*a); });
}

}  // extern "C"
