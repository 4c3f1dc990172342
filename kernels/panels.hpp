// The sampler's products: vectors times panels, which weights are packed into in the order in which they are read.
//
// A precision says what a panel holds and what multiplies it; sums begin and end in float32 in all. One text is limited by the bytes
// of weights, until these are so few that the instructions count: where the processor has no products of bfloat16, two vectors of
// such weights take four (two to widen them), and four vectors of int8 weights take three.
#pragma once
#include <stdint.h>
#include <string.h>

#include <initializer_list>

#include "tile.hpp"

namespace rngru {

constexpr int PANEL = 8;         // vectors, of one text: sums, two a cycle, four cycles each
constexpr int64_t UNIT = 16;     // columns: a cache line of float32, which no two threads write to
constexpr int64_t AHEAD = 1024;  // bytes that a panel is fetched ahead of its use; bfloat16 is slower by it
static_assert(UNIT % W == 0, "a unit is whole vectors");

inline int64_t padded(int64_t columns) { return (columns + W - 1) / W * W; }

// A part's columns, of a gate's or of the logits'; whole vectors.
struct Columns {
    int64_t from = 0, to = 0;
    Columns() {}
    Columns(int64_t columns, int part, int parts) {
        const int64_t units = (columns + UNIT - 1) / UNIT, end = padded(columns);
        from = units * part / parts * UNIT;
        to = units * (part + 1) / parts * UNIT;
        from = from < end ? from : end;
        to = to < end ? to : end;
    }
    int64_t vectors(int64_t column, int64_t panel) const {
        const int64_t left = (to - column) / W;
        return left < panel ? left : panel;
    }
};

// A matrix (K, columns), rows `ld` apart.
struct Matrix {
    const float* p;
    int64_t ld, K, columns;

    // Row k, W columns from `column` on; 0 beyond the ends. With `whole` there are so many columns.
    template <bool whole>
    V row(int64_t k, int64_t column) const {
        return k < K ? load<whole>(p + k * ld + column, columns - column) : splat(0);
    }
};

// A precision has X, what multiplies weights, and bytes(K), of a column of K rows of a panel. Sums<R, N>, of R texts by N vectors, have
// add(panel, K, x, ld, unit): adds x times the panel, where the texts' x lie `ld` apart and a text's is in units of unit[text], and
// gives the panel's end. pack(panel, matrix, column, n) brings a panel of n vectors up to date, and says whether it had changed as far
// as it knows; put(x, v, perunit) makes v what multiplies weights, and gives lanes that are not 0 where a NaN is lost.
struct Float32 {
    typedef float X;
    static constexpr bool COPIES = false;  // x is another array than the float32 that it is made of
    static int64_t bytes(int64_t K) { return 4 * K; }

    template <int R, int N>
    struct Sums : Tile<R, N> {
        RNGRU_INLINE const char* add(const char* panel, int64_t K, const X* x, int64_t ld, const float*) {
            const float* p = (const float*)panel;
#pragma GCC unroll 4
            for (int64_t k = 0; k < K; ++k, p += N * W) {
                this->step(x + k, ld, p);
                if (R == 1)
                    for (int i = 0; i < N * W; i += 16) __builtin_prefetch((const char*)(p + i) + AHEAD);
            }
            return (const char*)p;
        }
    };

    // Comparing costs half of what writing does, and so no one has to say that he has changed a weight.
    template <bool whole>
    static bool pack(char* panel, const Matrix& m, int64_t column, int64_t n) {
        float* const to = (float*)panel;
        I different = {};
        for (int64_t k = 0; k < m.K; ++k)
            for (int64_t i = 0; i < n; ++i) different |= (I)load(to + (k * n + i) * W) ^ (I)m.row<whole>(k, column + i * W);
        bool same = true;
        for (int i = 0; i < W; ++i) same = same && different[i] == 0;
        if (same) return false;
        for (int64_t k = 0; k < m.K; ++k)
            for (int64_t i = 0; i < n; ++i) store(to + (k * n + i) * W, m.row<whole>(k, column + i * W));
        return true;
    }
    static I put(X*, V, V) { return I{}; }
};

// Rows in pairs, (K / 2, columns, 2), K even. Converting all weights at each call takes as long as comparing them would. Where the
// processor has no product of pairs, vectors are float32 that were rounded: widening them each time would double a tile's instructions.
struct Bfloat16 {
#if defined(RNGRU_AVX512) && defined(__AVX512BF16__)
    typedef Bf16 X;
    static I put(X* x, V v, V) {
        store(x, v);
        return I{};
    }
#else
    typedef float X;
    static I put(X* x, V v, V) {
        store(x, (V)(__builtin_convertvector(nearest(v), I) << 16));
        return I{};
    }
#endif
    static constexpr bool COPIES = true;
    static int64_t bytes(int64_t K) { return 4 * ((K + 1) / 2); }

