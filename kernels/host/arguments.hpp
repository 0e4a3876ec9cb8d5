// arguments.hpp - what the host functions take: one struct each, by address.
//   gpubackprop/backends/native/arguments.py has the same fields in the same order.
//   In each struct: addresses, then int64 and uint64, then double, then int. No gaps but at the end.
//   Sizes and strides count elements. Rows (or elements) [first, last) are computed, so a call is a part
//   of the work that any thread may take. Pointers are null where a thing is not wanted or not there.
//   ..._storage is a Storage. `formula` and `activation` count the FOR_EACH_ lists from 0.
//   "C*" is float64 where the storage is float64, else float32.
#pragma once
#include "../include/types.cuh"

enum Storage { STORED_F64, STORED_F32, STORED_F16, STORED_BF16, STORED_U8, STORED_I32, STORED_I64 };

// a = product + bias; h = g(a), with dropout: the kernel affine_epilogue. bias null: activation_forward.
//   product: product_storage, which is that of the layer, or f32 for 16 bits; bias, a, h: storage
//   h or a may be product; a null: not kept; a receives g(a) if dropout and g's slope is one of h
//   dropout_state null: no dropout. element number = (dropout_row + row) * cols + column
struct AffineEpilogueArguments {
    const void *product, *bias;
    void *a, *h;
    const uint64* dropout_state;
    int64 first, last, cols, stride_product, stride_a, stride_h, dropout_threshold, dropout_layer;
    int64 dropout_row;
    double parameter, dropout_scale;
    int storage, product_storage, activation;
};

// delta = grad_h * g'(saved), with dropout; sums of delta: `partial` and grad_b as in ColumnSumArguments.
//   delta may be grad_h or saved; saved may be null for identity; partial and grad_b null: no sums
struct ActivationBackwardArguments {
    const void *grad_h, *saved;
    void *delta, *partial, *grad_b;
    const uint64* dropout_state;
    int64 first, last, rows, cols, stride_grad, stride_saved, stride_delta, chunk_rows;
    int64 dropout_threshold, dropout_layer, dropout_row;
    double parameter, dropout_scale;
    int storage, sum_storage, activation;
};

// partial[c, j] = sum of x[i, j] over rows i of chunk c; a chunk is chunk_rows rows, the last may be less.
//   first is a multiple of chunk_rows, last is one or `rows`; partial: C[ceil(rows / chunk_rows), cols]
//   out not null: [first, last) is all rows, and out = their sum / divisor is written too (else by
//   gb_column_sum_finish); x: storage, out: sum_storage
struct ColumnSumArguments {
    const void* x;
    void *partial, *out;
    int64 first, last, rows, cols, stride, chunk_rows;
    double divisor;
    int storage, sum_storage;
};

// out[j] = sum_c partial[c, j] / divisor; partial: C of `storage`, [rows, cols]; out: sum_storage
struct ColumnSumFinishArguments {
    const void* partial;
    void* out;
    int64 rows, cols;
    double divisor;
    int storage, sum_storage;
};

// Loss and delta of rows [first, last); row_loss, lse, upstream, loss: C*; correct: u8*
//   labels (label_storage u8, i32 or i64) or probabilities (probability_storage f64 or f32)
//   sample_weight, class_weight: C*; upstream null: upstream_value, else upstream[i * upstream_stride]
//   divisor of the mean: divisor_at null: `divisor`, else *divisor_at (float64), by gb_row_weights before
//   weighs: [first, last) is all rows; compute the sum of weights first and write *divisor_at, if any
//   loss not null: [first, last) is all rows, and loss = sum row_loss / divisor is written too (needs
//   row_loss), else by gb_reduce_loss. empty_is_zero: where the divisor is 0, loss is 0 and delta is
//   not divided; otherwise both are NaN
//   a label outside [0, cols) that is not ignored: its row's loss and delta are NaN
//   delta may be logits, and null: the loss alone; row_loss null: not wanted
struct SoftmaxCrossEntropyArguments {
    const void *logits, *labels, *probabilities;
    void *delta, *row_loss, *lse;
    int64* predicted;
    u8* correct;
    const void *sample_weight, *class_weight, *upstream;
    double* divisor_at;
    void* loss;
    int64 first, last, rows, cols, stride_logits, stride_delta, stride_probabilities, upstream_stride;
    int64 ignore_index;
    double upstream_value, divisor, label_smoothing, z_loss, soft_cap;
    int storage, label_storage, probability_storage, has_ignore_index, weighs, empty_is_zero;
};

// out = softmax(a), or its logarithm; out may be a
struct SoftmaxArguments {
    const void* a;
    void* out;
    int64 first, last, cols, stride_a, stride_out;
    int storage, log_output;
};

// out = O(a): kind 0: a, 1: logistic(a), 2: exp(a); out may be a
struct OutputArguments {
    const void* a;
    void* out;
    int64 first, last, cols, stride_a, stride_out;
    int storage, kind;
};

// Loss and delta of rows [first, last), as for softmax cross entropy. targets: target_storage, any but i32
//   divisor_factor: what the sum of weights is multiplied by (number of units for elementwise_mean)
struct PointwiseLossArguments {
    const void *a, *targets;
    void *delta, *row_loss;
    u8* correct;
    const void *sample_weight, *upstream;
    double* divisor_at;
    void* loss;
    int64 first, last, rows, cols, stride_a, stride_targets, stride_delta, upstream_stride;
    double upstream_value, divisor, divisor_factor, parameter;
    int storage, target_storage, formula, weighs, empty_is_zero;
};

