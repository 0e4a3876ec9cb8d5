// cublaslt.cpp - a shared library with the functions of cuBLASLt that this package binds, in their real
// ABI, on host memory. It computes a product when the stand-in's stream gets there, and refuses what
// the library refuses:
//   - an attribute of another size than cublasLt.h names, or an unknown one: INVALID_VALUE
//   - layouts that do not fit the operations, a leading dimension below the rows: INVALID_VALUE
//   - types outside the table of cublasLtMatmul in the documentation: NOT_SUPPORTED
//   - a question for algorithms during a capture (CUDA 13.3 fails there): INTERNAL_ERROR
//   - an algorithm of another problem, a workspace that is smaller than it wants or not on 256 bytes,
//     an address less aligned than the preference said: INVALID_VALUE
//   - an epilogue that cublasLt.h does not name (the library takes any number until it is asked for
//     an algorithm), one without its addresses, a column of the mask that is no multiple of 128 bits
//     or below the rows of D (cublasLt.h 13.0, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD), an address of
//     bias or mask less aligned than it was when the algorithm was asked for (same place,
//     ..._BIAS_POINTER, ..._AUX_POINTER): INVALID_VALUE
//   - GELU and the epilogues without bias: NOT_SUPPORTED, since the package does not ask for them
// Bias and bias gradient have the type of D (table 1 of cublasLtMatmul in the documentation).
// An address that faults: BGRADB with one column of D (NVIDIA/apex issue 1392, CUDA 11.6).
// `standin_behave` chooses what no documentation says. ReLU of NaN is 0 by default, as was seen on
// cards (NVIDIA's developer forum, "Incorrect result of cublasLtMatmul with CUBLASLT_EPILOGUE_RELU
// when input is NaN", April 2025), and the mask's bit of it 0.
// A product fills its workspace with garbage, so that memory that someone else uses shows it. Of the
// proposals one has a state other than SUCCESS, and a second adds its terms in another order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_TF32 = 77 };
enum Kind : uint64_t { CONTEXT = 0xc0ffee01, DESCRIPTOR, LAYOUT, PREFERENCE };

