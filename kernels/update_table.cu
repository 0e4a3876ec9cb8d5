// update_table<Rule, T>: one step of an optimizer on many tensors, one launch, for PyTorch's parameters
//   g' = factor * unscale * g + decay * p (coupled);  p, s = Rule::apply(p, g', s), before it p *= decay
//   (decoupled), as update.cu; coefficients of its own for each tensor, which has its own step count
// prepare_table<Rule, T>: those coefficients, and the step counts, by one thread a tensor
//   table: uint64[tensors][WORDS] on the device: addresses of p, g: T[count]; s0, s1, s2: compute_of<T>
//   [count] (0 where Rule has fewer slots) and of the step count: f32; count; the first of the tensor's
//   chunks, counted over all tensors, never more than the next tensor's; its row of `settings`
//   settings: f64[groups][8] = {lr, weight_decay, factor of the gradient (-1: maximize), the rule's
//   hyperparameters in the registry's order}
//   scale, found_inf: f32 of a gradient scaler, or null: the gradient is divided by *scale, and where
//   *found_inf != 0 the step is neither counted nor taken
//   c: compute_of<T>[tensors][COEFFICIENTS]
//   owner: i32[chunks], the number of each chunk's tensor: a block takes one chunk, of CHUNK elements,
//   counted from the last multiple of a pack's bytes at or before p, so that accesses to p are aligned
//   moves 2 sizeof(T) + sizeof(T) + 2 SLOTS sizeof(C) bytes a parameter; Adam in f32: 28
//   accesses of 16 bytes; head and tail, and arrays that are aligned otherwise, element by element
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/vector.cuh"
#include "updates.cuh"

#ifndef ONLY_FORMULA
#undef FOR_EACH_UPDATE
#define FOR_EACH_UPDATE(ENTRIES) \
    ENTRIES(gradient_descent) ENTRIES(sgd) ENTRIES(sgd_nesterov) ENTRIES(adam) ENTRIES(adamw) \
    ENTRIES(adam_amsgrad) ENTRIES(adamw_amsgrad)
#endif

constexpr int THREADS = 256, CHUNK = 4096, SETTINGS = 8, FIRST_HYPERPARAMETER = 3;
using namespace updates;

enum Word {
    P_ADDRESS, G_ADDRESS, S0_ADDRESS, S1_ADDRESS, S2_ADDRESS, STEP_ADDRESS, COUNT, FIRST_CHUNK, GROUP, WORDS
};

template <class C> struct PrepareTableArguments {
    const uint64* table;
    const double* settings;
    const float *scale, *found_inf;
    C* c;
    int64 tensors;
};

template <class Rule, class C>
__device__ __forceinline__ void prepare_table(const PrepareTableArguments<C>& a) {
    int64 t = int64(blockIdx.x) * THREADS + threadIdx.x;
    if (t >= a.tensors) return;
    const uint64* row = a.table + t * WORDS;
    const double* setting = a.settings + row[GROUP] * SETTINGS;
    float* steps = reinterpret_cast<float*>(row[STEP_ADDRESS]);
    double step = double(*steps) + 1.0, lr = setting[0], weight_decay = setting[1];
    double own[FORMULA_COEFFICIENTS] = {};
    Rule::prepare(setting + FIRST_HYPERPARAMETER, lr, step, own);
    C* mine = a.c + t * COEFFICIENTS;
    for (int i = 0; i < FORMULA_COEFFICIENTS; ++i) mine[i] = C(own[i]);
    bool proceed = a.found_inf == nullptr || *a.found_inf == 0.f;
    mine[DECAY] = C(Rule::DECOUPLED ? 1.0 - lr * weight_decay : weight_decay);
    mine[UNSCALE] = a.scale == nullptr ? C(1) : C(1.0 / double(*a.scale));
    mine[GRADIENT_FACTOR] = C(setting[2]);
    mine[PROCEED] = proceed ? C(1) : C(0);
    if (proceed) *steps = float(step);
}

