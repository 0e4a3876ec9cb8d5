// update<Rule, P, G, N>: one step of an optimizer on the flat buffers, one launch for all layers
//   g' = factor * (unscale * g + l2 * p [first `penalized` only]) + decay * p      (coupled decay)
//   p, s = Rule::apply(p, g', s);  before it p *= decay                            (decoupled decay)
//   copy = N(p), the weights in 16 bits for the products of the next step
//   p: P[count], the master weights; g: G[count]; s0, s1, s2: C[count], C = compute_of<P>; copy: N[count]
//   s0, s1, s2 null where Rule has fewer slots; copy null: none
//   c: C[COEFFICIENTS] on the device, written by prepare_update, so that a replayed graph follows the
//   schedule; c[PROCEED] == 0 (the gradients are not finite): nothing is read further and nothing written
//   random = {seed, step} on the device: p and copy are rounded to 16 bits stochastically, with word i
//   of Philox for element i (include/philox.cuh: ROUNDING_STREAM); null: to nearest
//   moves 2 sizeof(P) + sizeof(G) + 2 SLOTS sizeof(C) + sizeof(N) bytes a parameter; Adam in f32: 28
//   accesses of 16 bytes to the float32 and float64 streams, 8 to the 16-bit ones; head and tail peeled
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/philox.cuh"
#include "include/rounding.cuh"
#include "include/vector.cuh"
#include "updates.cuh"

constexpr int THREADS = 256;
using namespace updates;

template <class P, class G, class N> struct UpdateArguments {
    P* p;
    const G* g;
    compute_of<P> *s0, *s1, *s2;
    N* copy;
    const compute_of<P>* c;
    const uint64* random;
    int64 penalized, count;
};

template <class Rule, class P, class G, class N>
__device__ __forceinline__ void update(const UpdateArguments<P, G, N>& a) {
    using C = compute_of<P>;
    constexpr int E = PACK<C>;
    P* p = a.p;
    const G* g = a.g;
    N* copy = a.copy;
    const Coefficients<C> c(a.c);
    const uint64* random = a.random;
    int64 penalized = a.penalized, count = a.count;
    if (c[PROCEED] == C(0)) return;
    C unscale = c[UNSCALE], l2 = c[L2], factor = c[GRADIENT_FACTOR], decay = c[DECAY];
    if (l2 == C(0)) penalized = 0;
    C *const states[MOST_SLOTS] = {a.s0, a.s1, a.s2};
    uint64 seed = random == nullptr ? 0 : random[0];
    uint64 offset = random == nullptr ? 0 : stream(random[1], ROUNDING_STREAM);
    int64 step = int64(gridDim.x) * THREADS * E;
    int head = int((uint64)p % (E * sizeof(P)) / sizeof(P));
    for (int64 i = (int64(blockIdx.x) * THREADS + threadIdx.x) * E - head; i < count; i += step) {
        int lo = i < 0 ? int(-i) : 0, hi = count - i < E ? int(count - i) : E;
        Pack<P, E> weights = global::load_part<P, E>(p + i, lo, hi);
        Pack<G, E> gradient = global::load_part<G, E>(g + i, lo, hi);
        Pack<C, E> slots[MOST_SLOTS] = {};
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) slots[n] = global::load_part<C, E>(states[n] + i, lo, hi);
        Pack<N, E> rounded_copy{};
        uint32 words[E] = {};
        if (random != nullptr) random_words<E>(i, offset, seed, words);
#pragma unroll
        for (int e = 0; e < E; ++e) {
            C x = widen(weights.v[e]), y = C(widen(gradient.v[e])) * unscale;
            if (i + e < penalized) y += x * l2;
            y *= factor;
            if (Rule::DECOUPLED) x *= decay;
            else if (decay != C(0)) y += x * decay;  // 0 * inf would be NaN
            C state[MOST_SLOTS] = {slots[0].v[e], slots[1].v[e], slots[2].v[e]};
            x = Rule::apply(x, y, state, c.c);
            slots[0].v[e] = state[0], slots[1].v[e] = state[1], slots[2].v[e] = state[2];
            weights.v[e] = random == nullptr ? to_storage<P>(x) : round_stochastic<P>(x, words[e]);
            rounded_copy.v[e] = random == nullptr ? to_storage<N>(x) : round_stochastic<N>(x, words[e]);
        }
        global::store_part(p + i, weights, lo, hi);
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) global::store_part(states[n] + i, slots[n], lo, hi);
        if (copy != nullptr) global::store_part(copy + i, rounded_copy, lo, hi);
    }
}

// Storage of the streams, by the name it has in an entry: parameters, gradient, copy of the weights.
namespace storage {
template <class P, class G, class N> using of = UpdateArguments<P, G, N>;
using f64 = of<double, double, double>;
using f32 = of<float, float, float>;
using f32_f16 = of<float, float16, float16>;     // master weights in float32, all else in 16 bits
using f32_bf16 = of<float, bfloat16, bfloat16>;
using f32_f32_f16 = of<float, float, float16>;   // the gradient in float32 too, as products give it
using f32_f32_bf16 = of<float, float, bfloat16>;
using f16 = of<float16, float16, float16>;       // no master: stochastic rounding belongs here
using bf16 = of<bfloat16, bfloat16, bfloat16>;
}  // namespace storage

#define ENTRY_(rule, S)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) update_##rule##_##S( \
        const __grid_constant__ storage::S a) {                                   \
        ptx::follow_the_grid_in_front();                                          \
        update<rule>(a);                                                          \
    }
#define ENTRY(rule, S) ENTRY_(rule, S)
#ifdef ONLY_DTYPE
#define ENTRIES(rule) ENTRY(rule, ONLY_DTYPE)
#else
#define ENTRIES(rule)                                                            \
    ENTRY(rule, f64) ENTRY(rule, f32) ENTRY(rule, f32_f16) ENTRY(rule, f32_bf16) \
    ENTRY(rule, f32_f32_f16) ENTRY(rule, f32_f32_bf16) ENTRY(rule, f16) ENTRY(rule, bf16)
#endif
FOR_EACH_UPDATE(ENTRIES)
