// The register tile: sums that stay in registers while k runs. Its size is said in simd.hpp, its speed in gemm.hpp.
#pragma once
#include <stdint.h>

#include "simd.hpp"

#define RNGRU_LAMBDA __attribute__((always_inline))

namespace rngru {
// f(Index<0>()), ..., f(Index<n - 1>()): a loop whose counter is a constant in the body. g++ leaves an array of
// sums that ordinary loops run over in memory at both ends of a tile, 5 % of the time of a short one.
template <int i>
struct Index {
    static constexpr int value = i;
};
template <int n, int i = 0, class F>
RNGRU_INLINE void repeat(F f) {
    if constexpr (i < n) {
        f(Index<i>());
        repeat<n, i + 1>(f);
    }
}

// A tile of R rows by N vectors, of panels of N vectors.
template <int R, int N = NV>
struct Tile {
    V sum[R][N];

    template <class F>
    RNGRU_INLINE void each(F f) {
        repeat<R>([&](auto i) RNGRU_LAMBDA {
            repeat<N>([&](auto v) RNGRU_LAMBDA {
                f(sum[decltype(i)::value][decltype(v)::value], decltype(i)::value, decltype(v)::value * W);
            });
        });
    }
    RNGRU_INLINE void clear() {
        each([](V& sum, int, int) RNGRU_LAMBDA { sum = splat(0); });
    }
    RNGRU_INLINE void add(const float* c, int64_t ld) {
        each([&](V& sum, int i, int j) RNGRU_LAMBDA { sum += load(c + i * ld + j); });
    }
    RNGRU_INLINE void put(float* c, int64_t ld) {
        each([&](V& sum, int i, int j) RNGRU_LAMBDA { store(c + i * ld + j, sum); });
    }

    // One step of k: R broadcasts times N vectors.
    RNGRU_INLINE void step(const float* a, int64_t rows, const float* b) {
        V right[N];
        repeat<N>([&](auto v) RNGRU_LAMBDA { right[decltype(v)::value] = load(b + decltype(v)::value * W); });
        repeat<R>([&](auto i) RNGRU_LAMBDA {
            const V left = splat(a[decltype(i)::value * rows]);
            repeat<N>([&](auto v) RNGRU_LAMBDA { sum[decltype(i)::value][decltype(v)::value] += left * right[decltype(v)::value]; });
        });
    }
    // Two steps of k of bfloat16, in pairs.
    RNGRU_INLINE void step(const Bf16* a, int64_t rows, const Bf16* b) {
        I right[N];
        repeat<N>([&](auto v) RNGRU_LAMBDA { right[decltype(v)::value] = load_pairs(b + decltype(v)::value * 2 * W); });
        repeat<R>([&](auto i) RNGRU_LAMBDA {
            const I left = splat_pair(a + decltype(i)::value * rows);
            repeat<N>([&](auto v) RNGRU_LAMBDA {
                V& to = sum[decltype(i)::value][decltype(v)::value];
                to = dot(to, left, right[decltype(v)::value]);
            });
        });
    }
};
}  // namespace rngru
