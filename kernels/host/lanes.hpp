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

// A vector of lanes of x and y, which are counted through, by their numbers.
#if defined(__clang__)
#define SHUFFLED(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLED(x, y, ...) __builtin_shuffle(x, y, decltype(x > x){__VA_ARGS__})
#endif

// to[i * to_stride + j] = from[j * from_stride + i] for i, j in 0 ... 3
template <class C> __forceinline__ void turn_four(const C* from, int64 from_stride, C* to, int64 to_stride) {
    typedef C V __attribute__((vector_size(4 * sizeof(C)), aligned(sizeof(C)), may_alias));
    V r[4];
    for (int j = 0; j < 4; ++j) r[j] = *reinterpret_cast<const V*>(from + j * from_stride);
    V a = SHUFFLED(r[0], r[1], 0, 4, 1, 5), b = SHUFFLED(r[2], r[3], 0, 4, 1, 5);
    V c = SHUFFLED(r[0], r[1], 2, 6, 3, 7), d = SHUFFLED(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLED(a, b, 0, 1, 4, 5);
    r[1] = SHUFFLED(a, b, 2, 3, 6, 7);
    r[2] = SHUFFLED(c, d, 0, 1, 4, 5);
    r[3] = SHUFFLED(c, d, 2, 3, 6, 7);
    for (int j = 0; j < 4; ++j) *reinterpret_cast<V*>(to + j * to_stride) = r[j];
}

// The same for all i < cols and j < rows. Fours at the ends overlap those before them. Inlined, it would
// slow the loops over longer rows in the same function by 4 %.
template <class C>
ONCE void turn(const C* from, int64 from_stride, C* to, int64 to_stride, int64 rows, int64 cols) {
    if (rows < 4 || cols < 4) {
        for (int64 j = 0; j < rows; ++j)
            for (int64 i = 0; i < cols; ++i) to[i * to_stride + j] = from[j * from_stride + i];
        return;
    }
    for (int64 i = 0; i < cols; i += 4)
        for (int64 j = 0; j < rows; j += 4) {
            int64 column = smaller(i, cols - 4), row = smaller(j, rows - 4);
            turn_four(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
        }
}

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
