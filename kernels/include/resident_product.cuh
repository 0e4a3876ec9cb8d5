// resident_product.cuh - products of matrices in shared memory, by all threads of a block.
//   C[i, j] = sum_k A(i, k) B(j, k). A row of a matrix in shared memory is `stride` floats, four times an odd
//   number: then eight neighbouring rows' packs of 16 bytes at one column lie in all 32 banks.
//   A thread has TILE x TILE elements of C in registers and takes four k at a time. Terms are added in the
//   order of k, a new sum every SEQUENCE of them; so the result depends on neither TILE nor the threads.
#pragma once
#include "resident.cuh"

namespace resident {

constexpr int SEQUENCE = 32, LANES_I = 8, LANES_J = 4;

template <int E> __device__ __forceinline__ Pack<float, E> shared_pack(const float* p) {
    Words<float, E> both;
    both.words[0] = *reinterpret_cast<const typename Words<float, E>::W*>(p);
    return both.pack;
}
template <int E> __device__ __forceinline__ void store_shared_pack(float* p, const Pack<float, E>& pack) {
    Words<float, E> both;
    both.pack = pack;
    *reinterpret_cast<typename Words<float, E>::W*>(p) = both.words[0];
}

template <int E>
__device__ __forceinline__ Pack<float, E> sum_of(Pack<float, E> a, const Pack<float, E>& b) {
#pragma unroll
    for (int e = 0; e < E; ++e) a.v[e] += b.v[e];
    return a;
}

// One side of a product: M(i, k) is memory[at + i * stride + k] (ALONG_K) or memory[at + k * stride + i].
//   A thread's TILE rows are LANES apart if they are read along k, and neighbours if not.
template <int TILE, int LANES, bool ALONG_K> struct Operand {
    const float* from[ALONG_K ? TILE : 1];
    int stride, index;

    // `first`: of the warp's rows; `size`: rows there are, beyond which the last is read in their place.
    __device__ __forceinline__ Operand(const float* matrix, int stride, int first, int lane, int size)
        : stride(stride), index(first + (ALONG_K ? lane : lane * TILE)) {
        if constexpr (ALONG_K) {
#pragma unroll
            for (int r = 0; r < TILE; ++r) {
                int i = row(r);
                from[r] = matrix + (i < size ? i : size - 1) * stride;
            }
        } else {
            from[0] = matrix + (index + TILE <= stride ? index : stride - TILE);
        }
    }
    __device__ __forceinline__ int row(int r) const { return index + (ALONG_K ? r * LANES : r); }

    __device__ __forceinline__ Pack<float, 4> along_k(int r, int k) const {
        return shared_pack<4>(from[r] + k);
    }
    __device__ __forceinline__ Pack<float, TILE> across_k(int k) const {
        return shared_pack<TILE>(from[0] + k * stride);
    }
};

// Four k from `k` on, of which `limit` exist. What is read along k is read four k at once.
template <int TILE, bool A_ALONG_K, bool B_ALONG_K, class A, class B>
__device__ __forceinline__ void add_four(
    const A& a, const B& b, int k, int limit, float (&sum)[TILE][TILE]) {
    Pack<float, 4> left[TILE];
    if constexpr (A_ALONG_K) {
#pragma unroll
        for (int r = 0; r < TILE; ++r) left[r] = a.along_k(r, k);
    }
    if constexpr (B_ALONG_K) {
        static_assert(A_ALONG_K, "there is no such product");
#pragma unroll
        for (int c = 0; c < TILE; ++c) {
            Pack<float, 4> right = b.along_k(c, k);
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int r = 0; r < TILE; ++r)
                    if (e < limit) sum[r][c] += left[r].v[e] * right.v[e];
        }
    } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (e >= limit) continue;
            Pack<float, TILE> right = b.across_k(k + e), across{};
            if constexpr (!A_ALONG_K) across = a.across_k(k + e);
#pragma unroll
            for (int r = 0; r < TILE; ++r)
#pragma unroll
                for (int c = 0; c < TILE; ++c)
                    sum[r][c] += (A_ALONG_K ? left[r].v[e] : across.v[r]) * right.v[c];
        }
    }
}

