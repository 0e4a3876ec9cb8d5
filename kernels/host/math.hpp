// math.hpp - exp, log, expm1, log1p, tanh and what else the formulas of the kernels call, for the host.
//   The formulas call ::exp(x) and the like. Here these are short functions without branches or tables,
//   so that a loop over a formula becomes vector code under g++ and clang without -ffast-math.
//   float: within 0.9 units in the last place over all arguments (exp; 0.91 without fused multiply-add; the others
//   0.51). double: within 1.
//   tests/test_host_math.py holds that.
//   NaN, infinities, signed zeros and subnormal numbers are IEEE's. Do not include <cmath> beside it.
//   Compile with -fno-math-errno -fno-trapping-math -ffp-contract=off: what is fused is written so.
//   Coefficients without a name are minimax polynomials (Remez), or those of fdlibm (Sun Microsystems 1993).
#pragma once

// A formula is a long chain of dependent instructions, so loops over formulas (FORMULAS below) work on
// several vectors side by side. g++ does that only if it is told to schedule before it gives out registers.
#if defined(__clang__)
#define FORMULAS _Pragma("clang loop vectorize(assume_safety)")
#define TOGETHER FORMULAS
#else
#pragma GCC optimize("schedule-insns", "sched-pressure", "rename-registers", "web")
#define FORMULAS _Pragma("GCC unroll 4") _Pragma("GCC ivdep")
#define TOGETHER _Pragma("GCC unroll 8") _Pragma("GCC ivdep")  // a few vectors as a whole
#endif

namespace host {

using uint32 = unsigned int;
using uint64 = unsigned long long;

inline uint32 bits_of(float x) {
    uint32 u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
}
inline uint64 bits_of(double x) {
    uint64 u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
}
inline float number_of(uint32 u) {
    float x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}
inline double number_of(uint64 u) {
    double x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}

// a b + c, in one rounding where the machine has the instruction, else in two.
#if defined(__FMA__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif
inline float multiply_add(float a, float b, float c) {
    if constexpr (FUSED) return __builtin_fmaf(a, b, c);
    else return a * b + c;
}
inline double multiply_add(double a, double b, double c) {
    if constexpr (FUSED) return __builtin_fma(a, b, c);
    else return a * b + c;
}

// Without the instruction: the product exactly, by halves of 26 bits (Dekker 1971), then rounded twice.
inline double fma_in_steps(double a, double b, double c) {
    double product = a * b, up = a * 134217729.0, vp = b * 134217729.0;
    double ah = up - (up - a), al = a - ah, bh = vp - (vp - b), bl = b - bh;
    double lost = ((ah * bh - product) + ah * bl + al * bh) + al * bl, sum = product + c;
    double part = sum - product, rounding = (product - (sum - part)) + (c - part);
    double better = sum + (lost + rounding);
    return better - better == 0.0 ? better : sum;
}

// c[0] + c[1] x + ...: Horner's rule for the even powers and for the odd ones, side by side.
template <class C, int N> inline C polynomial(C x, const C (&c)[N]) {
    C square = x * x, even = c[(N - 1) / 2 * 2], odd = c[(N - 2) / 2 * 2 + 1];
#pragma GCC unroll 8
    for (int i = (N - 1) / 2 * 2 - 2; i >= 0; i -= 2) even = multiply_add(even, square, c[i]);
#pragma GCC unroll 8
    for (int i = (N - 2) / 2 * 2 - 1; i >= 1; i -= 2) odd = multiply_add(odd, square, c[i]);
    return multiply_add(odd, x, even);
}

// The same by Horner's rule alone: a longer chain, but fewer roundings before the last ones.
template <class C, int N> inline C one_by_one(C x, const C (&c)[N]) {
    C sum = c[N - 1];
#pragma GCC unroll 8
    for (int i = N - 2; i >= 0; --i) sum = multiply_add(sum, x, c[i]);
    return sum;
}

constexpr double LOG2_E = 1.4426950408889634, LN2_HIGH = 6.93147180369123816490e-01,  // 32 bits
                 LN2_LOW = 1.90821492927058770002e-10;
constexpr double MAGIC = 6755399441055744.0;  // 1.5 2^52: what is added to it is rounded to an integer
constexpr double INFINITE = __builtin_inf();

// The n in x = n log 2 + r with |r| <= log(2) / 2, as n + MAGIC.
inline double quotient(double x) { return multiply_add(x, LOG2_E, MAGIC); }
// 2^n of n + MAGIC + 1023, n + 1023 in [1, 2046].
inline double power_of_two(double biased) { return number_of(bits_of(biased) << 52); }

// expm1(x) = 2 (high + low), within 2^-58 of itself for x in [-38, 710].
inline void half_expm1(double x, double& high, double& low) {
    constexpr double q[] = {
        0.49999999999999999997, 0.16666666666666671008, 0.041666666666666683868, 0.0083333333333261116,
        0.0013888888888874348766, 0.00019841269874902596614, 0.000024801587347456773639,
        2.755725529650137821e-6, 2.7557252799752502435e-7, 2.5105260078061172278e-8,
        2.0921627266645780603e-9};
    double t = quotient(x), n = t - MAGIC;
    double left = multiply_add(n, -LN2_HIGH, x), lost = n * LN2_LOW, r = left - lost;
    double rest = multiply_add(r * r, polynomial(r, q), (left - r) - lost);  // expm1(r) = r + rest
    double half = power_of_two(t + 1022.0), constant = half - 0.5, linear = half * r;
    high = constant + linear;
    double part = high - constant;
    low = multiply_add(half, rest, (constant - (high - part)) + (linear - part));
}

// expm1(x) within 2^-33 of itself, for x in [-30, 90].
inline double short_expm1(double x) {
    constexpr double q[] = {
        0.50000000000000000, 0.16666666666648226763, 0.041666666666596652194, 0.0083333333537800698816,
        0.0013888888928651300987, 0.00019841208631886670551, 0.000024801506059668158023,
        2.7625171195095186289e-6};
    double t = quotient(x), n = t - MAGIC;
    double r = multiply_add(n, -LN2_LOW, multiply_add(n, -LN2_HIGH, x));
    double small = multiply_add(r * r, polynomial(r, q), r), scale = power_of_two(t + 1023.0);
    return multiply_add(scale, small, scale - 1.0);
}

// x = 2^k m with m in [sqrt(1/2), sqrt(2)), for normal x > 0.
inline void split(double x, double& k, double& m) {
    constexpr uint64 one = 0x3ff0000000000000u, root = 0x3fe6a09e667f3bcdu, fraction = 0x000fffffffffffffu;
    uint64 u = bits_of(x) + (one - root);
    k = number_of((u >> 52) | 0x4330000000000000u) - (4503599627370496.0 + 1023.0);
    m = number_of((u & fraction) + root);
}

// log(2^k (1 + f) (1 + c)), c below the last place of f.
inline double log_of_parts(double k, double f, double c) {
    constexpr double even[] = {3.999999999940941908e-01, 2.222219843214978396e-01, 1.531383769920937332e-01};
    constexpr double odd[] = {6.666666666666735130e-01, 2.857142874366239149e-01,
                              1.818357216161805012e-01, 1.479819860510658591e-01};
    double square = 0.5 * f * f, s = f / (2.0 + f), z = s * s, w = z * z;
    double series = multiply_add(w, polynomial(w, even), z * polynomial(w, odd));
    double small = multiply_add(s, square + series, multiply_add(k, LN2_LOW, c));
    return multiply_add(k, LN2_HIGH, f - (square - small));
}

// log(x) within 2^-32 of itself, for normal x > 0.
inline double short_log(double x) {
    constexpr double c[] = {2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13};
    double k, m;
    split(x, k, m);
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    return multiply_add(k, 0.69314718055994531, s * multiply_add(z, polynomial(z, c), 2.0));
}

// The logarithm at the ends of its range, where `inside` is no number: x is 0, negative, infinite or NaN.
template <class C> inline C log_or_limit(C x, C inside) {
    C end = x == C(0) ? C(-INFINITE) : x < C(0) ? C(__builtin_nan("")) : x;
    return x > C(0) && x < C(INFINITE) ? inside : end;
}

}  // namespace host

