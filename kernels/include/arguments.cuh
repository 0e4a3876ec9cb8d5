// arguments.cuh - every kernel takes one argument: a struct, by value.
//   gpubackprop/backends/cupy/arguments.py declares the same fields, in the same order, and fills them by
//   name. It also writes a check of the layout, which is compiled with every entry: a field that is
//   missing, added, swapped or of another type on either side is a compile error.
//   A new option is one field in the struct and one in arguments.py.
#pragma once
#include "types.cuh"

// A number that the host knew at the launch (`at` is null), or that a kernel before left in memory.
template <class C> struct Number {
    const C* at;
    C value;
    __device__ __forceinline__ C get(int64 i = 0) const { return at == nullptr ? value : at[i]; }
};

// What the generated check is made of. `void kernel(const A a)` has the type void(A).
template <class A> __device__ A argument_of(void (*)(A));
template <class X> struct without_const { using type = X; };
template <class X> struct without_const<const X*> { using type = X*; };
// A field of type F, with `const X*` as X*, is of type X.
template <class F, class X> constexpr bool IS = SAME_TYPE<typename without_const<F>::type, X>;
