// resident_tensor.cuh - products of matrices in shared memory by tensor cores (sm_80 and later).
//   C[i, j] = sum_k A(i, k) B(j, k) as resident_product.cuh has it, of numbers that are rounded to TF32 when they
//   are read; sums are float32. A warp has M x N fragments of 16 x 8 elements of C and takes eight k at a time.
//   Elements are added in the order of k, eight by eight, so the result depends on neither M and N nor the warps.
//   Lane 4 g + t has one element of each 8 x 4 part of a side. Which row, column and k of C that is, is free, and
//   is chosen so that the lanes of an access lie in 32 banks (rows are four times an odd number of floats apart):
//     both along k     rows g,                      k = t and t + 4
//     A along k        columns g % 4 + 16 (g / 4),  k = t and t + 4
//     neither along k  rows g,                      k = 2 t and 2 t + 1
//   and of C, whose columns are stored by twos or by fours.
#pragma once
#include "reduce.cuh"
#include "resident_product.cuh"

namespace resident {

// Which columns of C a warp's N fragments have. Those of one are eight neighbours, and a lane's two are four
// apart; or (FAR) four of 32 neighbours and four that are 16 further, and a lane's two are neighbours.
template <bool FAR, int N> struct Columns {
    static_assert(N == 2 || N == 4, "a group is 16 columns, or 32");
    static __device__ __forceinline__ int groups(int cols) {
        if (!FAR || N == 4) return (cols + 8 * N - 1) / (8 * N);
        int rest = cols % 32;
        return cols / 32 * 2 + (rest > 8 ? 2 : rest > 0);
    }
    // The n-th column of fragment f.
    static __device__ __forceinline__ int of(int group, int f, int n) {
        if (!FAR) return (group * N + f) * 8 + n / 2 + n % 2 * 4;
        int fragment = group * N + f;
        return fragment / 4 * 32 + fragment % 4 * 4 + n % 4 + n / 4 * 16;
    }
};

// One side of a product: of `PARTS` times eight rows (or columns of C) a lane's element of each, of two k of the
// eight that come next. NEIGHBOURS: the lane's two k are neighbours.
template <int PARTS, bool ALONG_K, bool NEIGHBOURS> struct Fragments {
    const float *at[PARTS], *matrix;
    int stride, first_k;

    __device__ __forceinline__ Fragments(Matrix side, int lane)
        : matrix(side.at), stride(side.stride), first_k(NEIGHBOURS ? lane % 4 * 2 : lane % 4) {}

    // Part `part` is row `i`; beyond the last the last is read, and what comes of it is not stored.
    __device__ __forceinline__ void place(int part, int i, int size) {
        if (i >= size) i = size - 1;
        at[part] = matrix + (ALONG_K ? i * stride + first_k : i + first_k * stride);
    }
    // In TF32; where only `left` of the eight k are there, 0 for the others: those of shared memory may be NaN.
    // Returns the sum of the two as they were.
    template <bool WHOLE>
    __device__ __forceinline__ float load(int part, int left, uint32 (&words)[2]) const {
        float x[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            int k = NEIGHBOURS ? n : 4 * n;
            x[n] = WHOLE || k + first_k < left ? at[part][ALONG_K ? k : k * stride] : 0.f;
            words[n] = ptx::round_to_tf32(x[n]);
        }
        return x[0] + x[1];
    }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) at[part] += ALONG_K ? 8 : 8 * stride;
    }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// The next eight k, all of them there if WHOLE; and of A alone, of the lane's two.
template <bool WHOLE, bool SUMS_A, int M, int N, class A, class B>
__device__ __forceinline__ void add_eight(
    A& a, B& b, int left, float (&sum)[M][N][4], float (&sum_a)[2 * M]) {
    uint32 rows[2 * M][2], columns[N][2];
#pragma unroll
    for (int m = 0; m < 2 * M; ++m) {
        float two = a.template load<WHOLE>(m, left, rows[m]);
        if (SUMS_A) sum_a[m] += two;
    }
#pragma unroll
    for (int n = 0; n < N; ++n) b.template load<WHOLE>(n, left, columns[n]);
    a.advance();
    b.advance();
#pragma unroll
    for (int m = 0; m < M; ++m) {
        uint32 both[4] = {rows[2 * m][0], rows[2 * m + 1][0], rows[2 * m][1], rows[2 * m + 1][1]};
#pragma unroll
        for (int n = 0; n < N; ++n) ptx::multiply_tf32(sum[m][n], both, columns[n]);
    }
}

// A lane's two elements of a row of a fragment; as one access where they are neighbours.
template <bool FAR, class Store>
__device__ __forceinline__ void read_two(const Store& store, int i, const int (&j)[2], int cols, float* beside) {
    if (FAR && j[1] < cols) {
        read_beside<2>(store, i, j[0], beside);
        return;
    }
    if (j[0] < cols) read_beside<1>(store, i, j[0], beside);
    if (j[1] < cols) read_beside<1>(store, i, j[1], beside + 1);
}
template <bool FAR, class Store>
__device__ __forceinline__ void store_two(
    const Store& store, int i, const int (&j)[2], int cols, const float* own) {
    if (FAR && j[1] < cols) {
        store_own<2>(store, i, j[0], own);
        return;
    }
    if (j[0] < cols) store_own<1>(store, i, j[0], own);
    if (j[1] < cols) store_own<1>(store, i, j[1], own + 1);
}