    template <int R, int N>
    struct Sums : Tile<R, N> {
        RNGRU_INLINE void step(const Bf16* x, int64_t ld, const I* weights) {
            repeat<R>([&](auto i) RNGRU_LAMBDA {
                const I pair = splat_pair(x + decltype(i)::value * ld);
                repeat<N>([&](auto v) RNGRU_LAMBDA {
                    V& sum = this->sum[decltype(i)::value][decltype(v)::value];
                    sum = dot(sum, pair, weights[decltype(v)::value]);
                });
            });
        }
        RNGRU_INLINE void step(const float* x, int64_t ld, const I* weights) {
            repeat<2>([&](auto odd) RNGRU_LAMBDA {
                V right[N];
                repeat<N>([&](auto v) RNGRU_LAMBDA {
                    const I both = weights[decltype(v)::value];
                    right[decltype(v)::value] = (V)(decltype(odd)::value ? both & 0xffff0000 : both << 16);
                });
                repeat<R>([&](auto i) RNGRU_LAMBDA {
                    const V left = splat(x[decltype(i)::value * ld + decltype(odd)::value]);
                    repeat<N>([&](auto v) RNGRU_LAMBDA {
                        this->sum[decltype(i)::value][decltype(v)::value] += left * right[decltype(v)::value];
                    });
                });
            });
        }
        RNGRU_INLINE const char* add(const char* panel, int64_t K, const X* x, int64_t ld, const float*) {
            const Bf16* p = (const Bf16*)panel;
            for (int64_t k = 0; k < K; k += 2, p += 2 * N * W) {
                I weights[N];
                repeat<N>([&](auto v) RNGRU_LAMBDA { weights[decltype(v)::value] = load_pairs(p + 2 * decltype(v)::value * W); });
                step(x + k, ld, weights);
            }
            return (const char*)p;
        }
    };

    template <bool whole>
    static bool pack(char* panel, const Matrix& m, int64_t column, int64_t n) {
        Bf16* p = (Bf16*)panel;
        for (int64_t k = 0; k < m.K; k += 2)
            for (int64_t i = 0; i < n; ++i, p += 2 * W)
                store_pairs(p, m.row<whole>(k, column + i * W), m.row<whole>(k + 1, column + i * W));
        return true;
    }
};

// Weights on a grid of 255 points by column, x on one of 127: so x + 64 is a byte whose product with a weight, added to another, no
// instruction overflows at. A panel: the columns' scales; -64 times the sums of their weights, where their sums begin; rows in fours,
// (K / 4, columns, 4), K a multiple of 4. Sums are exact.
struct Int8 {
    typedef uint8_t X;
    static constexpr bool COPIES = true;
    static constexpr float POINTS = 63;     // of x on each side of 0
    static constexpr float LEAST = 1e-30f;  // a column of smaller weights counts as 0
    static int64_t bytes(int64_t K) { return 8 + 4 * ((K + 3) / 4); }

    template <int R, int N>
    struct Sums : Tile<R, N> {
        RNGRU_INLINE const char* add(const char* panel, int64_t K, const X* x, int64_t ld, const float* unit) {
            const char *const starts = panel + N * W * 4, *p = starts + N * W * 4;
            Int sums[R][N];
            repeat<R>([&](auto i) RNGRU_LAMBDA {
                repeat<N>([&](auto v) RNGRU_LAMBDA { sums[decltype(i)::value][decltype(v)::value] = words(starts, decltype(v)::value); });
            });
            for (int64_t k = 0; k < K; k += 4, p += N * W * 4) {
                repeat<R>([&](auto i) RNGRU_LAMBDA {
                    const Int left = splat_bytes(x + decltype(i)::value * ld + k);
                    repeat<N>([&](auto v) RNGRU_LAMBDA {
                        Int& sum = sums[decltype(i)::value][decltype(v)::value];
                        sum = dot_bytes(sum, left, words(p, decltype(v)::value));
                    });
                });
                if (R == 1)
                    for (int i = 0; i < N * W; i += 16) __builtin_prefetch(p + 4 * i + AHEAD);
            }
            this->each([&](V& sum, int i, int j) RNGRU_LAMBDA {
                sum += __builtin_convertvector(sums[i][j / W], V) * (load((const float*)panel + j) * splat(unit[i]));
            });
            return p;
        }
        static RNGRU_INLINE Int words(const char* p, int v) {
            Int words;
            memcpy(&words, p + v * W * 4, sizeof words);
            return words;
        }
    };

