// probes.cu - entries of the tests' own, which show what headers of the kernels compute.
#include "../../kernels/include/philox.cuh"
#include "../../kernels/include/strip.cuh"

// The four words of one counter {in[0], in[1]} and key in[2].
extern "C" __global__ void probe_philox(const uint64* in, uint32* out) {
    Philox words = philox(in[0], in[1], in[2]);
    for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}

// What each thread says of each row that it visits: 9 numbers, for up to `room` rows.
extern "C" __global__ void probe_strip(int64 rows, int64 cols, int join, int misaligned, int64 room, int64* out) {
    Strip<4> strip(rows, cols, join, misaligned);
    int64 block = int64(blockIdx.y) * gridDim.x + blockIdx.x;
    out += ((block * STRIP_ROWS + threadIdx.y) * STRIP_COLUMNS + threadIdx.x) * room * 9;
    if (!strip.inside) return;
    for (int64 r = strip.first + threadIdx.y; r < strip.last; r += STRIP_ROWS) {
        int64 said[] = {r, strip.lo(r), strip.hi(r), strip.place(r), strip.column, strip.first_column(),
                        strip.whole(r, 1), strip.whole(r, 2), strip.whole(r, 4)};
        for (int64 word : said) *out++ = word;
    }
}