struct Context { Kind kind = CONTEXT; };
enum Epilogue : uint32_t { DEFAULT = 1, BIAS = 4, RELU_AUX_BIAS = 134, DRELU = 136, DRELU_BGRAD = 152, BGRADA = 256, BGRADB = 512 };
enum Behaviour { KEEPS_NAN = 1, ROUNDS_BGRAD = 2, VARIES = 4 };  // see standin_behave
struct Descriptor {
    Kind kind = DESCRIPTOR;
    int compute, scale;
    int32_t transpose[2] = {0, 0};
    uint32_t epilogue = DEFAULT;
    void *bias = nullptr, *mask = nullptr;
    int64_t mask_stride = 0;
};
struct Layout {
    Kind kind = LAYOUT;
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Preference {
    Kind kind = PREFERENCE;
    uint64_t workspace = 0;
    uint32_t schemes = 7, aligned[4] = {256, 256, 256, 256};
};
struct Algorithm { uint64_t data[8]; };
struct Result {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
struct Job {
    int type_a, type_b, type_d, compute;
    int64_t m, n, k, step_a[2], step_b[2], stride_d;  // steps: along the result, along the sum
    const void *a, *b;
    void *d, *workspace;
    size_t workspace_bytes;
    bool backwards, adds;  // the order of the terms; whether the product is added to d
    uint32_t epilogue;
    void* bias;
    unsigned char* mask;
    int64_t mask_stride;
};

using Queue = void (*)(void* stream, void* job);
Queue queue_job = nullptr;
int (*is_capturing)() = nullptr;
int behaviour = 0;

template <class T> bool is(const void* object, Kind kind) {
    return object != nullptr && static_cast<const T*>(object)->kind == kind;
}

float widen_half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3ffu, u;
    float f;
    if (exponent == 0) {
        f = float(fraction) * 5.9604644775390625e-8f;
        return sign ? -f : f;
    }
    u = exponent == 31 ? sign | 0x7f800000u | fraction << 13 : sign | (exponent + 112) << 23 | fraction << 13;
    memcpy(&f, &u, 4);
    return f;
}

uint16_t narrow_half(float x) {  // to nearest, ties to even; the compiler's _Float16 does it
    _Float16 h = static_cast<_Float16>(x);
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}

double read(const void* base, int type, int64_t i) {
    switch (type) {
        case R_64F: return static_cast<const double*>(base)[i];
        case R_32F: return static_cast<const float*>(base)[i];
        case R_16F: return widen_half(static_cast<const uint16_t*>(base)[i]);
    }
    uint32_t u = uint32_t(static_cast<const uint16_t*>(base)[i]) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

void write(void* base, int type, int64_t i, double value) {
    if (type == R_64F) static_cast<double*>(base)[i] = value;
    else if (type == R_32F) static_cast<float*>(base)[i] = float(value);
    else if (type == R_16F) static_cast<uint16_t*>(base)[i] = narrow_half(float(value));
    else {
        float f = float(value);
        uint32_t u;
        memcpy(&u, &f, 4);
        if (f != f) u = 0x7fc00000u;
        else u += 0x7fffu + (u >> 16 & 1u);
        static_cast<uint16_t*>(base)[i] = uint16_t(u >> 16);
    }
}

float to_tf32(float x) {  // 10 bits of fraction, to nearest
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0x0fffu + (u >> 13 & 1u)) & ~0x1fffu;
    memcpy(&x, &u, 4);
    return x;
}

// Bit i of column j; which bit of memory that is, the library does not say.
bool bit(const Job& job, int64_t i, int64_t j) {
    int64_t at = j * job.mask_stride + i;
    return job.mask[at / 8] >> at % 8 & 1;
}

// What is done with column j of the product. The bits of the mask beyond the rows are garbage.
template <class C> void finish(const Job& job, int64_t j, std::vector<C>& column, std::vector<C>& gradient) {
    if (job.epilogue == RELU_AUX_BIAS) memset(job.mask + j * job.mask_stride / 8, 0xff, job.mask_stride / 8);
    for (int64_t i = 0; i < job.m; ++i) {
        C& x = column[i];
        if (job.epilogue == BIAS || job.epilogue == RELU_AUX_BIAS) x += C(read(job.bias, job.type_d, i));
        if (job.epilogue == RELU_AUX_BIAS) {
            bool on = x > C(0) || (behaviour & KEEPS_NAN && x != x);
            int64_t at = j * job.mask_stride + i;
            if (!on) x = C(0), job.mask[at / 8] &= static_cast<unsigned char>(~(1u << at % 8));
        }
        if ((job.epilogue == DRELU || job.epilogue == DRELU_BGRAD) && !bit(job, i, j)) x = C(0);
        if (job.epilogue == DRELU_BGRAD) gradient[i] += x;
    }
}

// Each element is the sum of LANES partial sums of every LANES-th term.
template <class C> void compute(const Job& job) {
    constexpr int64_t LANES = 8;
    static int runs = 0;
    double varied = behaviour & VARIES && job.epilogue != DEFAULT ? ++runs % 2 : 0;
    auto operand = [&](const void* base, int type, int64_t i) {
        C x = C(read(base, type, i));
        return job.compute == COMPUTE_TF32 ? C(to_tf32(float(x))) : x;
    };
    std::vector<C> left(job.m * job.k), sums(job.m * LANES), gradient(job.m, C(0));
    for (int64_t l = 0; l < job.k; ++l)
        for (int64_t i = 0; i < job.m; ++i)
            left[l * job.m + i] = operand(job.a, job.type_a, i * job.step_a[0] + l * job.step_a[1]);
    for (int64_t j = 0; j < job.n; ++j) {
        std::fill(sums.begin(), sums.end(), C(0));
        for (int64_t s = 0; s < job.k; ++s) {
            int64_t l = job.backwards ? job.k - 1 - s : s;
            C right = operand(job.b, job.type_b, j * job.step_b[0] + l * job.step_b[1]);
            C *sum = &sums[s % LANES * job.m], *terms = &left[l * job.m];
            for (int64_t i = 0; i < job.m; ++i) sum[i] += terms[i] * right;
        }
        for (int64_t i = 0; i < job.m; ++i)
            for (int64_t lane = 1; lane < LANES; ++lane) sums[i] += sums[lane * job.m + i];
        finish(job, j, sums, gradient);
        for (int64_t i = 0; i < job.m; ++i) {
            int64_t at = j * job.stride_d + i;
            write(job.d, job.type_d, at, job.adds ? sums[i] + C(read(job.d, job.type_d, at)) : sums[i] + C(varied));
        }
    }
    if (job.epilogue == DRELU_BGRAD)
        for (int64_t i = 0; i < job.m; ++i) write(job.bias, job.type_d, i, gradient[i]);
    const int64_t columns = job.epilogue == BGRADA ? job.m : job.epilogue == BGRADB ? job.n : 0;
    for (int64_t j = 0; j < columns; ++j) {
        C sum = C(0);
        for (int64_t l = 0; l < job.k; ++l) {
            C x = job.epilogue == BGRADA ? C(read(job.a, job.type_a, j * job.step_a[0] + l * job.step_a[1]))
                                         : C(read(job.b, job.type_b, j * job.step_b[0] + l * job.step_b[1]));
            sum += behaviour & ROUNDS_BGRAD ? C(to_tf32(float(x))) : x;
        }
        write(job.bias, job.type_d, j, sum);
    }
}

uint64_t mix(uint64_t h, uint64_t x) { return (h ^ x) * 0x9e3779b97f4a7c15ull + (h >> 29); }

// What an algorithm is made for.
uint64_t identity(const Descriptor& d, const Layout& a, const Layout& b, const Layout& out) {
    uint64_t h = mix(mix(mix(mix(1, d.compute), d.scale), d.transpose[0]), d.transpose[1]);
    h = mix(mix(h, d.epilogue), uint64_t(d.mask_stride));
    for (const Layout* part : {&a, &b, &out})
        h = mix(mix(mix(mix(h, part->type), part->rows), part->columns), part->stride);
    return h;
}

int fits(const Descriptor& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
    auto rows = [&](const Layout& x, int t) { return t ? x.columns : x.rows; };
    auto columns = [&](const Layout& x, int t) { return t ? x.rows : x.columns; };
    for (const Layout* part : {&a, &b, &c, &out})
        if (part->rows == 0 || part->columns == 0 || part->stride < int64_t(part->rows)) return INVALID_VALUE;
    if (rows(a, d.transpose[0]) != out.rows || columns(b, d.transpose[1]) != out.columns ||
        columns(a, d.transpose[0]) != rows(b, d.transpose[1]) || c.rows != out.rows ||
        c.columns != out.columns || c.type != out.type)
        return INVALID_VALUE;
    bool wide = d.compute == COMPUTE_64F && d.scale == R_64F && a.type == R_64F && b.type == R_64F && out.type == R_64F;
    bool single = (d.compute == COMPUTE_32F || d.compute == COMPUTE_TF32) && d.scale == R_32F &&
                  a.type == R_32F && b.type == R_32F && out.type == R_32F;
    bool sixteen = d.compute == COMPUTE_32F && d.scale == R_32F && a.type == b.type &&
                   (a.type == R_16F || a.type == R_16BF) && (out.type == a.type || out.type == R_32F);
    if (!wide && !single && !sixteen) return NOT_SUPPORTED;
    switch (d.epilogue) {
        case DEFAULT: return SUCCESS;
        case BIAS: case BGRADA: case BGRADB: return d.bias ? SUCCESS : INVALID_VALUE;
        case RELU_AUX_BIAS: case DRELU: case DRELU_BGRAD:
            if (!d.mask || (!d.bias && d.epilogue != DRELU)) return INVALID_VALUE;
            return d.mask_stride % 128 || d.mask_stride < int64_t(out.rows) ? INVALID_VALUE : SUCCESS;
        case 2: case 6: case 130: case 32: case 36: case 160: case 164: case 192: case 208: return NOT_SUPPORTED;
    }
    return INVALID_VALUE;
}

// The alignment that the addresses of bias and mask have now: two powers of two in one number.
uint64_t pointers(const Descriptor& d) {
    auto power = [](const void* p) { auto n = reinterpret_cast<uintptr_t>(p); return n ? std::min<uint64_t>(n & -n, 256) : 256; };
    return power(d.bias) | power(d.mask) << 32;
}
bool as_aligned(uint64_t have, uint64_t asked) { return uint32_t(have) >= uint32_t(asked) && have >> 32 >= asked >> 32; }

bool aligned(const void* address, uint64_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

}  // namespace

extern "C" {

// For the stand-in: who queues, whether a capture is under way, and the work itself.
void standin_begin(Queue queue, int (*capturing)()) { queue_job = queue, is_capturing = capturing; }
// KEEPS_NAN: ReLU of NaN is NaN, and its bit 1. ROUNDS_BGRAD: the terms of BGRADA and BGRADB are rounded to
// 10 bits. VARIES: two runs of one product with an epilogue differ.
void standin_behave(int how) { behaviour = how; }
// Returns whether an address faulted.
int standin_run(void* place) {
    const Job& job = *static_cast<Job*>(place);
    if (job.epilogue == BGRADB && job.n == 1) return 1;
    if (job.workspace_bytes) memset(job.workspace, 0x5a, job.workspace_bytes);
    if (job.compute == COMPUTE_64F) compute<double>(job);
    else compute<float>(job);
    return 0;
}
void standin_spans(void* place, uint64_t* ends) {  // first byte and behind the last: a, b, d, workspace, bias, mask
    const Job& job = *static_cast<Job*>(place);
    auto span = [&](int i, const void* base, int type, int64_t last) {
        uint64_t size = type == R_64F ? 8 : type == R_32F ? 4 : 2;
        ends[2 * i] = reinterpret_cast<uintptr_t>(base);
        ends[2 * i + 1] = ends[2 * i] + (last + 1) * size;
    };
    span(0, job.a, job.type_a, (job.m - 1) * job.step_a[0] + (job.k - 1) * job.step_a[1]);
    span(1, job.b, job.type_b, (job.n - 1) * job.step_b[0] + (job.k - 1) * job.step_b[1]);
    span(2, job.d, job.type_d, (job.n - 1) * job.stride_d + job.m - 1);
    ends[6] = reinterpret_cast<uintptr_t>(job.workspace), ends[7] = ends[6] + job.workspace_bytes;
    span(4, job.bias, job.type_d, (job.epilogue == BGRADB ? job.n : job.m) - 1);
    ends[10] = reinterpret_cast<uintptr_t>(job.mask), ends[11] = ends[10] + job.n * job.mask_stride / 8;
    if (!job.bias) ends[9] = ends[8];
    if (!job.mask) ends[11] = ends[10];
}
void standin_free(void* job) { delete static_cast<Job*>(job); }

size_t cublasLtGetVersion() { return 130002; }

int cublasLtCreate(void** handle) {
    *handle = new Context;
    return SUCCESS;
}

int cublasLtMatmulDescCreate(void** place, int compute, int scale) {
    if (compute != COMPUTE_32F && compute != COMPUTE_64F && compute != COMPUTE_TF32) return INVALID_VALUE;
    auto* made = new Descriptor;
    made->compute = compute, made->scale = scale;
    *place = made;
    return SUCCESS;
}
int cublasLtMatmulDescSetAttribute(void* object, int attribute, const void* value, size_t bytes) {
    if (!is<Descriptor>(object, DESCRIPTOR)) return INVALID_VALUE;
    auto& d = *static_cast<Descriptor*>(object);
    const struct { int number; size_t bytes; void* place; } attributes[] = {
        {3, 4, &d.transpose[0]}, {4, 4, &d.transpose[1]}, {7, 4, &d.epilogue}, {8, 8, &d.bias}, {11, 8, &d.mask}, {12, 8, &d.mask_stride}};
    for (const auto& known : attributes) {
        if (known.number != attribute || known.bytes != bytes) continue;
        if (attribute < 5 && *static_cast<const uint32_t*>(value) > 1) return INVALID_VALUE;
        memcpy(known.place, value, bytes);
        return SUCCESS;
    }
    return INVALID_VALUE;
}
int cublasLtMatmulDescDestroy(void* object) {
    if (!is<Descriptor>(object, DESCRIPTOR)) return INVALID_VALUE;
    delete static_cast<Descriptor*>(object);
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(void** place, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    auto* made = new Layout;
    made->type = type, made->rows = rows, made->columns = columns, made->stride = stride;
    *place = made;
    return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void* object) {
    if (!is<Layout>(object, LAYOUT)) return INVALID_VALUE;
    delete static_cast<Layout*>(object);
    return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(void** place) {
    *place = new Preference;
    return SUCCESS;
}
int cublasLtMatmulPreferenceSetAttribute(void* object, int attribute, const void* value, size_t bytes) {
    if (!is<Preference>(object, PREFERENCE)) return INVALID_VALUE;
    auto& preference = *static_cast<Preference*>(object);
    if (attribute == 1 && bytes == 8) memcpy(&preference.workspace, value, 8);
    else if (attribute == 3 && bytes == 4) memcpy(&preference.schemes, value, 4);
    else if (attribute >= 5 && attribute <= 8 && bytes == 4) memcpy(&preference.aligned[attribute - 5], value, 4);
    else return INVALID_VALUE;
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(void* object) {
    if (!is<Preference>(object, PREFERENCE)) return INVALID_VALUE;
    delete static_cast<Preference*>(object);
    return SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(
    void* context, void* descriptor, void* a, void* b, void* c, void* d, void* preference, int wanted,
    Result* results, int* count) {
    *count = 0;
    if (is_capturing()) return INTERNAL_ERROR;
    if (!is<Context>(context, CONTEXT) || !is<Descriptor>(descriptor, DESCRIPTOR) || !is<Layout>(a, LAYOUT) ||
        !is<Layout>(b, LAYOUT) || !is<Layout>(c, LAYOUT) || !is<Layout>(d, LAYOUT) ||
        !is<Preference>(preference, PREFERENCE) || wanted <= 0)
        return INVALID_VALUE;
    const auto& described = *static_cast<Descriptor*>(descriptor);
    const auto &la = *static_cast<Layout*>(a), &lb = *static_cast<Layout*>(b), &ld = *static_cast<Layout*>(d);
    if (int status = fits(described, la, lb, *static_cast<Layout*>(c), ld)) return status;
    const auto& wishes = *static_cast<Preference*>(preference);
    // Number, workspace, state, reduction scheme, which the mask may exclude. The third adds in the output's
    // type, the last in place, as its parts come.
    const struct { uint64_t number; size_t workspace; int state; uint32_t scheme; } proposals[] = {
        {1, 0, SUCCESS, 0}, {2, 0, NOT_SUPPORTED, 0}, {3, 4096, SUCCESS, 4}, {4, 1024, SUCCESS, 2},
        {5, 64, SUCCESS, 1}};
    for (const auto& proposal : proposals) {
        if (*count == wanted) break;
        if (proposal.workspace > wishes.workspace || (proposal.scheme && !(proposal.scheme & wishes.schemes))) continue;
        Result result = {};
        result.algorithm = {{proposal.number, identity(described, la, lb, ld), proposal.workspace, wishes.aligned[0],
                             wishes.aligned[1], wishes.aligned[3], pointers(described), 0x1755}};
        result.workspace = proposal.workspace;
        result.state = proposal.state;
        results[(*count)++] = result;
    }
    return SUCCESS;
}

int cublasLtMatmulAlgoCheck(
    void* context, void* descriptor, void* a, void* b, void* c, void* d, const Algorithm* algorithm, Result* result) {
    if (!is<Context>(context, CONTEXT) || !is<Descriptor>(descriptor, DESCRIPTOR)) return INVALID_VALUE;
    const auto& described = *static_cast<Descriptor*>(descriptor);
    const auto &la = *static_cast<Layout*>(a), &lb = *static_cast<Layout*>(b), &ld = *static_cast<Layout*>(d);
    if (int status = fits(described, la, lb, *static_cast<Layout*>(c), ld)) return status;
    if (algorithm->data[7] != 0x1755 || algorithm->data[1] != identity(described, la, lb, ld) ||
        !as_aligned(pointers(described), algorithm->data[6]))
        return INVALID_VALUE;
    result->workspace = algorithm->data[2];
    result->state = SUCCESS;
    return SUCCESS;
}

int cublasLtMatmul(
    void* context, void* descriptor, const void* alpha, const void* a, void* layout_a, const void* b, void* layout_b,
    const void* beta, const void* c, void* layout_c, void* d, void* layout_d, const Algorithm* algorithm,
    void* workspace, size_t workspace_bytes, void* stream) {
    Result checked;
    if (int status = cublasLtMatmulAlgoCheck(context, descriptor, layout_a, layout_b, layout_c, layout_d, algorithm, &checked))
        return status;
    const auto& described = *static_cast<Descriptor*>(descriptor);
    const auto &la = *static_cast<Layout*>(layout_a), &lb = *static_cast<Layout*>(layout_b), &ld = *static_cast<Layout*>(layout_d);
    if (workspace_bytes < checked.workspace || (checked.workspace && (workspace == nullptr || !aligned(workspace, 256))))
        return INVALID_VALUE;
    if (!aligned(a, algorithm->data[3]) || !aligned(b, algorithm->data[4]) || !aligned(d, algorithm->data[5]) || c != d)
        return INVALID_VALUE;
    double one = described.scale == R_64F ? *static_cast<const double*>(alpha) : *static_cast<const float*>(alpha);
    double old = described.scale == R_64F ? *static_cast<const double*>(beta) : *static_cast<const float*>(beta);
    if (one != 1.0 || (old != 0.0 && old != 1.0)) return NOT_SUPPORTED;  // the package asks for nothing else
    auto* job = new Job;
    bool ta = described.transpose[0], tb = described.transpose[1];
    job->type_a = la.type, job->type_b = lb.type, job->type_d = ld.type, job->compute = described.compute;
    job->m = ld.rows, job->n = ld.columns, job->k = ta ? la.rows : la.columns;
    job->step_a[0] = ta ? la.stride : 1, job->step_a[1] = ta ? 1 : la.stride;
    job->step_b[0] = tb ? 1 : lb.stride, job->step_b[1] = tb ? lb.stride : 1;
    job->stride_d = ld.stride, job->a = a, job->b = b, job->d = d;
    job->workspace = workspace, job->workspace_bytes = checked.workspace;
    static int in_place = 0;  // its parts come in another order each time
    job->backwards = algorithm->data[0] == 4 || (algorithm->data[0] == 5 && ++in_place % 2), job->adds = old != 0.0;
    job->epilogue = described.epilogue, job->bias = described.bias;
    job->mask = static_cast<unsigned char*>(described.mask), job->mask_stride = described.mask_stride;
    queue_job(stream, job);
    return SUCCESS;
}

}  // extern "C"