template <class T> struct UpdateTableArguments {
    const uint64* table;
    const i32* owner;
    const compute_of<T>* c;
};

template <class Rule, class T>
__device__ __forceinline__ void update_table(const UpdateTableArguments<T>& a) {
    using C = compute_of<T>;
    constexpr int E = PACK<C>;
    int64 tensor = a.owner[blockIdx.x];
    const uint64* row = a.table + tensor * WORDS;
    const Coefficients<C> c(a.c + tensor * COEFFICIENTS);
    uint64 word[FIRST_CHUNK + 1];
#pragma unroll
    for (int i = 0; i <= FIRST_CHUNK; ++i) word[i] = global::load_now(row + i);
    if (c[PROCEED] == C(0)) return;
    // Of the chunk, elements [first, last) are inside the tensor; 32 bits for what is counted here.
    int first = int(word[P_ADDRESS] % (E * sizeof(T)) / sizeof(T));
    int64 begin = (int64(blockIdx.x) - int64(word[FIRST_CHUNK])) * CHUNK - first;
    int64 left = int64(word[COUNT]) - begin;
    int last = left < CHUNK ? int(left) : CHUNK;
    if (begin > 0) first = 0;
    T* p = reinterpret_cast<T*>(word[P_ADDRESS]) + begin;
    const T* g = reinterpret_cast<const T*>(word[G_ADDRESS]) + begin;
    C* states[MOST_SLOTS] = {};
#pragma unroll
    for (int n = 0; n < Rule::SLOTS; ++n) states[n] = reinterpret_cast<C*>(word[S0_ADDRESS + n]) + begin;
    C unscale = c[UNSCALE], factor = c[GRADIENT_FACTOR], decay = c[DECAY];
    for (int i = int(threadIdx.x) * E; i < last; i += THREADS * E) {
        int lo = i < first ? first : 0, hi = last - i < E ? last - i : E;
        Pack<T, E> weights = global::load_part<T, E>(p + i, lo, hi);
        Pack<T, E> gradient = global::load_part<T, E>(g + i, lo, hi);
        Pack<C, E> slots[MOST_SLOTS] = {};
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) slots[n] = global::load_part<C, E>(states[n] + i, lo, hi);
#pragma unroll
        for (int e = 0; e < E; ++e) {
            C x = widen(weights.v[e]), y = C(widen(gradient.v[e])) * unscale * factor;
            if (Rule::DECOUPLED) x *= decay;
            else if (decay != C(0)) y += x * decay;  // 0 * inf would be NaN
            C state[MOST_SLOTS] = {slots[0].v[e], slots[1].v[e], slots[2].v[e]};
            weights.v[e] = to_storage<T>(Rule::apply(x, y, state, c.c));
            slots[0].v[e] = state[0], slots[1].v[e] = state[1], slots[2].v[e] = state[2];
        }
        global::store_part(p + i, weights, lo, hi);
#pragma unroll
        for (int n = 0; n < Rule::SLOTS; ++n) global::store_part(states[n] + i, slots[n], lo, hi);
    }
}

#define ENTRY_(rule, T)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) update_table_##rule##_##T(  \
        const __grid_constant__ UpdateTableArguments<T> a) {                          \
        ptx::follow_the_grid_in_front();                                              \
        update_table<rule>(a);                                                        \
    }                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) prepare_table_##rule##_##T( \
        const __grid_constant__ PrepareTableArguments<compute_of<T>> a) {             \
        ptx::follow_the_grid_in_front();                                              \
        prepare_table<rule>(a);                                                       \
    }
#define ENTRY(rule, T) ENTRY_(rule, T)
#ifdef ONLY_DTYPE
#define ENTRIES(rule) ENTRY(rule, ONLY_DTYPE)
#else
#define ENTRIES(rule) ENTRY(rule, f64) ENTRY(rule, f32) ENTRY(rule, f16) ENTRY(rule, bf16)
#endif
FOR_EACH_UPDATE(ENTRIES)
