// probes.cu - entries of the tests' own, which show what headers of the kernels compute.
#include "../../kernels/include/last_block.cuh"
#include "../../kernels/include/philox.cuh"
#include "../../kernels/include/reduce.cuh"
#include "../../kernels/include/strip.cuh"
#include "../../kernels/include/vector.cuh"

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

// Elements [lo, hi) of the pack at x: as load_part has them, and where the two ways to store leave them.
#define PROBE_PART(T)                                                                                  \
    extern "C" __global__ void probe_part_##T(const T* x, T* loaded, T* stored, T* words, int lo, int hi) { \
        Pack<T, PACK<T>> pack = load_part<T, PACK<T>>(x, lo, hi);                                      \
        for (int e = 0; e < PACK<T>; ++e) loaded[e] = pack.v[e];                                       \
        pack = global::load_part<T, PACK<T>>(x, lo, hi);                                               \
        global::store_part(stored, pack, lo, hi);                                                      \
        Words<T, PACK<T>> both;                                                                        \
        both.pack = pack;                                                                              \
        store_words<T>(words, both, lo, hi);                                                           \
    }                                                                                                  \
    extern "C" __global__ void probe_to_storage_##T(const compute_of<T>* x, T* rounded) {                  \
        compute_of<T> v[PACK<T>];                                                                      \
        for (int e = 0; e < PACK<T>; ++e) v[e] = x[e];                                                 \
        store_words<T>(rounded, to_storage_all<T>(v), 0, PACK<T>);                                         \
    }
PROBE_PART(f64)
PROBE_PART(f32)
PROBE_PART(f16)
PROBE_PART(bf16)

// Sums and maxima of the groups' numbers, twice in turn, as each thread has them.
extern "C" __global__ void probe_groups(const float* x, float* sums, float* maxima) {
    int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int turn = 0; turn < 2; ++turn, thread += threads) {
        sums[thread] = reduce_group<Sum>(x[thread]);
        maxima[thread] = reduce_group<Maximum>(x[thread]);
    }
}

extern "C" __global__ void probe_compensated(const float* a, const float* b, int64 count, float* out) {
    Compensated<float> sum, products;
    for (int64 i = 0; i < count; ++i) sum.add(a[i]), products.add_product(a[i], b[i]);
    out[0] = sum.value(), out[1] = products.value();
}

// The sums over blocks of what their threads hold, by the last block: `sum` and whether `counter` is 0 again.
extern "C" __global__ void probe_last_block(const float* x, float* partial, float* sum, int* counter) {
    float own = block_sum(x[block_of_grid() * threads_of_block() + thread_of_block()]);
    if (thread_of_block() == 0) partial[block_of_grid()] = own;
    if (!is_last_block(counter)) return;
    float all = 0.f;
    for (uint32 i = thread_of_block(); i < blocks_of_grid(); i += threads_of_block()) all += partial[i];
    all = block_sum(all);
    if (thread_of_block() == 0) *sum = all;
}
