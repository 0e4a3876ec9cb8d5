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

// What becomes of a product; each Store has it as its base. A thread that has COUNT elements of a row of C calls
//   finish(own, column, beside)   own: the elements, which become what is stored in `to`
//                                 column: of_column(j) of each, read once for all rows of a tile
//                                 beside: what `from` has in their places; 0 if it is null
// and, where SUMS_A, row_sum(i, sum_k A(i, k)) is called once for each row.
struct Destination {
    static constexpr bool SUMS_A = false;
    float* to;
    const float* from;
    int stride;  // of both
    __device__ __forceinline__ float of_column(int) const { return 0.f; }
};

// E neighbours from element (i, j) on.
template <int E, class Store>
__device__ __forceinline__ void read_beside(const Store& store, int i, int j, float* beside) {
    Pack<float, E> pack = shared_pack<E>(store.from + i * store.stride + j);
#pragma unroll
    for (int e = 0; e < E; ++e) beside[e] = pack.v[e];
}
template <int E, class Store>
__device__ __forceinline__ void store_own(const Store& store, int i, int j, const float* own) {
    Pack<float, E> pack;
#pragma unroll
    for (int e = 0; e < E; ++e) pack.v[e] = own[e];
    store_shared_pack(store.to + i * store.stride + j, pack);
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
template <int TILE, bool A_ALONG_K, bool B_ALONG_K, bool SUMS_A, class A, class B>
__device__ __forceinline__ void add_four(
    const A& a, const B& b, int k, int limit, float (&sum)[TILE][TILE], float (&sum_a)[TILE]) {
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
            if constexpr (SUMS_A) {
                static_assert(!A_ALONG_K, "there is no such product");
#pragma unroll
                for (int r = 0; r < TILE; ++r) sum_a[r] += across.v[r];
            }
#pragma unroll
            for (int r = 0; r < TILE; ++r)
#pragma unroll
                for (int c = 0; c < TILE; ++c)
                    sum[r][c] += (A_ALONG_K ? left[r].v[e] : across.v[r]) * right.v[c];
        }
    }
}

// A thread's rows of C one after another, in a loop that is not unrolled: the next row comes to sum[0]. So the
// formulas of `store` are there once and not TILE times.
template <int TILE, bool B_ALONG_K, class A, class B, class Store>
__device__ __forceinline__ void store_rows(
    const A& a, const B& b, int rows, int cols, const Store& store, float (&sum)[TILE][TILE]) {
    bool whole = !B_ALONG_K && b.row(TILE - 1) < cols;
    float column[TILE];
#pragma unroll
    for (int c = 0; c < TILE; ++c) column[c] = b.row(c) < cols ? store.of_column(b.row(c)) : 0.f;
#pragma unroll 1
    for (int r = 0; r < TILE; ++r) {
        int i = a.row(r);
        if (i >= rows) break;  // rows grow with r
        float beside[TILE] = {};
        if (store.from != nullptr) {
            if (whole) read_beside<TILE>(store, i, b.row(0), beside);
#pragma unroll
            for (int c = 0; c < TILE; ++c)
                if (!whole && b.row(c) < cols) read_beside<1>(store, i, b.row(c), beside + c);
        }
        store.finish(sum[0], column, beside);
        if (whole) store_own<TILE>(store, i, b.row(0), sum[0]);
#pragma unroll
        for (int c = 0; c < TILE; ++c)
            if (!whole && b.row(c) < cols) store_own<1>(store, i, b.row(c), sum[0] + c);
#pragma unroll
        for (int q = 1; q < TILE; ++q)
#pragma unroll
            for (int c = 0; c < TILE; ++c) sum[q - 1][c] = sum[q][c];
    }
}

struct Matrix {
    const float* at;
    int stride;
};

// C, (rows, cols), to where `store` says. Accesses there are of TILE neighbours in a row where B is not read along
// k and the columns are there, else of one. A and B are read along k or not.
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
        float sum[TILE][TILE] = {}, sum_a[TILE] = {};
#pragma unroll 1
        for (int first = 0; first < depth; first += SEQUENCE) {
            float part[TILE][TILE] = {}, part_a[TILE] = {};
            int end = depth - first < SEQUENCE ? depth : first + SEQUENCE, k = first;
#pragma unroll 1
            for (; k + 4 <= end; k += 4)
                add_four<TILE, A_ALONG_K, B_ALONG_K, Store::SUMS_A>(a, b, k, 4, part, part_a);
            if (k < end) add_four<TILE, A_ALONG_K, B_ALONG_K, Store::SUMS_A>(a, b, k, end - k, part, part_a);
#pragma unroll
            for (int r = 0; r < TILE; ++r) {
                sum_a[r] += part_a[r];
#pragma unroll
                for (int c = 0; c < TILE; ++c) sum[r][c] += part[r][c];
            }
        }
        store_rows<TILE, B_ALONG_K>(a, b, rows, cols, store, sum);
        if constexpr (Store::SUMS_A) {
            if (tile != down * across || lane % LANES_J != 0) continue;
#pragma unroll
            for (int r = 0; r < TILE; ++r)
                if (a.row(r) < rows) store.row_sum(a.row(r), sum_a[r]);
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

}  // namespace resident