// *divisor_at = factor * sum_i sample_weight[i] * class_weight[labels[i]], 0 for ignored rows
//   sample_weight, class_weight: C* of `storage`
struct RowWeightsArguments {
    const void *labels, *sample_weight, *class_weight;
    double* divisor_at;
    int64 rows, classes, ignore_index;
    double factor;
    int storage, label_storage, has_ignore_index;
};

// loss = sum row_loss / divisor; divisor as above; row_loss, loss: C* of `storage`
struct ReduceLossArguments {
    const void* row_loss;
    const double* divisor_at;
    void* loss;
    int64 rows;
    double divisor;
    int storage, empty_is_zero;
};

// Elements [first, last) of one step of an optimizer: the kernel update
//   p: storage; g: gradient_storage; copy: copy_storage; s0, s1, s2, c, decay, clip, l2, unscale: C* of p
//   g' = clip * (unscale * g + l2 * p [elements before `penalized`]) + decay * p  (coupled)
//   decoupled: p *= decay before the step. Each null: left out. c: the formula's coefficients
//   random = {seed, step}: p (if in 16 bits) and copy are rounded stochastically
struct UpdateArguments {
    void* p;
    const void* g;
    void *s0, *s1, *s2, *copy;
    const void *c, *decay, *clip, *l2, *unscale;
    const uint64* random;
    int64 first, last, penalized;
    int storage, gradient_storage, copy_storage, formula;
};

// The coefficients of a step, in float64, rounded to C: c (8), and decay if not null
//   hyperparameters: f64 in the registry's order
struct PrepareUpdateArguments {
    const double* hyperparameters;
    void *c, *decay;
    double lr, step, weight_decay;
    int storage, formula;
};

// partial[c] = sum of x^2 over elements of chunk c (of `chunk` elements). first is a multiple of chunk,
//   last is one or count
//   out not null: [first, last) is everything, and the sum is written too, else by the finish
struct SumOfSquaresArguments {
    const void* x;
    double *partial, *out;
    int64 first, last, count, chunk;
    int storage;
};

struct SumOfSquaresFinishArguments {
    const double* partial;
    double* out;
    int64 chunks;
};

// out += scale * x over elements [first, last); scale: C*
struct AddScaledArguments {
    const void *x, *scale;
    void* out;
    int64 first, last;
    int storage;
};

// out[i] = source[rows[i]], converted; rows null: out[i] = source[i]; numbers out of range: the nearest
//   source_storage: any; out_storage: f64 .. bf16, or the integer type of source, or i64 of i32
struct GatherRowsArguments {
    const void* source;
    const int64* rows;
    void* out;
    int64 first, last, cols, source_rows, stride_source, stride_out;
    int source_storage, out_storage;
};

// out = (raw - mean) / scale in float64, rounded once; mean, scale: f64[cols]
//   raw_storage: any; out_storage: f64 .. bf16
struct StandardizeArguments {
    const void* raw;
    const double *mean, *scale;
    void* out;
    int64 first, last, cols, stride_raw, stride_out;
    int raw_storage, out_storage;
};

// out = x / divisor over elements [first, last), in the compute type; out may be x
struct DivideArguments {
    const void* x;
    void* out;
    int64 first, last;
    double divisor;
    int storage, out_storage;
};

// out = x over elements [first, last), to nearest, or stochastically with random = {seed, step}
struct RoundToStorageArguments {
    const void* x;
    void* out;
    const uint64* random;
    int64 first, last;
    int storage, out_storage;
};

// One step added to the totals of an epoch (gpubackprop.backends.loss.Total): the kernel accumulate
//   loss: C* of `storage`; correct: u8[rows]; weights2: f64 or null; l2: C* or null for l2_value
struct AccumulateArguments {
    const void* loss;
    const u8* correct;
    const double* weights2;
    const void* l2;
    double* totals;
    int64 rows;
    double l2_value;
    int storage;
};

// a[i, k] = (add ? a[i, k] : 0) + sum_g W[k, codes[i, g]] of rows [first, last): the kernel one_hot_forward
//   codes: i32[rows, groups], a number outside [0, inputs) for none; W, a: storage f64 or f32
struct OneHotForwardArguments {
    const int* codes;
    const void* W;
    void* a;
    int64 first, last, groups, units, inputs, stride_W, stride_a;
    int storage, add;
};

// grad_W[k, j] = sum of delta[i, k] over the rows i of code j, added in float64 in the rows' order, for units
//   [first, last) and the columns of the groups: the kernel one_hot_backward
//   bounds: i64[groups, 2], first column of a group and the one behind its last
//   sums: f64[ONE_HOT_UNITS * the columns of the widest group], of this call alone
struct OneHotBackwardArguments {
    const int* codes;
    const int64* bounds;
    const void* delta;
    void* grad_W;
    double* sums;
    int64 first, last, rows, groups, stride_delta, stride_W;
    int storage;
};

// functions[i](arguments[i]) for i < count: several calls as one
struct RunArguments {
    void (*const* functions)(const void*);
    const void* const* arguments;
    int64 count;
};
