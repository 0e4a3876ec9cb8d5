// activations.cuh - h = g(a): one struct for each entry of gpubackprop.formulas.ACTIVATIONS.
//   value(a, k)      g(a);  k is the activation's one parameter, 0 where it has none
//   slope(saved, k)  g'(a), from h or from a: SAVES_A tells which the forward pass must keep
//   READS_SAVED      false where the slope is a constant
//   C is float or double. IEEE throughout: a NaN stays NaN, an overflow runs to infinity.
#pragma once
#include "include/types.cuh"

#ifdef ONLY_FORMULA
#define FOR_EACH_ACTIVATION(ENTRY) FOR_EACH_DTYPE(ENTRY, ONLY_FORMULA)
#else
#define FOR_EACH_ACTIVATION(ENTRY)                                                              \
    FOR_EACH_DTYPE(ENTRY, identity) FOR_EACH_DTYPE(ENTRY, logistic) FOR_EACH_DTYPE(ENTRY, tanh) \
    FOR_EACH_DTYPE(ENTRY, relu) FOR_EACH_DTYPE(ENTRY, leaky_relu) FOR_EACH_DTYPE(ENTRY, elu)    \
    FOR_EACH_DTYPE(ENTRY, gelu) FOR_EACH_DTYPE(ENTRY, gelu_tanh) FOR_EACH_DTYPE(ENTRY, silu)    \
    FOR_EACH_DTYPE(ENTRY, softplus) FOR_EACH_DTYPE(ENTRY, mish) FOR_EACH_DTYPE(ENTRY, selu)
#endif

namespace activations {

// STOPS: where the slope is 0, delta is 0 whatever the gradient, also an infinite one.
struct slope_of_h { static constexpr bool SAVES_A = false, READS_SAVED = true, STOPS = false; };
struct slope_of_a { static constexpr bool SAVES_A = true, READS_SAVED = true, STOPS = false; };

struct identity {
    static constexpr bool SAVES_A = false, READS_SAVED = false, STOPS = false;
    template <class C> static __device__ __forceinline__ C value(C a, C) { return a; }
    template <class C> static __device__ __forceinline__ C slope(C, C) { return C(1); }
};

struct logistic : slope_of_h {  // exp overflows for a << 0 and the quotient is 0, as it should be
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return C(1) / (C(1) + ::exp(-a));
    }
    template <class C> static __device__ __forceinline__ C slope(C h, C) { return (C(1) - h) * h; }
};

struct tanh : slope_of_h {
    template <class C> static __device__ __forceinline__ C value(C a, C) { return ::tanh(a); }
    template <class C> static __device__ __forceinline__ C slope(C h, C) {
        return ::fma(-h, h, C(1));  // near 1 the slope is in the last bits of h * h
    }
};

// Below, `<= 0` and not fmax: fmax drops a NaN.
struct relu : slope_of_h {
    static constexpr bool STOPS = true;
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return a <= C(0) ? C(0) : a;
    }
    template <class C> static __device__ __forceinline__ C slope(C h, C) {
        return h <= C(0) ? C(0) : C(1);  // 1 at NaN too, as in PyTorch: the gradient passes
    }
};

struct leaky_relu : slope_of_h {
    template <class C> static __device__ __forceinline__ C value(C a, C k) {
        return a > C(0) ? a : k * a;
    }
    template <class C> static __device__ __forceinline__ C slope(C h, C k) {
        return h > C(0) ? C(1) : h <= C(0) ? k : h;
    }
};

struct elu : slope_of_a {
    template <class C> static __device__ __forceinline__ C value(C a, C k) {
        return a > C(0) ? a : k * ::expm1(a);
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C k) {
        return a > C(0) ? C(1) : k * ::exp(a);  // h + k would cancel
    }
};

#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define UNROLL_ALL _Pragma("GCC unroll 32")  // g++ makes vector code of straight lines alone
#else
#define UNROLL_ALL _Pragma("unroll")
#endif

// log(erfc(x) exp(x^2) / (1 - w)) / w as a polynomial in w = x / (2 + x), highest power first, with
// the coefficients of gpubackprop/formulas/activations.py.
__device__ __forceinline__ float erfc_series(float w) {
    constexpr float c[] = {
        -0.160354740335f, 0.519616153668f, -0.546667793414f, 0.213015533736f, -0.159874306828f,
        0.0763142460897f, 0.190753864355f, 0.161595758958f, -0.303241351065f, -1.25675831797f};
    float sum = c[0];
    UNROLL_ALL
    for (int i = 1; i < 10; ++i) sum = sum * w + c[i];
    return sum * w;
}
__device__ __forceinline__ double erfc_series(double w) {
    constexpr double c[] = {
        -0.14146454866764167483, 1.437855063178408526, -6.7344902724917299431,
        19.375466009285071145, -38.575474860694800918, 56.793954100117355895,
        -64.409299126914465442, 57.676682801843192178, -41.410655154872290085,
        24.102796464960674029, -11.4159250484121234, 4.385448109649016166, -1.4019121567438161419,
        0.35061491019424719847, -0.045489137287562795769, 0.05174416320315549563,
        0.017454130506490631874, -0.034111461418111699326, -0.07978921270957653932,
        -0.058829371322042789043, 0.055155168499677290255, 0.19331707067730045374,
        0.16143599378184235073, -0.3032374236613312374, -1.2567583341910251622};
    double sum = c[0];
    UNROLL_ALL
    for (int i = 1; i < 25; ++i) sum = sum * w + c[i];
    return sum * w;
}

