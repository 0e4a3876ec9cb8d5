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
    template <bool WHOLE>
    __device__ __forceinline__ void load(int part, int left, uint32 (&words)[2]) const {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            int k = NEIGHBOURS ? n : 4 * n;
            float x = WHOLE || k + first_k < left ? at[part][ALONG_K ? k : k * stride] : 0.f;
            words[n] = ptx::round_to_tf32(x);
        }
    }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) at[part] += ALONG_K ? 8 : 8 * stride;
    }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// The next eight k, all of them there if WHOLE.
template <bool WHOLE, int M, int N, class A, class B>
__device__ __forceinline__ void add_eight(A& a, B& b, int left, float (&sum)[M][N][4]) {
    uint32 rows[2 * M][2], columns[N][2];
#pragma unroll
    for (int m = 0; m < 2 * M; ++m) a.template load<WHOLE>(m, left, rows[m]);
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
        float sum[M][N][4] = {};
        __syncwarp();  // the lanes stored apart; a product of tensor cores is of them all
        int left = depth;
#pragma unroll 2
        for (; left >= 8; left -= 8) add_eight<true>(a, b, left, sum);
        if (left > 0) add_eight<false>(a, b, left, sum);
#pragma unroll
        for (int m = 0; m < 2 * M; ++m) {
            int i = row + 8 * m;
            if (i >= rows) continue;
#pragma unroll
            for (int n = 0; n < N; ++n) {
                float* two = &sum[m / 2][n][m % 2 * 2];
                int j = Its::of(group, n, lane % 4 * 2);
                int other = Its::of(group, n, lane % 4 * 2 + 1);
                if constexpr (FAR) {
                    if (other < cols) {
                        store(i, j, Pack<float, 2>{{two[0], two[1]}});
                        continue;
                    }
                }
                if (j < cols) store(i, j, Pack<float, 1>{{two[0]}});
                if (other < cols) store(i, other, Pack<float, 1>{{two[1]}});
            }
        }
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