struct Matrix {
    const float* at;
    int stride;
};

// store(i, j, sums) for all elements of C, (rows, cols), as Packs of neighbours in a row: four or two where B is
// not read along k and the columns are there, else one. A and B are read along k or not.
template <int TILE, bool A_ALONG_K, bool B_ALONG_K, class Store>
__device__ __forceinline__ void product_in_tiles(
    Matrix A, Matrix B, int rows, int cols, int depth, Store store) {
    int lane = thread() % 32, across = (cols + LANES_J * TILE - 1) / (LANES_J * TILE);
    int tiles = (rows + LANES_I * TILE - 1) / (LANES_I * TILE) * across;
#pragma unroll 1
    for (int tile = thread() / 32; tile < tiles; tile += WARPS) {
        int down = tile / across;
        Operand<TILE, LANES_I, A_ALONG_K> a(A.at, A.stride, down * LANES_I * TILE, lane / LANES_J, rows);
        Operand<TILE, LANES_J, B_ALONG_K> b(
            B.at, B.stride, (tile - down * across) * LANES_J * TILE, lane % LANES_J, cols);
        float sum[TILE][TILE] = {};
#pragma unroll 1
        for (int first = 0; first < depth; first += SEQUENCE) {
            float part[TILE][TILE] = {};
            int end = depth - first < SEQUENCE ? depth : first + SEQUENCE, k = first;
#pragma unroll 1
            for (; k + 4 <= end; k += 4) add_four<TILE, A_ALONG_K, B_ALONG_K>(a, b, k, 4, part);
            if (k < end) add_four<TILE, A_ALONG_K, B_ALONG_K>(a, b, k, end - k, part);
#pragma unroll
            for (int r = 0; r < TILE; ++r)
#pragma unroll
                for (int c = 0; c < TILE; ++c) sum[r][c] += part[r][c];
        }
#pragma unroll
        for (int r = 0; r < TILE; ++r) {
            if (a.row(r) >= rows) continue;
            if constexpr (!B_ALONG_K) {
                if (b.row(TILE - 1) < cols) {
                    Pack<float, TILE> pack;
#pragma unroll
                    for (int c = 0; c < TILE; ++c) pack.v[c] = sum[r][c];
                    store(a.row(r), b.row(0), pack);
                    continue;
                }
            }
#pragma unroll
            for (int c = 0; c < TILE; ++c)
                if (b.row(c) < cols) store(a.row(r), b.row(c), Pack<float, 1>{{sum[r][c]}});
        }
    }
}

// A network's product, in float32: in tiles of 4 x 4 where that gives every warp work, else of 2 x 2.
struct Fma {
    template <bool A_ALONG_K, bool B_ALONG_K, class Store>
    static __device__ __forceinline__ void product(
        Matrix A, Matrix B, int rows, int cols, int depth, Store store) {
        int tiles = ((rows + 4 * LANES_I - 1) / (4 * LANES_I)) * ((cols + 4 * LANES_J - 1) / (4 * LANES_J));
        if (tiles >= WARPS) product_in_tiles<4, A_ALONG_K, B_ALONG_K>(A, B, rows, cols, depth, store);
        else product_in_tiles<2, A_ALONG_K, B_ALONG_K>(A, B, rows, cols, depth, store);
    }
};

// sums(j, sum_n M[n, j]) for each column, a thread to a column.
template <class Store>
__device__ __forceinline__ void column_sums(Matrix M, int rows, int cols, Store store) {
#pragma unroll 1
    for (int j = thread(); j < cols; j += THREADS) {
        float sum = 0.f;
#pragma unroll 1
        for (int first = 0; first < rows; first += SEQUENCE) {
            float part = 0.f;
            int end = rows - first < SEQUENCE ? rows : first + SEQUENCE;
            for (int n = first; n < end; ++n) part += M.at[n * M.stride + j];
            sum += part;
        }
        store(j, sum);
    }
}

}  // namespace resident
