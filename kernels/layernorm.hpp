// A vector of a layer's output normalised: what the layer itself and the sampler make of it.
#pragma once
#include <type_traits>

#include "tile.hpp"

namespace rngru {

template <int n>
struct Lanes {
    typedef float type __attribute__((vector_size(n * 4)));
};
// The sum of a vector's lanes, halves added to halves.
template <int n = W>
RNGRU_INLINE float sum_of_lanes(typename Lanes<n>::type v) {
    if constexpr (n == 2) {
        return v[0] + v[1];
    } else {
        typename Lanes<n / 2>::type low, high;
        memcpy(&low, &v, sizeof low);
        memcpy(&high, (const char*)&v + sizeof low, sizeof high);
        return sum_of_lanes<n / 2>(low + high);
    }
}

// The vector S (H) moved by its first element, then by the mean of that: equal elements become exactly 0.
class Centred {
    static constexpr int SUMS = 4;  // at once: one alone would wait for its own additions
    const float* const S;
    const int64_t H;
    const V first;
    V mean = splat(0);

public:
    RNGRU_INLINE Centred(const float* S, int64_t H) : S(S), H(H), first(splat(S[0])) {
        V sum[1];
        add_up(sum, [](auto, V c, int64_t, V* to) RNGRU_LAMBDA { to[0] += c; });
        mean = splat(sum_of_lanes(sum[0]) / (float)H);
    }

    // f(whether there are W of them, elements from j on, j, i): i counts up to SUMS and again. Behind the last element come zeros.
    template <class F>
    RNGRU_INLINE void each(F f) const {
        int64_t j = 0;
        for (; j + SUMS * W <= H; j += SUMS * W)
            for (int i = 0; i < SUMS; ++i) f(std::true_type(), load(S + j + i * W) - first - mean, j + i * W, i);
        for (; j + W <= H; j += W) f(std::true_type(), load(S + j) - first - mean, j, 0);
        if (j == H) return;
        const V rest = load(S + j, H - j) - first - mean;
        V c = splat(0);
        memcpy(&c, &rest, (size_t)(H - j) * sizeof(float));
        f(std::false_type(), c, j, 0);
    }

    // n sums, vectors still: f(whether there are W of them, elements from j on, j, what to add to).
    template <int n, class F>
    RNGRU_INLINE void add_up(V (&sums)[n], F f) const {
        V parts[SUMS][n];
        for (auto& part : parts)
            for (V& v : part) v = splat(0);
        each([&](auto whole, V c, int64_t j, int i) RNGRU_LAMBDA { f(whole, c, j, parts[i]); });
        for (int i = 0; i < n; ++i) sums[i] = (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
    }
};

// 1 / sqrt(variance + 1e-5) where the squares of H centred elements add up to this.
RNGRU_INLINE float normal_scale(V squares, int64_t H) { return 1 / __builtin_sqrtf(sum_of_lanes(squares) / (float)H + 1e-5f); }

// out (H) = S (H) with mean 0 and variance 1; out may be S.
inline void normalise(const float* S, int64_t H, float* out) {
    const Centred centred(S, H);
    V squares[1];
    centred.add_up(squares, [](auto, V c, int64_t, V* to) RNGRU_LAMBDA { to[0] += c * c; });
    const V scale = splat(normal_scale(squares[0], H));
    centred.each([&](auto whole, V c, int64_t j, int) RNGRU_LAMBDA { store<decltype(whole)::value>(out + j, c * scale, H - j); });
}
}  // namespace rngru
