// affine_epilogue<Act, P, T, Drop>: bias and activation after the matrix product, in place over it
//   a = product + bias;  h = Act::value(a, k);  with dropout, entries affine_epilogue_dropout_...,
//   h = keep ? scale * Act::value(a, k) : 0 (include/dropout.cuh)
//   product: P[rows, cols], a, h: T[rows, cols], rows `stride_...` elements apart; bias: T[cols]
//   h may be product; so may a, if h is not; bias null: none; a null: not kept
//   P is T, or float32 for T of 16 bits (entries ..._f16_f32, ..._bf16_f32): the bias is then added
//   before anything is rounded; product is then neither a nor h
//   with dropout `a` is given what the slope is a function of: the value before it is dropped where
//   Act takes its slope from h
//   moves rows * cols * (sizeof(P) + sizeof(T)): reads product, writes h (and a: sizeof(T) more, where
//   the slope needs a)
//   16-byte accesses; heads, tails and rows that start off 16 bytes element by element
//   measured: not measured on a GPU
#include "activations.cuh"
#include "include/arguments.cuh"
#include "include/dropout.cuh"
#include "include/entries.cuh"
#include "include/strip.cuh"

// Where h of a pack goes: over the product if the types are one, which takes no registers more.
template <class T, int E>
__device__ __forceinline__ Pack<T, E>& place_of_h(Pack<T, E>& product, Pack<T, E>&) {
    return product;
}
template <class P, class T, int E>
__device__ __forceinline__ Pack<T, E>& place_of_h(Pack<P, E>&, Pack<T, E>& apart) {
    return apart;
}

// h of the product, and a; `first`: number of the pack's first element.
template <class Act, class Drop, class P, class T, int E>
__device__ __forceinline__ void bias_and_value(
    const Pack<P, E>& product, Pack<T, E>& h, Pack<T, E>& kept, const compute_of<T> (&bias)[E],
    compute_of<T> k, const Drop& drop, int64 first) {
    using C = compute_of<T>;
    C factor[E] = {};
    drop.draw(first, factor);
#pragma unroll
    for (int e = 0; e < E; ++e) {
        C x = widen(product.v[e]) + bias[e], value = Act::value(x, k);
        kept.v[e] = to_storage<T>(Drop::ON && !Act::SAVES_A ? value : x);
        h.v[e] = to_storage<T>(dropped<Drop>(value, factor[e]));
    }
}

template <class P, class T> struct AffineEpilogueArguments {
    const P* product;
    const T* bias;
    T *a, *h;
    const uint64* dropout_state;  // this and the other dropout_... are read by entries with dropout
    int64 rows, cols, stride_product, stride_a, stride_h, dropout_threshold, dropout_layer,
        dropout_row;
    compute_of<T> parameter, dropout_scale;  // parameter: of the activation
    int join;
};

template <class Act, class Drop, class P, class T>
__device__ __forceinline__ void affine_epilogue(const AffineEpilogueArguments<P, T>& args) {
    constexpr int E = PACK<T>, UNROLL = sizeof(P) == 8 || sizeof(P) > sizeof(T) ? 2 : STRIP_UNROLL;
    Strip<E> strip(args.rows, args.cols, args.join, misalignment(args.h));
    if (!strip.inside) return;
    const Drop drop(args);
    const compute_of<T> k = args.parameter;
    const bool keeps_a = args.a != nullptr;
    compute_of<T> b[E] = {};
    if (args.bias != nullptr) load_columns(strip, args.bias, b);
    int64 row = strip.first + threadIdx.y;
    Walk<const P, E> in(strip, args.product, row, args.stride_product);
    Walk<T, E> out(strip, args.h, row, args.stride_h), keep = out;
    if (keeps_a) keep = Walk<T, E>(strip, args.a, row, args.stride_a);
    bool vector = in.vector() && out.vector() && keep.vector();
    Pack<P, E> pack[UNROLL];
    Pack<T, E> apart, kept;
    while (row < strip.last) {
        if (int whole = vector ? strip.whole(row, UNROLL) : 0) {
#pragma unroll
            for (int u = 0; u < UNROLL; ++u)
                pack[u] = global::load_if<P, E>(u < whole, in.at + u * in.step);
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                Pack<T, E>& value = place_of_h(pack[u], apart);
                bias_and_value<Act>(
                    pack[u], value, kept, b, k, drop, strip.place(row + u * STRIP_ROWS));
                if (u < whole && keeps_a) global::store(keep.at + u * keep.step, kept);
                if (u < whole) global::store(out.at + u * out.step, value);
            }
            row += whole * STRIP_ROWS;
            in.advance(whole), keep.advance(whole), out.advance(whole);
        } else {  // a head or tail, or a row off 16 bytes
            int lo = strip.lo(row), hi = strip.hi(row);
            pack[0] = global::load_part<P, E>(in.at, lo, hi);
            Pack<T, E>& value = place_of_h(pack[0], apart);
            bias_and_value<Act>(pack[0], value, kept, b, k, drop, strip.place(row));
            if (keeps_a) global::store_part(keep.at, kept, lo, hi);
            global::store_part(out.at, value, lo, hi);
            row += STRIP_ROWS;
            in.advance(1), keep.advance(1), out.advance(1);
        }
    }
}

// Types of the layer and of its product, by the name they have in an entry.
namespace storage {
template <class Layer, class Product> struct of {
    using T = Layer;
    using P = Product;
    using C = compute_of<Layer>;
};
using f64 = of<double, double>;
using f32 = of<float, float>;
using f16 = of<float16, float16>;
using bf16 = of<bfloat16, bfloat16>;
using f16_f32 = of<float16, float>;
using bf16_f32 = of<bfloat16, float>;
}  // namespace storage

#define ENTRY_(name, act, S, DROP)                                                        \
    extern "C" __global__ void __launch_bounds__(STRIP_THREADS, 2) name##act##_##S(       \
        const __grid_constant__ AffineEpilogueArguments<storage::S::P, storage::S::T> a) { \
        ptx::follow_the_grid_in_front();                                                  \
        affine_epilogue<activations::act, DROP>(a);                                       \
    }
#ifndef ONLY_DTYPE
#undef FOR_EACH_DTYPE
#define FOR_EACH_DTYPE(ENTRY, act)                                   \
    ENTRY(act, f64) ENTRY(act, f32) ENTRY(act, f16) ENTRY(act, bf16) \
    ENTRY(act, f16_f32) ENTRY(act, bf16_f32)
#endif
#define ENTRY(act, S) ENTRY_(affine_epilogue_, act, S, NoDropout)
#define DROPOUT_ENTRY(act, S) ENTRY_(affine_epilogue_dropout_, act, S, Dropout<storage::S::C>)
#ifndef ONLY_DROPOUT
FOR_EACH_ACTIVATION(ENTRY)
#endif
#if defined(ONLY_DROPOUT) || !defined(ONLY_DTYPE)
FOR_EACH_ACTIVATION(DROPOUT_ENTRY)
#endif
