// philox.cuh - Philox4x32-10, the counter-based generator of Salmon et al. 2011 (Random123).
//   random word of element i = word i % 4 of philox(counter = {i / 4, offset}, key = seed): a pure
//   function of the element's number, so a mask is the same under any launch shape and on any path.
//   offset = stream(step, number): dropout of hidden layer l (from 0) has number l, the stochastic
//   rounding of the weights ROUNDING_STREAM. gpubackprop/formulas/dropout.py is the NumPy twin.
#pragma once
#include "types.cuh"

constexpr uint64 ROUNDING_STREAM = 0xffff;

// Steps below 2^48, numbers below 2^16.
__device__ __forceinline__ uint64 stream(uint64 step, uint64 number) { return step << 16 | number; }

struct Philox { uint32 word[4]; };

__device__ __forceinline__ Philox philox(uint64 block, uint64 offset, uint64 seed) {
    uint32 c0 = uint32(block), c1 = uint32(block >> 32);
    uint32 c2 = uint32(offset), c3 = uint32(offset >> 32);
    uint32 k0 = uint32(seed), k1 = uint32(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64 left = uint64(0xD2511F53u) * c0, right = uint64(0xCD9E8D57u) * c2;
        c0 = uint32(right >> 32) ^ c1 ^ k0;
        c1 = uint32(right);
        c2 = uint32(left >> 32) ^ c3 ^ k1;
        c3 = uint32(left);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The random words of E elements from number `first` on (which may be below 0 in a peeled head): one
// block of four words for every four elements, and one more where `first` is no multiple of four.
template <int E>
__device__ __forceinline__ void random_words(int64 first, uint64 offset, uint64 seed, uint32 (&out)[E]) {
    constexpr int BLOCKS = (E + 6) / 4;
    int shift = int(first & 3);
    uint32 word[4 * BLOCKS] = {};
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
        if (4 * b >= shift + E) continue;
        Philox block = philox(uint64(first >> 2) + b, offset, seed);
#pragma unroll
        for (int w = 0; w < 4; ++w) word[4 * b + w] = block.word[w];
    }
    // selected, not indexed: an index known only at run time would put the words in local memory
#pragma unroll
    for (int e = 0; e < E; ++e) {
        uint32 low = shift & 2 ? word[e + 2] : word[e], high = shift & 2 ? word[e + 3] : word[e + 1];
        out[e] = shift & 1 ? high : low;
    }
}
