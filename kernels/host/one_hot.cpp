// one_hot.cpp - the first layer on one-hot inputs: columns of W by number, and sums of delta by number.
//   ONE_HOT_UNITS units at a time: a cache line of a row of delta, and as many rows of W that stay in the cache.
#include "host.hpp"

namespace {

constexpr int64 ONE_HOT_UNITS = 16;

template <class T> void one_hot_forward(const OneHotForwardArguments& a) {
    for (int64 unit = 0; unit < a.units; unit += ONE_HOT_UNITS) {
        int64 n = smaller(ONE_HOT_UNITS, a.units - unit);
        const T* W = static_cast<const T*>(a.W) + unit * a.stride_W;
        for (int64 row = a.first; row < a.last; ++row) {
            T* out = static_cast<T*>(a.a) + row * a.stride_a + unit;
            T sum[ONE_HOT_UNITS] = {};
            for (int64 k = 0; k < (a.add ? n : 0); ++k) sum[k] = out[k];
            for (int64 g = 0; g < a.groups; ++g) {
                int64 code = a.codes[row * a.groups + g];
                if (code < 0 || code >= a.inputs) continue;
                for (int64 k = 0; k < n; ++k) sum[k] += W[k * a.stride_W + code];
            }
            for (int64 k = 0; k < n; ++k) out[k] = sum[k];
        }
    }
}

template <class T> void one_hot_backward(const OneHotBackwardArguments& a) {
    for (int64 g = 0; g < a.groups; ++g) {
        int64 first = a.bounds[2 * g], columns = a.bounds[2 * g + 1] - first;
        for (int64 unit = a.first; unit < a.last; unit += ONE_HOT_UNITS) {
            int64 n = smaller(ONE_HOT_UNITS, a.last - unit);
            for (int64 i = 0; i < columns * ONE_HOT_UNITS; ++i) a.sums[i] = 0.0;
            for (int64 row = 0; row < a.rows; ++row) {
                int64 code = a.codes[row * a.groups + g] - first;
                if (code < 0 || code >= columns) continue;
                const T* delta = static_cast<const T*>(a.delta) + row * a.stride_delta + unit;
                double* sums = a.sums + code * ONE_HOT_UNITS;
                INDEPENDENT for (int64 k = 0; k < n; ++k) sums[k] += double(delta[k]);
            }
            for (int64 k = 0; k < n; ++k) {
                T* out = static_cast<T*>(a.grad_W) + (unit + k) * a.stride_W + first;
                for (int64 j = 0; j < columns; ++j) out[j] = T(a.sums[j * ONE_HOT_UNITS + k]);
            }
        }
    }
}

}  // namespace

extern "C" {

void gb_one_hot_forward(const OneHotForwardArguments* a) {
    with_compute(a->storage, [&](auto c) { one_hot_forward<decltype(c)>(*a); });
}

void gb_one_hot_backward(const OneHotBackwardArguments* a) {
    with_compute(a->storage, [&](auto c) { one_hot_backward<decltype(c)>(*a); });
}

}  // extern "C"
