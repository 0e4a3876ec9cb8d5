// host_math_reference.cpp - the largest error of a float function against the C library in double.
//   The arguments are the 2^32 / step patterns first, first + step, ... as floats.
#include <cmath>
#include <cstring>

using Function = void (*)(const float*, float*, long long);
using Exact = double (*)(double);

struct Worst {
    double error;     // in units in the last place of the exact result
    float at;
    long long wrong;  // results of another class: NaN, infinite or of the other sign
};

static double last_place(double exact) {
    int exponent;
    std::frexp(exact, &exponent);
    return std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

static void compare(float x, float mine, double exact, Worst& worst) {
    float rounded = float(exact);
    bool same_kind = std::isnan(exact) ? std::isnan(mine) : std::isinf(rounded) == std::isinf(mine);
    if (!same_kind || (!std::isnan(exact) && std::signbit(rounded) != std::signbit(mine))) {
        if (worst.wrong++ == 0) worst.at = x;
        return;
    }
    if (std::isnan(exact) || std::isinf(rounded)) return;
    double error = std::fabs(double(mine) - exact) / last_place(exact);
    if (error > worst.error) worst.error = error, worst.at = x;
}

extern "C" void largest_error(Function function, const char* name, long long first, long long step, Worst* worst) {
    struct { const char* name; Exact exact; } known[] = {
        {"exp", std::exp}, {"log", std::log}, {"expm1", std::expm1}, {"log1p", std::log1p}, {"tanh", std::tanh}};
    Exact exact = nullptr;
    for (auto& entry : known)
        if (std::strcmp(entry.name, name) == 0) exact = entry.exact;
    *worst = {0.0, 0.f, 0};
    constexpr int BLOCK = 4096;
    float x[BLOCK], y[BLOCK];
    for (long long at = first; at < (1ll << 32); at += BLOCK * step) {
        int n = 0;
        for (; n < BLOCK && at + n * step < (1ll << 32); ++n) {
            unsigned pattern = unsigned(at + n * step);
            std::memcpy(&x[n], &pattern, sizeof pattern);
        }
        function(x, y, n);
        for (int i = 0; i < n; ++i) compare(x[i], y[i], exact(double(x[i])), *worst);
    }
}
