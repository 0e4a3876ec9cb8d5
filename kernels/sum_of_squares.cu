// sum_of_squares<T>: first stage of the squared norm of a flat buffer, and whether it is finite
//   y = unscale * x, and + l2 * p over the first `penalized` elements (p null: none)
//   partial[b] = sum of y^2 over block b's share; partial[gridDim.x + b] = 1 if a y there is not finite
//   x: T[count]; p: compute_of<T>[count]; partial: compute_of<T>[2 * gridDim.x]
//   unscale, l2: one number each; unscale 1 where nothing is scaled
//   moves count * sizeof(T): reads x (and p where it is penalized); 16-byte accesses, UNROLL of a thread's
//   in flight, head and tail peeled
//   measured: not measured on a GPU
//
// sum_of_squares_finish<C>: second stage, one block of FINISH_THREADS;  out = {sum, 1 if not finite}
//   An overflow of the sum alone is not "not finite": the flag looks at the elements.
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

constexpr int THREADS = 256, FINISH_THREADS = 1024;

template <class T> struct SumOfSquaresArguments {
    const T* x;
    const compute_of<T>* p;
    compute_of<T>* partial;
    Number<compute_of<T>> unscale, l2;
    int64 penalized, count;
};

template <class T> __device__ __forceinline__ void sum_of_squares(const SumOfSquaresArguments<T>& a) {
    using C = compute_of<T>;
    constexpr int E = PACK<T>, SEQUENCE = 16, UNROLL = 4;
    C unscale = a.unscale.get(), l2 = a.l2.get();
    int64 step = int64(gridDim.x) * THREADS * E;
    int64 i = (int64(blockIdx.x) * THREADS + threadIdx.x) * E - misalignment(a.x);
    C total = C(0), bad = C(0);
    while (i < a.count) {
        C part = C(0);
        for (int n = 0; n < SEQUENCE && i < a.count; n += UNROLL) {
            Pack<T, E> pack[UNROLL];
            Pack<C, E> weights[UNROLL] = {};
#pragma unroll
            for (int u = 0; u < UNROLL; ++u, i += step) {  // beyond the end a pack has no element
                int lo = i < 0 ? int(-i) : 0;
                pack[u] = global::load_part<T, E>(a.x + i, lo, elements<E>(a.count - i));
                if (a.p != nullptr)
                    weights[u] = global::load_part<C, E>(a.p + i, lo, elements<E>(a.penalized - i));
            }
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
                for (int e = 0; e < E; ++e) {
                    C y = widen(pack[u].v[e]) * unscale + weights[u].v[e] * l2;
                    part += y * y;
                    if (!is_finite(y)) bad = C(1);
                }
            }
        }
        total += part;
    }
    total = reduce_group<Sum>(total);
    bad = reduce_group<Maximum>(bad);
    if (threadIdx.x == 0) {
        a.partial[blockIdx.x] = total;
        a.partial[gridDim.x + blockIdx.x] = bad;
    }
}

template <class C> struct SumOfSquaresFinishArguments {
    const C* partial;
    C* out;
    int64 blocks;
};

template <class C>
__device__ __forceinline__ void sum_of_squares_finish(const SumOfSquaresFinishArguments<C>& a) {
    C total = C(0), bad = C(0);
    for (int64 b = threadIdx.x; b < a.blocks; b += FINISH_THREADS) {
        total += a.partial[b];
        bad = Maximum::of(bad, a.partial[a.blocks + b]);
    }
    total = reduce_group<Sum>(total);
    bad = reduce_group<Maximum>(bad);
    if (threadIdx.x == 0) {
        a.out[0] = total;
        a.out[1] = bad;
    }
}

#define ENTRY_(formula, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) sum_of_squares_##T(               \
        const __grid_constant__ SumOfSquaresArguments<T> a) {                               \
        ptx::follow_the_grid_in_front();                                                    \
        sum_of_squares<T>(a);                                                               \
    }
#define FINISH_(formula, C)                                                                 \
    extern "C" __global__ void __launch_bounds__(FINISH_THREADS) sum_of_squares_finish_##C( \
        const __grid_constant__ SumOfSquaresFinishArguments<compute_of<C>> a) {             \
        ptx::follow_the_grid_in_front();                                                    \
        sum_of_squares_finish(a);                                                           \
    }
#define ENTRY(formula, T) ENTRY_(formula, T)
#define FINISH(formula, T) FINISH_(formula, T)
FOR_EACH_DTYPE(ENTRY, )
FOR_EACH_COMPUTE_DTYPE(FINISH, )
