// naive_softmax_cross_entropy: the formula as the lecture has it, a thread to a row, and nothing else
//   m_i = max_k z_ik,  S_i = sum_k exp(z_ik - m_i),  p_ik = exp(z_ik - m_i) / S_i
//   row_loss[i] = log S_i - (z_iy - m_i),  delta[i, k] = p_ik - [k = y_i],  with y_i = labels[i]
//   logits, delta: f32[rows, cols] without gaps; delta may be logits
//   labels: int64[rows] in [0, cols), not checked; row_loss: f32[rows]
//   moves 4 * rows * cols * sizeof(float): reads logits three times, writes delta once
//   The threads of a warp read at a distance of a row: each of their 32 numbers is in a sector of its own.
//   For readers, and for the tests that count what it wastes: the package launches softmax_cross_entropy.cu.
//   measured: not measured on a GPU
#include "include/types.cuh"

extern "C" __global__ void __launch_bounds__(256) naive_softmax_cross_entropy_f32(
    const f32* logits, const int64* labels, f32* row_loss, f32* delta, int64 rows, int64 cols) {
    int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    const f32* z = logits + i * cols;
    f32* d = delta + i * cols;
    int64 y = labels[i];

    // First read: the largest logit, so that no exponential overflows.
    f32 m = z[0];
    for (int64 k = 1; k < cols; ++k) m = ::fmax(m, z[k]);

    // Second read: the sum of the exponentials.
    f32 S = 0;
    for (int64 k = 0; k < cols; ++k) S += ::exp(z[k] - m);

    // Third read, and the write: each exponential is computed once more.
    for (int64 k = 0; k < cols; ++k) {
        f32 shifted = z[k] - m;
        if (k == y) row_loss[i] = ::log(S) - shifted;
        d[k] = ::exp(shifted) / S - (k == y ? 1.0f : 0.0f);
    }
}
