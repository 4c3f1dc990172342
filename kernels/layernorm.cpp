// Layer normalisation and its gradient, a vector of H units after the other. The work of a vector that the first-level cache holds is
// less than bringing it there, so mean and variance, which the gradient needs again, are not kept.
#include "layernorm.hpp"

#include "pool.hpp"
#include "rngru.h"

namespace rngru {
namespace {
// f(row) for M rows of H elements, shared out among the threads.
template <class F>
void each_row(int64_t M, int64_t H, double flop, F f) {
    Parts parts(M, 1 + 65536 / H);
    parallel(threads_for(flop * (double)M * (double)H), [&](int, int threads) {
        for (int64_t row, end; parts.take(threads, row, end);)
            for (; row < end; ++row) f(row);
    });
}

// dS = (dN - mean(dN) - N mean(dN N)) scale, with N = centred scale.
void gradient(const float* S, int64_t H, const float* dN, float* dS) {
    const Centred centred(S, H);
    V sums[3];
    centred.add_up(sums, [&](auto whole, V c, int64_t j, V* to) RNGRU_LAMBDA {
        const V d = load<decltype(whole)::value>(dN + j, H - j);
        to[0] += c * c;
        to[1] += d;
        to[2] += c * d;
    });
    const float scale = normal_scale(sums[0], H);
    const V share = splat(scale / (float)H * sum_of_lanes(sums[2]) * scale);
    const V mean = splat(sum_of_lanes(sums[1]) / (float)H), scales = splat(scale);
    centred.each([&](auto whole, V c, int64_t j, int) RNGRU_LAMBDA {
        constexpr bool all = decltype(whole)::value;
        store<all>(dS + j, (load<all>(dN + j, H - j) - mean - c * share) * scales, H - j);
    });
}
}  // namespace
}  // namespace rngru

int rngru_layer_norm(int64_t M, int64_t H, const float* S, float* N) {
    using namespace rngru;
    Call call;
    Timer timer(LAYERNORM);
    each_row(M, H, 10, [&](int64_t row) { normalise(S + row * H, H, N + row * H); });
    return 0;
}

int rngru_layer_norm_gradient(int64_t M, int64_t H, const float* S, const float* dN, float* dS) {
    using namespace rngru;
    Call call;
    Timer timer(LAYERNORM);
    each_row(M, H, 20, [&](int64_t row) { gradient(S + row * H, H, dN + row * H, dS + row * H); });
    return 0;
}
