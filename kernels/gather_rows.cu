// gather_rows<S, D>: rows of a matrix by number, converted;  out[i, :] = D(source[rows[i], :])
//   source: S[source_rows, cols], out: D[count, cols], rows `stride_...` elements apart; rows: i64[count]
//   rows null: out[i] = source[i], a conversion of the whole matrix
//   a row number outside [0, source_rows) is moved to the nearest inside: never an access outside
//   moves count * cols * (sizeof(S) + sizeof(D)): reads each row once, writes it once
//   block (x, y): x threads along a row, y rows; grid (x): rows in turn, (y): parts of a row in turn
//   stores of 16 bytes where the out row allows, loads as wide as serves them
//   measured: not measured on a GPU
#include "include/arguments.cuh"
#include "include/entries.cuh"
#include "include/vector.cuh"

template <class S, class D> struct GatherRowsArguments {
    const S* source;
    const int64* rows;
    D* out;
    int64 count, cols, source_rows, stride_source, stride_out;
};

template <class S, class D>
__device__ __forceinline__ void gather_rows(const GatherRowsArguments<S, D>& a) {
    constexpr int E = PACK<D>;
    for (int64 i = int64(blockIdx.x) * blockDim.y + threadIdx.y; i < a.count;
         i += int64(gridDim.x) * blockDim.y) {
        int64 from = a.rows == nullptr ? i : a.rows[i];
        from = from < 0 ? 0 : from >= a.source_rows ? a.source_rows - 1 : from;
        const S* in_row = a.source + from * a.stride_source;
        D* out_row = a.out + i * a.stride_out;
        int64 first = -misalignment(out_row), step = int64(gridDim.y) * blockDim.x * E;
        for (int64 j = first + (int64(blockIdx.y) * blockDim.x + threadIdx.x) * E; j < a.cols; j += step) {
            int lo = j < 0 ? int(-j) : 0, hi = a.cols - j < E ? int(a.cols - j) : E;
            Pack<S, E> in = load_part<S, E>(in_row + j, lo, hi);
            Pack<D, E> result;
#pragma unroll
            for (int e = 0; e < E; ++e) result.v[e] = to_storage<D>(widen(in.v[e]));
            store_part(out_row + j, result, lo, hi);
        }
    }
}

#define ENTRY_(S, D)                                                         \
    extern "C" __global__ void __launch_bounds__(256) gather_rows_##S##_##D( \
        const __grid_constant__ GatherRowsArguments<S, D> a) {               \
        ptx::follow_the_grid_in_front();                                     \
        gather_rows<S, D>(a);                                                \
    }
#define ENTRY(S, D) ENTRY_(S, D)
#ifdef ONLY_FORMULA
ENTRY(ONLY_FORMULA, ONLY_DTYPE)
#else
FOR_EACH_DTYPE(ENTRY, u8) FOR_EACH_DTYPE(ENTRY, f16) FOR_EACH_DTYPE(ENTRY, bf16)
FOR_EACH_DTYPE(ENTRY, f32) FOR_EACH_DTYPE(ENTRY, f64)
ENTRY(i32, i32) ENTRY(i64, i64) ENTRY(i32, i64)
#endif
