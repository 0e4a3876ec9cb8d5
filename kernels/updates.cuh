// updates.cuh - one struct for each entry of gpubackprop.formulas.UPDATES.
//   SLOTS              how many state arrays the optimizer has
//   HYPERPARAMETERS    how many it reads, in the order of the registry entry
//   DECOUPLED          weight decay scales p by 1 - lr * decay; otherwise it is added to the gradient
//   prepare(h, lr, step, c)  the coefficients of step number `step` (from 1), in float64, once a step
//   apply(p, g, s, c)        the new parameter; the slots s are updated in place
//   The order of c is that of the NumPy entry's `coefficients`.
#pragma once
#include "include/vector.cuh"

#ifdef ONLY_FORMULA
#define FOR_EACH_UPDATE(ENTRIES) ENTRIES(ONLY_FORMULA)
#else
#define FOR_EACH_UPDATE(ENTRIES)                                                              \
    ENTRIES(gradient_descent) ENTRIES(sgd) ENTRIES(sgd_nesterov) ENTRIES(momentum)            \
    ENTRIES(nesterov) ENTRIES(adam) ENTRIES(adam_epsilon_hat) ENTRIES(adamw) ENTRIES(rmsprop) \
    ENTRIES(adagrad) ENTRIES(lion) ENTRIES(adamax) ENTRIES(adam_amsgrad)                      \
    ENTRIES(adamw_amsgrad)
#endif

namespace updates {

constexpr int MOST_SLOTS = 3;
constexpr int FORMULA_COEFFICIENTS = 8;  // c[0..7] are the formula's; what follows is every formula's
enum Control { DECAY = FORMULA_COEFFICIENTS, L2, UNSCALE, GRADIENT_FACTOR, PROCEED, COEFFICIENTS };

// A step's coefficients in registers: all are asked for at once, before the first is used, and none
// again for every element, as from memory that the stores beside them might have changed.
template <class C> struct Coefficients {
    C c[COEFFICIENTS];
    __device__ __forceinline__ explicit Coefficients(const C* memory) {
#pragma unroll
        for (int i = 0; i < COEFFICIENTS; ++i) c[i] = global::load_now(memory + i);
    }
    __device__ __forceinline__ C operator[](int i) const { return c[i]; }
};

struct gradient_descent {  // p <- p - lr g
    static constexpr int SLOTS = 0, HYPERPARAMETERS = 0;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double*, double lr, double, double* c) { c[0] = lr; }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C*, const C* c) {
        return p - g * c[0];
    }
};

// PyTorch's momentum: v <- mu v + (1 - dampening) g; p <- p - lr v; in the first step v = g.
struct sgd {
    static constexpr int SLOTS = 1, HYPERPARAMETERS = 2;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double step, double* c) {
        c[0] = lr;
        c[1] = h[0];
        c[2] = step == 1.0 ? 1.0 : 1.0 - h[1];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] * c[1] + g * c[2];
        return p - s[0] * c[0];
    }
};

struct sgd_nesterov : sgd {  // v <- mu v + g; p <- p - lr (g + mu v)
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] * c[1] + g * c[2];
        return p - (s[0] * c[1] + g) * c[0];
    }
};

struct momentum {  // classical (Polyak 1964): v <- mu v - lr g; p <- p + v
    static constexpr int SLOTS = 1, HYPERPARAMETERS = 1;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double, double* c) {
        c[0] = lr;
        c[1] = h[0];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] * c[1] - g * c[0];
        return p + s[0];
    }
};

struct nesterov : momentum {  // p <- p + mu v - lr g, v as above (Sutskever et al. 2013)
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] * c[1] - g * c[0];
        return p + (s[0] * c[1] - g * c[0]);
    }
};

// Kingma & Ba 2015, algorithm 1: p <- p - lr mhat / (sqrt(vhat) + eps), computed as
// p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps sqrt(1 - beta2^t)).
struct adam {
    static constexpr int SLOTS = 2, HYPERPARAMETERS = 3;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double step, double* c) {
        double beta1 = h[0], beta2 = h[1], eps = h[2];
        double correction1 = beta1 != 0.0 ? -::expm1(step * ::log(beta1)) : 1.0;  // 1 - beta1^step
        double correction2 = beta2 != 0.0 ? -::expm1(step * ::log(beta2)) : 1.0;
        double root = ::sqrt(correction2);
        c[0] = beta1;
        c[1] = 1.0 - beta1;
        c[2] = beta2;
        c[3] = 1.0 - beta2;
        c[4] = lr * root / correction1;
        c[5] = eps * root;
        c[6] = eps;
    }
    template <class C> static __device__ __forceinline__ void moments(C g, C* s, const C* c) {
        s[0] = s[0] * c[0] + g * c[1];
        s[1] = s[1] * c[2] + g * g * c[3];
    }
    template <class C> static __device__ __forceinline__ C step_with(C p, C g, C* s, const C* c, C eps) {
        moments(g, s, c);
        return p - s[0] / (::sqrt(s[1]) + eps) * c[4];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        return step_with(p, g, s, c, c[5]);
    }
};

