// losses.cuh - one struct for each entry of gpubackprop.formulas.POINTWISE_LOSSES.
//   value_and_delta(a, t, delta, k) returns the loss of one output unit with pre-activation a and
//   target t, and writes its derivative with respect to a; k is the loss's one parameter, 0 where it
//   has none
#pragma once
#include "include/types.cuh"

#ifdef ONLY_FORMULA
#define FOR_EACH_LOSS(ENTRY) FOR_EACH_DTYPE(ENTRY, ONLY_FORMULA)
#else
#define FOR_EACH_LOSS(ENTRY)                                                         \
    FOR_EACH_DTYPE(ENTRY, squared_error) FOR_EACH_DTYPE(ENTRY, binary_cross_entropy) \
    FOR_EACH_DTYPE(ENTRY, poisson) FOR_EACH_DTYPE(ENTRY, huber)
#endif

namespace losses {

struct squared_error {  // (a - t)^2 / 2
    template <class C> static __device__ __forceinline__ C value_and_delta(C a, C t, C& delta, C) {
        delta = a - t;
        return delta * delta * C(0.5);
    }
};

// -(t log p + (1 - t) log(1 - p)), p = logistic(a), as (1 - t) a - min(a, 0) + log1p(exp(-|a|)): finite
// for every finite a.
struct binary_cross_entropy {
    template <class C> static __device__ __forceinline__ C value_and_delta(C a, C t, C& delta, C) {
        delta = C(1) / (C(1) + ::exp(-a)) - t;
        return (C(1) - t) * a - (a < C(0) ? a : C(0)) + ::log1p(::exp(-::fabs(a)));
    }
};

struct poisson {  // exp(a) - t a, the negative log likelihood without log t!
    template <class C> static __device__ __forceinline__ C value_and_delta(C a, C t, C& delta, C) {
        C mean = ::exp(a);
        delta = mean - t;
        return mean - a * t;
    }
};

// r^2 / 2 for r = a - t within k of 0, k (|r| - k / 2) beyond, as d (r - d / 2) with d = r within the
// bounds -k and k (Huber 1964).
struct huber {
    template <class C> static __device__ __forceinline__ C value_and_delta(C a, C t, C& delta, C k) {
        C r = a - t;
        delta = r > k ? k : r < -k ? -k : r;  // NaN stays
        return delta * (r - delta * C(0.5));
    }
};

}  // namespace losses
