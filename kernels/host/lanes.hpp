// lanes.hpp - maxima and sums along a row, in 64 bytes of lanes: an order that no machine changes.
#pragma once
#include "host.hpp"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class C> struct vector_of;
template <> struct vector_of<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
};
template <> struct vector_of<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
};

template <class C> constexpr int LANES = 64 / int(sizeof(C));

template <class C> struct Lanes {
    using V = typename vector_of<C>::type;
    static constexpr int COUNT = 64 / VECTOR_BYTES, EACH = LANES<C> / COUNT;
    V v[COUNT];

    explicit Lanes(C first) {
        for (int i = 0; i < COUNT; ++i) v[i] = V{} + first;
    }
    __forceinline__ void raise_to(const C* x) {
        for (int i = 0; i < COUNT; ++i) {
            V other = *reinterpret_cast<const V*>(x + i * EACH);
            v[i] = other > v[i] ? other : v[i];
        }
    }
    __forceinline__ void add(const C* x) {
        for (int i = 0; i < COUNT; ++i) v[i] += *reinterpret_cast<const V*>(x + i * EACH);
    }
    __forceinline__ void add_product(const C* x, const C* y) {
        for (int i = 0; i < COUNT; ++i)
            v[i] += *reinterpret_cast<const V*>(x + i * EACH) * *reinterpret_cast<const V*>(y + i * EACH);
    }
    // Both halves by `of`, then their halves.
    template <class Of> C folded(Of of) const {
        C all[LANES<C>];
        for (int i = 0; i < COUNT; ++i) *reinterpret_cast<V*>(all + i * EACH) = v[i];
        for (int half = LANES<C> / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; ++lane) all[lane] = of(all[lane], all[lane + half]);
        return all[0];
    }
};

// The largest of n numbers and `known`; NaN are passed over.
template <class C> ONCE C largest(const C* x, int64 n, C known) {
    Lanes<C> lanes(known);
    int64 i = 0;
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.raise_to(x + i);
    C most = lanes.folded([](C a, C b) { return b > a ? b : a; });
    for (; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

template <class C> ONCE C sum_of(const C* x, int64 n) {
    Lanes<C> lanes(C(0));
    int64 i = 0;
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.add(x + i);
    C sum = lanes.folded([](C a, C b) { return a + b; });
    for (; i < n; ++i) sum += x[i];
    return sum;
}

template <class C> ONCE C sum_of_products(const C* x, const C* y, int64 n) {
    Lanes<C> lanes(C(0));
    int64 i = 0;
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.add_product(x + i, y + i);
    C sum = lanes.folded([](C a, C b) { return a + b; });
    for (; i < n; ++i) sum += x[i] * y[i];
    return sum;
}

// The first place of `value` in n numbers, or n.
template <class C> ONCE int64 first_of(const C* x, int64 n, C value) {
    for (int64 start = 0; start < n; start += 64) {
        int64 count = smaller(64, n - start);
        int found = 0;
        for (int64 i = 0; i < count; ++i) found |= x[start + i] == value;
        if (found == 0) continue;
        for (int64 i = start;; ++i)
            if (x[i] == value) return i;
    }
    return n;
}