inline float fabs(float x) { return __builtin_fabsf(x); }
inline double fabs(double x) { return __builtin_fabs(x); }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }
inline float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
inline double fmax(double a, double b) { return __builtin_fmax(a, b); }
inline float floor(float x) { return __builtin_floorf(x); }
inline double floor(double x) { return __builtin_floor(x); }

inline float fma(float a, float b, float c) {
    if constexpr (host::FUSED) return __builtin_fmaf(a, b, c);
    else return float(double(a) * double(b) + double(c));
}
inline double fma(double a, double b, double c) {
    if constexpr (host::FUSED) return __builtin_fma(a, b, c);
    else return host::fma_in_steps(a, b, c);
}

// exp(x) = 2^n exp(r) and exp(r) = 1 + r + r^2 q(r). The power is applied in two factors, so that
// overflow and subnormal results are rounded once. A NaN passes the bounds and stays.
namespace host {

// exp(x) = number * last, `shift` being what the exponent of 2^n / last is biased by. With fused
// additions r may be rounded before p, which costs at most a quarter of a unit; otherwise `lost` comes apart.
inline float exp_in_two(float x, float shift, float last) {
    constexpr float u[] = {1.f, 0.499999940395f, 0.166665211320f, 0.0416683889925f, 0.00836872402579f,
                           0.00138145836536f};  // 1 + r q(r)
    constexpr float q[] = {0.50000000135f, 0.166666667567f, 0.0416664645756f,
                           0.00833328592642f, 0.00139336880625f, 0.000199076408691f};
    float magic = 12582912.f + shift;  // 1.5 2^23
    float t = multiply_add(x, float(LOG2_E), magic), n = t - magic, p;
    float left = multiply_add(n, -0.693359375f, x), power = number_of(bits_of(t) << 23);
    if constexpr (FUSED) {
        float r = multiply_add(n, 2.12194440e-4f, left);
        p = multiply_add(r, one_by_one(r, u), 1.f);
    } else {
        float lost = n * 2.12194440e-4f, r = left + lost;
        p = (multiply_add(r * r, polynomial(r, q), lost) + left) + 1.f;
    }
    return p * power * last;
}
inline double exp_in_two(double x, double shift, double last) {
    constexpr double q[] = {
        0.50000000000000010264, 0.1666666666666667456, 0.041666666666623987478, 0.0083333333333221730974,
        0.0013888888917283465566, 0.00019841269886695201042, 0.000024801521188003655731,
        2.7557242219069153356e-6, 2.762013963757589941e-7, 2.5110094155232377168e-8};
    double t = quotient(x), n = t - MAGIC;
    double left = multiply_add(n, -LN2_HIGH, x), lost = n * -LN2_LOW, r = left + lost;
    double p = (multiply_add(r * r, polynomial(r, q), lost) + left) + 1.0;
    return p * power_of_two(t + shift) * last;
}

constexpr float TWO_32 = 4294967296.f;
constexpr double TWO_54 = 18014398509481984.0;
inline float at_least(float x, float bound) { return x < bound ? bound : x; }
inline double at_least(double x, double bound) { return x < bound ? bound : x; }

// The least x whose exp(x) is normal in one factor, and exp(x) for x from there to 0, or NaN.
template <class C> constexpr C SHALLOW = sizeof(C) == 8 ? C(-708.0) : C(-87.0);
inline float exp_shallow(float x) { return exp_in_two(x, 127.f, 1.f); }
inline double exp_shallow(double x) { return exp_in_two(x, 1023.0, 1.0); }
// exp(x) for x <= 0, or NaN; the same bits.
inline float exp_below(float x) { return exp_in_two(at_least(x, -104.f), 127.f + 32.f, 1.f / TWO_32); }
inline double exp_below(double x) { return exp_in_two(at_least(x, -746.0), 1023.0 + 54.0, 1.0 / TWO_54); }

}  // namespace host

