// matrices.h - products of matrices by the tensor cores of a warp (mma.sync).
//   Each lane leaves its elements of A and B, and takes what its elements of the product need. Where they lie
//   is the PTX ISA's: g = lane / 4 is a row of A and a column of B, t = lane % 4 a column and a row.
#pragma once
#include "block.h"

namespace emu {

// What a card does with the lower 13 bits is its own affair: a number that has some was never rounded.
EMU_BARE inline float tf32(unsigned word) {
    if (word & 0x1fffu) EMU_FAIL("mma.sync of %08x, which is no number of TF32", word);
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

// sum += A (16, 8) B (8, 8) for the four elements of this lane: the terms exactly, in float64, and rounded once.
EMU_BARE inline void multiply_m16n8k8(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Warp& warp = current->block->warps[current->number / 32];
    if (warp.alive != ~0u) EMU_FAIL("mma.sync in a warp without all its lanes");
    unsigned lane = current->number % 32, g = lane / 4, t = lane % 4;
    auto& words = warp.fragments[warp.round[0] % 2];
    for (unsigned n = 0; n < 4; ++n) words[lane][n] = a[n];
    for (unsigned n = 0; n < 2; ++n) words[lane][4 + n] = b[n];
    warp_barrier(~0u, "mma.sync", false);
    for (unsigned n = 0; n < 4; ++n) {
        unsigned lower = n / 2, column = 2 * t + n % 2;  // the row is g, or g + 8
        double all = sum[n];
        for (unsigned k = 0; k < 8; ++k) {
            unsigned right = k / 4;
            float x = tf32(words[4 * g + k % 4][lower + 2 * right]);
            float y = tf32(words[4 * column + k % 4][4 + right]);
            all += double(x) * double(y);
        }
        sum[n] = float(all);
    }
}

}  // namespace emu

inline void __mma_m16n8k8_tf32(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emu::multiply_m16n8k8(sum, a, b);
}