// Phi(a) = erfc(-a / sqrt 2) / 2, with relative accuracy in the left tail, where 1 + erf cancels.
template <class C> __device__ __forceinline__ C normal_cdf(C a) {
    C x = ::fabs(a) * C(0.70710678118654752440);
    x = x > C(40) ? C(40) : x;  // exp(-x^2) is 0 beyond; keeps x / (2 + x) from inf / inf
    C w = x / (x + C(2));
    C tail = ::exp(erfc_series(w) - a * a * C(0.5)) * (C(0.5) - C(0.5) * w);  // Phi(-|a|)
    return a > C(0) ? C(1) - tail : tail;
}

struct gelu : slope_of_a {
    template <class C> static __device__ __forceinline__ C value(C a, C) { return normal_cdf(a) * a; }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        C density = ::exp(a * a * C(-0.5)) * C(0.39894228040143267794);
        return normal_cdf(a) + a * density;
    }
};

// (1 + tanh y) / 2 = logistic(2 y), y = sqrt(2 / pi) (a + 0.044715 a^3).
struct gelu_tanh : slope_of_a {
    template <class C> static __device__ __forceinline__ C twice_y(C a) {
        constexpr C root = C(1.59576912160573071176);  // 2 sqrt(2 / pi)
        return (a * a * (C(0.044715) * root) + root) * a;
    }
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return a / (C(1) + ::exp(-twice_y(a)));
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        // s + a s (1 - s) 2 y', s (1 - s) = e / (1 + e)^2 with e = exp(-2 |y|): nothing cancels
        constexpr C root = C(1.59576912160573071176);
        C e = ::exp(-::fabs(twice_y(a))), right = C(1) + e, away = e / right;
        // a * away is 0 where a * a is infinite, but for a * a * inf
        C bend = (a * a * (C(3 * 0.044715) * root) + root) * (a * away / right);
        return (a > C(0) ? C(1) - away : away) + bend;
    }
};

struct silu : slope_of_a {
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return a / (C(1) + ::exp(-a));
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        C s = C(1) / (C(1) + ::exp(-a));
        return (C(1) + a * (C(1) - s)) * s;
    }
};

struct softplus : slope_of_a {  // no overflow on either side
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return (a > C(0) ? a : C(0)) + ::log1p(::exp(-::fabs(a)));
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        C e = ::exp(-::fabs(a));  // no overflow, so that the left tail is right in subnormal numbers
        return (a > C(0) ? C(1) : e) / (C(1) + e);
    }
};

// a tanh(softplus(a)) = a (1 - c) s with s = exp(min(a, 0)), r = exp(-max(a, 0)),
// c = s (1 + s) r^2 / d, d = (s + r)^2 + r^2: few roundings, and no difference of nearly equal numbers.
struct mish : slope_of_a {
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        C e = ::exp(-::fabs(a)), s = a > C(0) ? C(1) : e, r = a > C(0) ? e : C(1);
        C c = s * (C(1) + s) * (r * r / ((s + r) * (s + r) + r * r));
        C near = a > C(40) ? C(40) : a;  // beyond, c is 0: keeps a c from inf 0
        return (a - near * c) * s;
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        C e = ::exp(-::fabs(a));
        if (a > C(0)) {
            C d = C(1) + C(2) * e * (C(1) + e);
            return C(1) + (a * (C(4) * e * e * (C(1) + e)) / d - C(2) * e * e) / d;
        }
        C n = e * (e + C(2)), d = n + C(2);
        return ((C(1) + a) - (a * (n + C(2) * e * e / d) + e * (C(1) + e)) / d) * e;
    }
};

// Klambauer et al. 2017: scale a above 0, scale alpha (exp(a) - 1) elsewhere.
struct selu : slope_of_a {
    template <class C> static __device__ __forceinline__ C value(C a, C) {
        return a > C(0) ? C(1.0507009873554804934) * a : C(1.75809934084737686) * ::expm1(a);
    }
    template <class C> static __device__ __forceinline__ C slope(C a, C) {
        return a > C(0) ? C(1.0507009873554804934) : C(1.75809934084737686) * ::exp(a);
    }
};

}  // namespace activations
