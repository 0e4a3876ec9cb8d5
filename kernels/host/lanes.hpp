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
    __forceinline__ void lower_to(const C* x) {
        for (int i = 0; i < COUNT; ++i) {
            V other = *reinterpret_cast<const V*>(x + i * EACH);
            v[i] = other < v[i] ? other : v[i];
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
        V half[COUNT];
        for (int i = 0; i < COUNT; ++i) half[i] = v[i];
        for (int count = COUNT / 2; count > 0; count /= 2)
            for (int i = 0; i < count; ++i) half[i] = of(half[i], half[i + count]);
        V all = half[0];
        if constexpr (EACH > 8) all = of(all, crossed<8>(all));
        if constexpr (EACH > 4) all = of(all, crossed<4>(all));
        if constexpr (EACH > 2) all = of(all, crossed<2>(all));
        return of(all, crossed<1>(all))[0];
    }
    // Each lane gets the number of lane ^ STEP.
    template <int STEP> static __forceinline__ V crossed(V x) {
#if defined(__clang__)
        V y;
        for (int lane = 0; lane < EACH; ++lane) y[lane] = x[lane ^ STEP];
        return y;
#else
        decltype(x > x) places;
        for (int lane = 0; lane < EACH; ++lane) places[lane] = lane ^ STEP;
        return __builtin_shuffle(x, places);
#endif
    }
};

// The least and the largest of n numbers; NaN are passed over.
template <class C> struct Extent {
    C least, most;

    void join(const Extent& other) {
        least = other.least < least ? other.least : least;
        most = other.most > most ? other.most : most;
    }
};
template <class C> ONCE Extent<C> extent_of(const C* x, int64 n) {
    const C infinity = -minus_infinity<C>();
    Extent<C> found = {infinity, -infinity};
    if (n < LANES<C>) {
        for (int64 i = 0; i < n; ++i) found.join({x[i], x[i]});
        return found;
    }
    Lanes<C> least(infinity), most(-infinity);
    for (int64 i = 0; i < n; i += LANES<C>) {
        const C* from = x + smaller(i, n - LANES<C>);  // the last lanes may be read twice
        least.lower_to(from);
        most.raise_to(from);
    }
    found.least = least.folded([](auto a, auto b) { return b < a ? b : a; });
    found.most = most.folded([](auto a, auto b) { return b > a ? b : a; });
    return found;
}

template <class C> ONCE C sum_of(const C* x, int64 n) {
    Lanes<C> lanes(C(0));
    int64 i = 0;
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.add(x + i);
    C sum = lanes.folded([](auto a, auto b) { return a + b; });
    for (; i < n; ++i) sum += x[i];
    return sum;
}

template <class C> ONCE C sum_of_products(const C* x, const C* y, int64 n) {
    Lanes<C> lanes(C(0));
    int64 i = 0;
    for (; i + LANES<C> <= n; i += LANES<C>) lanes.add_product(x + i, y + i);
    C sum = lanes.folded([](auto a, auto b) { return a + b; });
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