inline float exp(float x) {
    x = host::at_least(x, -104.f);
    x = x > 89.f ? 89.f : x;
    return host::exp_in_two(x, x < 0.f ? 127.f + 32.f : 126.f, x < 0.f ? 1.f / host::TWO_32 : 2.f);
}
inline double exp(double x) {
    x = host::at_least(x, -746.0);
    x = x > 710.0 ? 710.0 : x;
    return host::exp_in_two(x, x < 0.0 ? 1023.0 + 54.0 : 1022.0, x < 0.0 ? 1.0 / host::TWO_54 : 2.0);
}

inline float expm1(float x) {
    double wide = x < -30.f ? -30.f : x > 90.f ? 90.f : x;
    float result = float(host::short_expm1(wide));
    return fabs(x) < 1e-30f ? x : result;  // -0 stays
}
inline double expm1(double x) {
    double high, low, bounded = x < -38.0 ? -38.0 : x > 710.0 ? 710.0 : x;
    host::half_expm1(bounded, high, low);
    return fabs(x) < 0x1p-54 ? x : 2.0 * (high + low);
}

inline float log(float x) { return host::log_or_limit(x, float(host::short_log(x))); }
inline double log(double x) {
    bool small = x < 2.2250738585072014e-308;
    double k, m;
    host::split(small ? x * host::TWO_54 : x, k, m);
    return host::log_or_limit(x, host::log_of_parts(small ? k - 54.0 : k, m - 1.0, 0.0));
}

inline float log1p(float x) {
    double u = 1.0 + x;  // exact where x is not far below the last place of 1
    float inside = float(host::short_log(u));
    return fabs(x) < 0x1p-25f ? x : host::log_or_limit(float(u), inside);
}
inline double log1p(double x) {
    double u = 1.0 + x, k, m;
    double lost = x >= 1.0 ? 1.0 - (u - x) : x - (u - 1.0);  // 1 + x - u, exactly
    host::split(u, k, m);
    double inside = host::log_of_parts(k, m - 1.0, lost / u);
    return fabs(x) < 0x1p-54 ? x : host::log_or_limit(u, inside);
}

// tanh(x) = e / (e + 2) with e = expm1(2 |x|).
inline float tanh(float x) {
    float size = fabs(x);
    double e = host::short_expm1(size > 12.f ? 24.0 : 2.0 * size);
    float t = float(e / (e + 2.0));
    return fabs(x) < 1e-30f ? x : x < 0.f ? -t : t;
}
inline double tanh(double x) {
    double size = fabs(x), high, low;
    host::half_expm1(size > 20.0 ? 40.0 : 2.0 * size, high, low);  // e / 2
    double h = high + low, l = low - (h - high);
    double bottom = 1.0 + h, part = bottom - 1.0, lost = ((1.0 - (bottom - part)) + (h - part)) + l;
    double inverse = 1.0 / bottom, t = h * inverse;
    double rest = ::fma(-t, bottom, h) + (l - t * lost);  // h + l - t (bottom + lost)
    t = host::multiply_add(rest, inverse, t);
    return size < 0x1p-28 ? x : x < 0.0 ? -t : t;
}