    template <bool whole>
    static bool pack(char* panel, const Matrix& m, int64_t column, int64_t n) {
        char* const rows = panel + 2 * n * W * 4;
        for (int64_t i = 0; i < n; ++i, column += W) {
            V most = splat(LEAST), none = splat(0);
            for (int64_t k = 0; k < m.K; ++k) {
                const V w = m.row<whole>(k, column);
                most = at_least((V)((I)w & 0x7fffffff), most);
                none += w * splat(0);  // NaN where a weight is no number or infinite
            }
            const I zeros = (I)(most > splat(LEAST));
            const V inverse = (V)((I)(splat(127) / most) & zeros);
            store((float*)panel + i * W, (V)((I)(most / splat(127)) & zeros) + none);
            Int sum = {};
            char* to = rows + i * W * 4;
            for (int64_t k = 0; k < m.K; k += 4, to += n * W * 4) {
                I four = {};
                for (int j = 0; j < 4; ++j) {
                    const Int weight = (Int)(nearest_whole(m.row<whole>(k + j, column) * inverse) << 24) >> 24;
                    sum += weight;
                    four |= ((I)weight & 0xff) << 8 * j;
                }
                memcpy(to, &four, sizeof four);
            }
            sum *= -64;
            memcpy(panel + (n + i) * W * 4, &sum, sizeof sum);
        }
        return true;
    }
    static I put(X* x, V v, V perunit) {
        store(x, v * perunit + splat(64));
        return (I)(v != v);
    }
};

// out = init + x1 times the panel's first K1 rows + x2 times its next K2, of R texts; in this order, whatever panel a column is in and
// however many texts there are. The texts' x lie `ld` apart, in units of unit1 and unit2, the results `out_ld`.
template <class P>
using Multiply = void(const char* p, int64_t ld, int64_t K1, const typename P::X* x1, int64_t K2, const typename P::X* x2,
                      const float* unit1, const float* unit2, const float* const* init, int64_t column, float* out, int64_t out_ld);
template <class P, int R, int N>
void multiply(const char* p, int64_t ld, int64_t K1, const typename P::X* x1, int64_t K2, const typename P::X* x2,
              const float* unit1, const float* unit2, const float* const* init, int64_t column, float* out, int64_t out_ld) {
    typename P::template Sums<R, N> sums;
    sums.each([&](V& sum, int i, int j) RNGRU_LAMBDA { sum = load(init[i] + column + j); });
    if (K1) p = sums.add(p, K1, x1, ld, unit1);
    if (K2) sums.add(p, K2, x2, ld, unit2);
    sums.put(out, out_ld);
}

// Vectors of a panel, of one text and of several: there several texts' sums fill the registers.
constexpr int vectors_of(bool one) { return one ? PANEL : NV; }

template <class P, int R, int N>
Multiply<P>* product_of_vectors(int64_t vectors) {
    if constexpr (N > 1)
        if (vectors < N) return product_of_vectors<P, R, N - 1>(vectors);
    return multiply<P, R, N>;
}
template <class P, int R = MR>
Multiply<P>* product_of(int64_t texts, int64_t vectors) {
    if constexpr (R > 1)
        if (texts < R) return product_of<P, R - 1>(texts, vectors);
    return product_of_vectors<P, R, vectors_of(R == 1)>(vectors);
}
// Files of their own: they are most of the sampler's compilation, which so goes on side by side.
extern template Multiply<Bfloat16>* product_of<Bfloat16, MR>(int64_t texts, int64_t vectors);
extern template Multiply<Int8>* product_of<Int8, MR>(int64_t texts, int64_t vectors);

// Brings a part's panels of `first` above `second` up to date; whether anything had changed.
template <class P>
bool refresh(const Columns& own, int64_t panel, char*& p, const Matrix& first, const Matrix& second = {nullptr, 0, 0, 0}) {
    bool changed = false;
    for (int64_t j = own.from, n; j < own.to; j += n * W) {
        n = own.vectors(j, panel);
        for (const Matrix* m : {&first, &second}) {
            if (m->K == 0) continue;
            const bool whole = j + n * W <= m->columns;
            changed |= whole ? P::template pack<true>(p, *m, j, n) : P::template pack<false>(p, *m, j, n);
            p += P::bytes(m->K) * n * W;
        }
    }
    return changed;
}

inline bool refresh(float* to, const float* from, int64_t n) {
    if (memcmp(to, from, (size_t)n * sizeof(float)) == 0) return false;
    memcpy(to, from, (size_t)n * sizeof(float));
    return true;
}
}  // namespace rngru