struct adam_epsilon_hat : adam {  // eps beside the uncorrected root (ibid. section 2; scikit-learn)
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        return step_with(p, g, s, c, c[6]);
    }
};

struct adamw : adam {  // Loshchilov & Hutter 2019
    static constexpr bool DECOUPLED = true;
};

struct adam_amsgrad : adam {  // the largest v so far in the place of v (Reddi et al. 2018; PyTorch)
    static constexpr int SLOTS = 3;
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        moments(g, s, c);
        s[2] = s[1] <= s[2] || s[2] != s[2] ? s[2] : s[1];  // NaN stays, as in torch.maximum
        return p - s[0] / (::sqrt(s[2]) + c[5]) * c[4];
    }
};

struct adamw_amsgrad : adam_amsgrad {
    static constexpr bool DECOUPLED = true;
};

template <class C>
__device__ __forceinline__ C scaled_step(C p, C g, C square, C lr, C eps) {
    return p - g / (::sqrt(square) + eps) * lr;
}

struct rmsprop {  // s <- alpha s + (1 - alpha) g^2; p <- p - lr g / (sqrt(s) + eps)
    static constexpr int SLOTS = 1, HYPERPARAMETERS = 2;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double, double* c) {
        c[0] = lr;
        c[1] = h[0];
        c[2] = 1.0 - h[0];
        c[3] = h[1];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] * c[1] + g * g * c[2];
        return scaled_step(p, g, s[0], c[0], c[3]);
    }
};

struct adagrad {  // s <- s + g^2; p <- p - lr g / (sqrt(s) + eps) (Duchi et al. 2011)
    static constexpr int SLOTS = 1, HYPERPARAMETERS = 3;  // lr_decay, eps, initial_accumulator
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double step, double* c) {
        c[0] = lr / (1.0 + (step - 1.0) * h[0]);
        c[1] = h[1];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        s[0] = s[0] + g * g;
        return scaled_step(p, g, s[0], c[0], c[1]);
    }
};

// p <- p - lr sign(beta1 m + (1 - beta1) g); m <- beta2 m + (1 - beta2) g (Chen et al. 2023)
struct lion {
    static constexpr int SLOTS = 1, HYPERPARAMETERS = 2;
    static constexpr bool DECOUPLED = true;
    static __device__ void prepare(const double* h, double lr, double, double* c) {
        c[0] = lr;
        c[1] = h[0];
        c[2] = 1.0 - h[0];
        c[3] = h[1];
        c[4] = 1.0 - h[1];
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        C mixed = s[0] * c[1] + g * c[2];
        C sign = mixed > C(0) ? C(1) : mixed < C(0) ? C(-1) : mixed;  // 0 and NaN stay
        s[0] = s[0] * c[3] + g * c[4];
        return p - sign * c[0];
    }
};

// Kingma & Ba 2015, section 7, with PyTorch's eps: m <- beta1 m + (1 - beta1) g;
// u <- max(beta2 u, |g| + eps); p <- p - lr / (1 - beta1^t) m / u
struct adamax {
    static constexpr int SLOTS = 2, HYPERPARAMETERS = 3;
    static constexpr bool DECOUPLED = false;
    static __device__ void prepare(const double* h, double lr, double step, double* c) {
        double correction = h[0] != 0.0 ? -::expm1(step * ::log(h[0])) : 1.0;  // 1 - beta1^step
        c[0] = h[0];
        c[1] = 1.0 - h[0];
        c[2] = h[1];
        c[3] = h[2];
        c[4] = lr / correction;
    }
    template <class C> static __device__ __forceinline__ C apply(C p, C g, C* s, const C* c) {
        C old = s[1] * c[2], now = ::fabs(g) + c[3];
        s[0] = s[0] * c[0] + g * c[1];
        s[1] = old >= now || old != old ? old : now;  // NaN stays, as in torch.maximum
        return p - s[0] / s[1] * c[4];
    }
};

}  // namespace updates
