// philox.cuh - Philox4x32-10, the counter-based generator of Salmon et al. 2011 (Random123).
//   random word of element i = word i % 4 of philox(counter = {i / 4, offset}, key = seed): a pure
//   function of the element's number, so a mask is the same under any launch shape and on any path.
#pragma once
#include "types.cuh"

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

// The random words of E elements from number `first` on (which may be below 0 in a peeled head).
template <int E>
__device__ __forceinline__ void random_words(int64 first, uint64 offset, uint64 seed, uint32 (&out)[E]) {
    Philox block{};
#pragma unroll
    for (int e = 0; e < E; ++e) {
        int64 i = first + e;
        if (e == 0 || (i & 3) == 0) block = philox(uint64(i >> 2), offset, seed);
        // selected, not indexed: an index known only at run time would put the words in local memory
        uint32 low = i & 1 ? block.word[1] : block.word[0];
        uint32 high = i & 1 ? block.word[3] : block.word[2];
        out[e] = i & 2 ? high : low;
    }
}
