// Drawing: a fraction of a microsecond with some dozens of characters, a few with top_k or top_p.
#include "draw.hpp"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "simd.hpp"

namespace rngru {
namespace {

// e^x for x <= 0, to 1 ulp or so; exactly 0 below -708. As simd.hpp's, in double; the compiler makes vectors of it.
RNGRU_INLINE double exp_negative(double x) {
    const double round = 6755399441055744.0;  // 1.5 * 2^52
    const double y = x < -708 ? -708 : x;
    const double shifted = y * 1.4426950408889634 + round, n = shifted - round;
    const double f = y - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
    double p = 1. / 6227020800;
    p = p * f + 1. / 479001600;
    p = p * f + 1. / 39916800;
    p = p * f + 1. / 3628800;
    p = p * f + 1. / 362880;
    p = p * f + 1. / 40320;
    p = p * f + 1. / 5040;
    p = p * f + 1. / 720;
    p = p * f + 1. / 120;
    p = p * f + 1. / 24;
    p = p * f + 1. / 6;
    p = p * f + 0.5;
    p = p * f + 1;
    p = p * f + 1;
    uint64_t bits;
    memcpy(&bits, &shifted, 8);
    bits = (bits << 52) + 0x3ff0000000000000u;
    double power;
    memcpy(&power, &bits, 8);
    return x < -708 ? 0 : p * power;
}
}  // namespace

// Takes away the shares of all that top_k and top_p leave out.
void Draw::choose(const float* logits) {
    int64_t left = 0;
    for (int64_t v = 0; v < m.N; ++v)
        if (m.allowed[v]) ranking[left++] = (int32_t)v;
    const auto likelier = [logits](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
    const auto less = [&](int32_t a, int32_t b) { return likelier(b, a); };
    if (m.top_k < left) {
        std::nth_element(ranking, ranking + m.top_k, ranking + left, likelier);
        while (left > m.top_k) shares[ranking[--left]] = 0;
    }
    if (m.top_p == 1) return;
    double all = 0, sum = 0;
    for (int64_t i = 0; i < left; ++i) all += shares[ranking[i]];
    std::make_heap(ranking, ranking + left, less);
    for (; left > 0 && (sum == 0 || sum / all < m.top_p); --left) {  // one at least: a top_p below 1e-308 may count as 0 here
        std::pop_heap(ranking, ranking + left, less);
        sum += shares[ranking[left - 1]];
    }
    while (left > 0) shares[ranking[--left]] = 0;
}

int64_t Draw::operator()(const float* logits, double uniform) {
    const int64_t N = m.N;
    double most = -INFINITY;
    int64_t likeliest = 0;
    for (int64_t v = 0; v < N; ++v) {
        if (!m.allowed[v]) continue;
        const double logit = logits[v];
        if (!(logit < INFINITY)) return -1;
        if (logit > most) most = logit, likeliest = v;
    }
    if (most == -INFINITY) return -1;
    if (m.temp == 0) return likeliest;
    for (int64_t v = 0; v < N; ++v) shares[v] = ((double)logits[v] - most) / m.temp;
    for (int64_t v = 0; v < N; ++v) shares[v] = exp_negative(shares[v]);
    if (m.top_k < N || m.top_p < 1) choose(logits);
    double sum = 0;
    for (int64_t v = 0; v < N; ++v) shares[v] = sum += m.allowed[v] && shares[v] >= m.min_p ? shares[v] : 0;
    const double end = uniform * sum;
    int64_t v = 0;
    while (v < N - 1 && !(shares[v] > end)) ++v;
    return v;
}
}  // namespace rngru
