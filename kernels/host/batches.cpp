// batches.cpp - rows of a batch: gathered, standardized, converted; and the totals of an epoch.
#include "host.hpp"

namespace {

template <class T> constexpr bool has_fraction = true;
template <> constexpr bool has_fraction<u8> = false;
template <> constexpr bool has_fraction<i32> = false;
template <> constexpr bool has_fraction<i64> = false;

// n numbers converted, where they are of different types.
template <class S, class D> ONCE void convert(const void* from, void* to, int64 n) {
    const S* in = static_cast<const S*>(from);
    D* out = static_cast<D*>(to);
    INDEPENDENT for (int64 i = 0; i < n; ++i) {
        if constexpr (sizeof(D) == 2 && !has_fraction<S>) out[i] = to_storage<D>(float(in[i]));
        else out[i] = to_storage<D>(widen(in[i]));
    }
}

using Convert = void (*)(const void*, void*, int64);

Convert conversion(int from, int to) {
    Convert result = nullptr;
    with_any(from, [&](auto s) {
        using S = decltype(s);
        if (to < STORED_U8) with_float(to, [&](auto d) { result = convert<S, decltype(d)>; });
    });
    if (from == STORED_I32 && to == STORED_I64) result = convert<i32, i64>;
    if (from == STORED_U8 && to == STORED_I64) result = convert<u8, i64>;
    return result;
}

void gather_rows(const GatherRowsArguments& a) {
    const char* source = static_cast<const char*>(a.source);
    char* out = static_cast<char*>(a.out);
    int64 from_bytes = BYTES[a.source_storage], to_bytes = BYTES[a.out_storage];
    Convert convert = a.source_storage == a.out_storage ? nullptr : conversion(a.source_storage, a.out_storage);
    if (a.source_rows <= 0) return;
    for (int64 i = a.first; i < a.last; ++i) {
        int64 row = a.rows == nullptr ? i : a.rows[i];
        row = row < 0 ? 0 : smaller(row, a.source_rows - 1);
        const char* from = source + row * a.stride_source * from_bytes;
        char* to = out + i * a.stride_out * to_bytes;
        if (convert != nullptr) convert(from, to, a.cols);
        else __builtin_memcpy(to, from, a.cols * to_bytes);
    }
}

void standardize(const StandardizeArguments& a) {
    Matrix<double> raw(a.raw, a.stride_raw, a.raw_storage), out(a.out, a.stride_out, a.out_storage);
    double wide[PIECE], result[PIECE];
    for (int64 row = a.first; row < a.last; ++row)
        for (int64 column = 0; column < a.cols; column += PIECE) {
            int64 n = smaller(PIECE, a.cols - column);
            const double *x = raw.read(row, column, n, wide), *mean = a.mean + column, *scale = a.scale + column;
            double* y = out.place(row, column, result);
            INDEPENDENT for (int64 i = 0; i < n; ++i) y[i] = (x[i] - mean[i]) / scale[i];
            out.put(y, row, column, n);
        }
}

template <class C> void divide(const DivideArguments& a) {
    Matrix<C> x(a.x, 0, a.storage), out(a.out, 0, a.out_storage);
    C divisor = C(a.divisor), wide[PIECE], result[PIECE];
    for (int64 first = a.first; first < a.last; first += PIECE) {
        int64 n = smaller(PIECE, a.last - first);
        const C* in = x.read(0, first, n, wide);
        C* y = out.place(0, first, result);
        INDEPENDENT for (int64 i = 0; i < n; ++i) y[i] = in[i] / divisor;
        out.put(y, 0, first, n);
    }
}

// include/../accumulate.cu
template <class C> void accumulate(const AccumulateArguments& a) {
    int64 hits = 0;
    if (a.correct != nullptr)
        for (int64 i = 0; i < a.rows; ++i) hits += a.correct[i] != 0;
    double l2 = a.l2 == nullptr ? a.l2_value : double(*static_cast<const C*>(a.l2));
    double *totals = a.totals, rows = double(a.rows), value = double(*static_cast<const C*>(a.loss));
    double steps = totals[4];
    totals[0] += value * rows;
    if (a.weights2 != nullptr) totals[1] += 0.5 * *a.weights2 * l2 * rows;
    totals[2] += double(hits);
    totals[3] += rows;
    totals[4] = steps + 1.0;
    if (!is_finite(value) && totals[5] < 0.0) totals[5] = steps;
}

}  // namespace

extern "C" {

int gb_version() { return 1; }

void gb_gather_rows(const GatherRowsArguments* a) { gather_rows(*a); }

void gb_standardize(const StandardizeArguments* a) { standardize(*a); }

void gb_divide(const DivideArguments* a) {
    with_compute(a->storage, [&](auto c) { divide<decltype(c)>(*a); });
}

void gb_accumulate(const AccumulateArguments* a) {
    with_compute(a->storage, [&](auto c) { accumulate<decltype(c)>(*a); });
}

void gb_run(const RunArguments* a) {
    for (int64 i = 0; i < a->count; ++i) a->functions[i](a->arguments[i]);
}

}  // extern "C"
