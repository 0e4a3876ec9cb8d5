// sum_of_squares<T>: first stage of the squared norm of a flat buffer, and whether it is finite
//   y = unscale * x, and + l2 * p over the first `penalized` elements (p null: none)
//   partial[b] = sum of y^2 over block b's share; partial[gridDim.x + b] = 1 if a y there is not finite
//   x: T[count]; p: compute_of<T>[count]; partial: compute_of<T>[2 * gridDim.x]
//   unscale, l2: one number each, on the device; unscale null for 1
//   moves count * sizeof(T): reads x (and p where it is penalized); 16-byte accesses, head and tail
//   peeled
//   measured: not measured on a GPU
//
// sum_of_squares_finish<C>: second stage, one block of FINISH_THREADS;  out = {sum, 1 if not finite}
//   An overflow of the sum alone is not "not finite": the flag looks at the elements.
//   measured: not measured on a GPU
#include "include/entries.cuh"
#include "include/reduce.cuh"
#include "include/vector.cuh"

constexpr int THREADS = 256, FINISH_THREADS = 1024;

template <class T>
__device__ __forceinline__ void sum_of_squares(
    const T* x, const compute_of<T>* p, const compute_of<T>* unscale, const compute_of<T>* l2,
    int64 penalized, compute_of<T>* partial, int64 count) {
    using C = compute_of<T>;
    constexpr int E = PACK<T>, SEQUENCE = 16;
    C factor = unscale == nullptr ? C(1) : *unscale, penalty = p == nullptr ? C(0) : *l2;
    int64 step = int64(gridDim.x) * THREADS * E;
    int64 i = (int64(blockIdx.x) * THREADS + threadIdx.x) * E - misalignment(x);
    C total = C(0), bad = C(0);
    while (i < count) {
        C part = C(0);
        for (int n = 0; n < SEQUENCE && i < count; ++n, i += step) {
            int lo = i < 0 ? int(-i) : 0, hi = count - i < E ? int(count - i) : E;
            Pack<T, E> pack = load_part<T, E>(x + i, lo, hi);
            Pack<C, E> weights{};
            if (p != nullptr && i < penalized)
                weights = load_part<C, E>(p + i, lo, penalized - i < hi ? int(penalized - i) : hi);
#pragma unroll
            for (int e = 0; e < E; ++e) {
                C y = widen(pack.v[e]) * factor + weights.v[e] * penalty;
                part += y * y;
                if (!is_finite(y)) bad = C(1);
            }
        }
        total += part;
    }
    total = reduce_group<Sum>(total);
    bad = reduce_group<Maximum>(bad);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = total;
        partial[gridDim.x + blockIdx.x] = bad;
    }
}

template <class C>
__device__ __forceinline__ void sum_of_squares_finish(const C* partial, int64 blocks, C* out) {
    C total = C(0), bad = C(0);
    for (int64 b = threadIdx.x; b < blocks; b += FINISH_THREADS) {
        total += partial[b];
        bad = Maximum::of(bad, partial[blocks + b]);
    }
    total = reduce_group<Sum>(total);
    bad = reduce_group<Maximum>(bad);
    if (threadIdx.x == 0) {
        out[0] = total;
        out[1] = bad;
    }
}

#define ENTRY_(formula, T)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) sum_of_squares_##T(            \
        const T* x, const compute_of<T>* p, const compute_of<T>* unscale,                \
        const compute_of<T>* l2, int64 penalized, compute_of<T>* partial, int64 count) { \
        sum_of_squares<T>(x, p, unscale, l2, penalized, partial, count);                 \
    }
#define FINISH_(formula, C)                                                                 \
    extern "C" __global__ void __launch_bounds__(FINISH_THREADS) sum_of_squares_finish_##C( \
        const compute_of<C>* partial, int64 blocks, compute_of<C>* out) {                   \
        sum_of_squares_finish<compute_of<C>>(partial, blocks, out);                         \
    }
#define ENTRY(formula, T) ENTRY_(formula, T)
#define FINISH(formula, T) FINISH_(formula, T)
FOR_EACH_DTYPE(ENTRY, )
FOR_EACH_COMPUTE_DTYPE(FINISH, )
