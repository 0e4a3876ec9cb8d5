// activation_backward<Act, T, Drop>: gradient through an activation, with the bias gradient
//   delta = grad_h * Act::slope(saved, k);  partial[...] = sums of delta over chunks of rows
//   with dropout, entries activation_backward_dropout_...: grad_h is first dropped and scaled as the
//   forward pass did with h, by the same words (include/dropout.cuh)
//   grad_h, saved, delta: T[rows, cols], rows `stride_...` elements apart; delta may be grad_h or saved
//   saved is a where Act::SAVES_A, else h; null where the slope is constant (identity)
//   partial: see include/column_totals.cuh; null: no bias gradient. column_sum_finish is the second stage
//   the sums are of delta before it is rounded to T
//   moves 3 * rows * cols * sizeof(T): reads grad_h and saved, writes delta; partial is a few 1/1000
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
#include "activations.cuh"
#include "include/arguments.cuh"
#include "include/column_totals.cuh"
#include "include/dropout.cuh"
#include "include/entries.cuh"

// delta in place of g; sum += delta, which is 0 where the elements do not exist: g is 0 there.
// `first`: number of the pack's first element.
template <class Act, class Drop, class T, int E>
__device__ __forceinline__ void times_slope(
    Pack<T, E>& g, const Pack<T, E>& saved, compute_of<T> k, const Drop& drop, int64 first,
    compute_of<T> (&sum)[E]) {
    using C = compute_of<T>;
    C factor[E] = {};
    drop.draw(first, factor);
#pragma unroll
    for (int e = 0; e < E; ++e) {
        C slope = Act::slope(C(widen(saved.v[e])), k), d = C(widen(g.v[e])) * slope;
        if (Act::STOPS && slope == C(0)) d = C(0);
        d = dropped<Drop>(d, factor[e]);
        sum[e] += d;
        g.v[e] = to_storage<T>(d);
    }
}

template <class T> struct ActivationBackwardArguments {
    const T *grad_h, *saved;
    T* delta;
    compute_of<T>* partial;
    const uint64* dropout_state;  // this and the other dropout_... are read by entries with dropout
    int64 rows, cols, stride_grad, stride_saved, stride_delta, dropout_threshold, dropout_layer,
        dropout_row;
    compute_of<T> parameter, dropout_scale;  // parameter: of the activation
    int join;
};

template <class Act, class Drop, class T>
__device__ __forceinline__ void activation_backward(const ActivationBackwardArguments<T>& a) {
    using C = compute_of<T>;
    const Drop drop(a);
    const C k = a.parameter;
    constexpr int E = PACK<T>;
    constexpr int UNROLL = sizeof(T) == 8 || Drop::ON ? 2 : STRIP_UNROLL;  // random words take registers
    Strip<E> strip(a.rows, a.cols, a.join, misalignment(a.delta));
    int64 row = strip.first + threadIdx.y;
    Walk<const T, E> grad(strip, a.grad_h, row, a.stride_grad), save = grad;
    if (Act::READS_SAVED) save = Walk<const T, E>(strip, a.saved, row, a.stride_saved);
    Walk<T, E> out(strip, a.delta, row, a.stride_delta);
    bool vector = grad.vector() && out.vector() && save.vector();
    C total[E] = {};
    Pack<T, E> g[UNROLL], s[UNROLL] = {};
    while (strip.inside && row < strip.last) {
        C part[E] = {};
        int64 stop = row + SEQUENCE * STRIP_ROWS < strip.last ? row + SEQUENCE * STRIP_ROWS : strip.last;
        while (row < stop) {
            if (int whole = vector ? strip.whole(row, UNROLL) : 0) {
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) {
                    g[u] = global::load_if<T, E>(u < whole, grad.at + u * grad.step);
                    if (Act::READS_SAVED) s[u] = global::load_if<T, E>(u < whole, save.at + u * save.step);
                }
#pragma unroll
                for (int u = 0; u < UNROLL; ++u) {
                    times_slope<Act>(g[u], s[u], k, drop, strip.place(row + u * STRIP_ROWS), part);
                    if (u < whole) global::store(out.at + u * out.step, g[u]);
                }
                row += whole * STRIP_ROWS;
                grad.advance(whole), save.advance(whole), out.advance(whole);
            } else {  // a head or tail, or a row off 16 bytes
                int lo = strip.lo(row), hi = strip.hi(row);
                g[0] = global::load_part<T, E>(grad.at, lo, hi);
                if (Act::READS_SAVED) s[0] = global::load_part<T, E>(save.at, lo, hi);
                times_slope<Act>(g[0], s[0], k, drop, strip.place(row), part);
                global::store_part(out.at, g[0], lo, hi);
                row += STRIP_ROWS;
                grad.advance(1), save.advance(1), out.advance(1);
            }
        }
#pragma unroll
        for (int e = 0; e < E; ++e) total[e] += part[e];
    }
    if (a.partial != nullptr) write_column_totals(strip, total, a.partial);
}

#define ENTRY_(name, act, T, DROP)                                               \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2) name##act##_##T( \
        const __grid_constant__ ActivationBackwardArguments<T> a) {              \
        ptx::follow_the_grid_in_front();                                         \
        activation_backward<activations::act, DROP>(a);                          \
    }
#define ENTRY(act, T) ENTRY_(activation_backward_, act, T, NoDropout)
#define DROPOUT_ENTRY(act, T) ENTRY_(activation_backward_dropout_, act, T, Dropout<compute_of<T>>)
#ifndef ONLY_DROPOUT
FOR_EACH_ACTIVATION(ENTRY)
#endif
#if defined(ONLY_DROPOUT) || !defined(ONLY_DTYPE)
FOR_EACH_ACTIVATION(DROPOUT_ENTRY)
#endif