// A lane's rows of C one after another, as store_rows: every eighth from `row` on, of columns j.
template <bool FAR, int M, int N, class Store>
__device__ __forceinline__ void store_fragments(
    int row, const int (&j)[N][2], int rows, int cols, const Store& store, float (&sum)[M][N][4]) {
    float column[2 * N];
#pragma unroll
    for (int n = 0; n < 2 * N; ++n) column[n] = j[n / 2][n % 2] < cols ? store.of_column(j[n / 2][n % 2]) : 0.f;
    int end = row + 16 * M < rows ? row + 16 * M : rows;
#pragma unroll 1
    for (int i = row; i < end; i += 8) {
        float own[2 * N], beside[2 * N] = {};
#pragma unroll
        for (int n = 0; n < N; ++n) {
            own[2 * n] = sum[0][n][0], own[2 * n + 1] = sum[0][n][1];
            if (store.from != nullptr) read_two<FAR>(store, i, j[n], cols, beside + 2 * n);
        }
        store.finish(own, column, beside);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            store_two<FAR>(store, i, j[n], cols, own + 2 * n);
#pragma unroll
            for (int m = 0; m < M; ++m) {  // the next row to the first place
                sum[m][n][0] = sum[m][n][2], sum[m][n][1] = sum[m][n][3];
                if (m + 1 < M) sum[m][n][2] = sum[m + 1][n][0], sum[m][n][3] = sum[m + 1][n][1];
            }
        }
    }
}

template <int M, int N, bool A_ALONG_K, bool B_ALONG_K, class Store>
__device__ __forceinline__ void product_in_fragments(
    Matrix A, Matrix B, int rows, int cols, int depth, Store store) {
    constexpr bool FAR = A_ALONG_K && !B_ALONG_K;
    using Its = Columns<FAR, N>;
    int lane = thread() % 32, across = Its::groups(cols);
    int tiles = (rows + 16 * M - 1) / (16 * M) * across;
#pragma unroll 1
    for (int tile = thread() / 32; tile < tiles; tile += WARPS) {
        int down = tile / across, group = tile - down * across, row = down * 16 * M + lane / 4;
        Fragments<2 * M, A_ALONG_K, !A_ALONG_K> a(A, lane);
        Fragments<N, B_ALONG_K, !A_ALONG_K> b(B, lane);
#pragma unroll
        for (int m = 0; m < 2 * M; ++m) a.place(m, row + 8 * m, rows);
#pragma unroll
        for (int n = 0; n < N; ++n) b.place(n, Its::of(group, n, lane / 4), cols);
        float sum[M][N][4] = {}, sum_a[2 * M] = {};
        __syncwarp();  // the lanes stored apart; a product of tensor cores is of them all
        int left = depth;
#pragma unroll 2
        for (; left >= 8; left -= 8) add_eight<true, Store::SUMS_A>(a, b, left, sum, sum_a);
        if (left > 0) add_eight<false, Store::SUMS_A>(a, b, left, sum, sum_a);
        // Anew, so that registers need not hold them meanwhile.
        lane = thread() % 32, row = down * 16 * M + lane / 4;
        if constexpr (Store::SUMS_A) {
            if (group == 0) {
#pragma unroll
                for (int m = 0; m < 2 * M; ++m) {
                    float whole = reduce_lanes<Sum>(sum_a[m], 4);  // the four lanes of a row
                    if (lane % 4 == 0 && row + 8 * m < rows) store.row_sum(row + 8 * m, whole);
                }
            }
        }
        int j[N][2];
#pragma unroll
        for (int n = 0; n < 2 * N; ++n) j[n / 2][n % 2] = Its::of(group, n / 2, lane % 4 * 2 + n % 2);
        store_fragments<FAR>(row, j, rows, cols, store, sum);
    }
}

// As `Fma` of resident_product.cuh, in TF32. Of 32 x 32 elements a warp where that gives every warp work.
struct Tensor {
    template <bool A_ALONG_K, bool B_ALONG_K, class Store>
    static __device__ __forceinline__ void product(
        Matrix A, Matrix B, int rows, int cols, int depth, Store store) {
        if ((rows + 31) / 32 * ((cols + 31) / 32) >= WARPS)
            product_in_fragments<2, 4, A_ALONG_K, B_ALONG_K>(A, B, rows, cols, depth, store);
        else if (rows > 16)
            product_in_fragments<2, 2, A_ALONG_K, B_ALONG_K>(A, B, rows, cols, depth, store);
        else
            product_in_fragments<1, 2, A_ALONG_K, B_ALONG_K>(A, B, rows, cols, depth, store);
    }
};

#endif

}  // namespace resident
