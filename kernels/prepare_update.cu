// prepare_update<Rule, C>: the coefficients of a step and its bookkeeping, by one thread, and the running
//   totals of the epoch, by another
//   settings = {lr, weight_decay, l2, clip_norm (0: none), growth_interval (0: fixed loss scale),
//               the rule's hyperparameters in the registry's order}: f64 on the device
//   state = {steps done, steps skipped, loss scale, steps since the loss scale changed}: f64
//   norm = {sum of squares of unscale * g + l2 * p, 1 if an element is not finite}, of
//   sum_of_squares; null: taken as finite, no clipping
//   writes c[COEFFICIENTS] for `update`, and scaling = {loss scale, 1 / loss scale} for the next step:
//   the loss kernels' `upstream` and sum_of_squares' `unscale`
//   random = {seed, step} on the device, of dropout and of stochastic rounding: its step is counted
//   where the update's is; null: none
//   clipping: GRADIENT_FACTOR = min(1, clip_norm / (norm + 1e-6)), as PyTorch
//   not finite: PROCEED = 0, the step is not counted, the loss scale halves; it doubles after
//   growth_interval finite steps. Nothing is read back by the host
//   totals and the rest are as in accumulate.cu; totals null: none. correct_rows null: none are counted
//   moves under 300 bytes. All in float64: it runs once a step, and 1 - beta^step needs it
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/totals.cuh"
#include "updates.cuh"

using namespace updates;

constexpr int FIRST_HYPERPARAMETER = 5;  // in settings

template <class C> struct PrepareUpdateArguments {
    const double* settings;
    double* state;
    const C* norm;
    C *c, *scaling;
    uint64* random;
    double* totals;
    const C* loss;
    const int64* correct_rows;
    const C* weights2;
    Number<C> l2;
    int64 rows;
};

constexpr int THREADS = 64, TOTALS = 32;  // the totals' thread is of another warp

template <class Rule, class C>
__device__ __forceinline__ void prepare_update(const PrepareUpdateArguments<C>& a) {
    if (threadIdx.x == TOTALS && a.totals != nullptr) {
        int64 hits = a.correct_rows == nullptr ? 0 : *a.correct_rows;
        add_to_totals(a.totals, a.loss, a.weights2, a.l2, hits, a.rows);
    }
    if (threadIdx.x != 0) return;
    const double* settings = a.settings;
    const C* norm = a.norm;
    double* state = a.state;
    C* c = a.c;
    double lr = settings[0], weight_decay = settings[1], clip_norm = settings[3], interval = settings[4];
    double own[FORMULA_COEFFICIENTS] = {};
    Rule::prepare(settings + FIRST_HYPERPARAMETER, lr, state[0] + 1.0, own);
    for (int i = 0; i < FORMULA_COEFFICIENTS; ++i) c[i] = C(own[i]);

    bool finite = norm == nullptr || norm[1] == C(0);
    double factor = 1.0;
    if (norm != nullptr && clip_norm > 0.0) factor = clip_norm / (::sqrt(double(norm[0])) + 1e-6);
    c[DECAY] = C(Rule::DECOUPLED ? 1.0 - lr * weight_decay : weight_decay);
    c[L2] = C(settings[2]);
    c[UNSCALE] = C(1.0 / state[2]);
    c[GRADIENT_FACTOR] = C(factor < 1.0 ? factor : 1.0);
    c[PROCEED] = finite ? C(1) : C(0);

    state[finite ? 0 : 1] += 1.0;
    if (a.random != nullptr && finite) a.random[1] += 1;
    state[3] += 1.0;
    if (interval > 0.0 && (!finite || state[3] >= interval)) {
        state[2] *= finite ? 2.0 : 0.5;
        state[3] = 0.0;
    }
    a.scaling[0] = C(state[2]);
    a.scaling[1] = C(1.0 / state[2]);
}

#define ENTRY_(rule, C)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) prepare_update_##rule##_##C( \
        const __grid_constant__ PrepareUpdateArguments<C> a) {                         \
        ptx::follow_the_grid_in_front();                                               \
        prepare_update<rule, C>(a);                                                    \
    }
#define ENTRY(rule, C) ENTRY_(rule, C)
#define ENTRIES(rule) FOR_EACH_COMPUTE_DTYPE(ENTRY, rule)
FOR_EACH_UPDATE(ENTRIES)
