// host_math.cpp - the functions of kernels/host/math.hpp as loops, for tests/test_host_math.py.
#include "host/math.hpp"

#define FUNCTION(name)                                                              \
    extern "C" void name##_f32(const float* x, float* y, long long n) {             \
        for (long long i = 0; i < n; ++i) y[i] = ::name(x[i]);                      \
    }                                                                               \
    extern "C" void name##_f64(const double* x, double* y, long long n) {           \
        for (long long i = 0; i < n; ++i) y[i] = ::name(x[i]);                      \
    }
FUNCTION(exp)
FUNCTION(log)
FUNCTION(expm1)
FUNCTION(log1p)
FUNCTION(tanh)
FUNCTION(sqrt)
FUNCTION(floor)
FUNCTION(fabs)

extern "C" void exp_below_f32(const float* x, float* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = x[i] > 0.f ? 0.f : host::exp_below(x[i]);
}
extern "C" void exp_below_f64(const double* x, double* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = x[i] > 0.0 ? 0.0 : host::exp_below(x[i]);
}
extern "C" void exp_shallow_f32(const float* x, float* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = host::exp_shallow(x[i]);
}
extern "C" void exp_shallow_f64(const double* x, double* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = host::exp_shallow(x[i]);
}
extern "C" void fma_f64(const double* a, const double* b, const double* c, double* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = ::fma(a[i], b[i], c[i]);
}
extern "C" void fma_f32(const float* a, const float* b, const float* c, float* y, long long n) {
    for (long long i = 0; i < n; ++i) y[i] = ::fma(a[i], b[i], c[i]);
}
