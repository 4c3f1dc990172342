// The sampler's products: vectors times panels, which weights are packed into in the order in which they are read.
#pragma once
#include <stdint.h>
#include <string.h>

#include <initializer_list>

#include "tile.hpp"

namespace rngru {

constexpr int PANEL = 8;        // vectors, of one text: sums, two a cycle, four cycles each
constexpr int64_t UNIT = 16;    // columns: a cache line, which no two threads write to
constexpr int64_t AHEAD = 256;  // floats that a panel is fetched ahead of its use
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

// out = init + x1 times the panel's first K1 rows + x2 times its next K2; in this order, whatever panel a column is in.
template <int N>
void multiply(const float* p, int64_t K1, const float* x1, int64_t K2, const float* x2, const float* init, float* out) {
    V sum[N];
    for (int i = 0; i < N; ++i) sum[i] = load(init + i * W);
    for (int part = 0; part < 2; ++part, K1 = K2, x1 = x2)
        for (int64_t k = 0; k < K1; ++k, p += N * W) {
            const V x = splat(x1[k]);
            for (int i = 0; i < N; ++i) sum[i] += x * load(p + i * W);
            for (int i = 0; i < N * W; i += 16) __builtin_prefetch(p + AHEAD + i);
        }
    for (int i = 0; i < N; ++i) store(out + i * W, sum[i]);
}
typedef void Multiply(const float*, int64_t, const float*, int64_t, const float*, const float*, float*);
constexpr Multiply* multiply_panel[PANEL + 1] = {nullptr, multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                             multiply<5>, multiply<6>, multiply<7>, multiply<8>};

// The same for a tile of R texts, whose vectors lie `ld` apart, and the results `out_ld`.
template <int R, int N>
void multiply(const float* p, int64_t ld, int64_t K1, const float* x1, int64_t K2, const float* x2, const float* const* init,
              int64_t column, float* out, int64_t out_ld) {
    Tile<R, N> tile;
    tile.each([&](V& sum, int i, int j) RNGRU_LAMBDA { sum = load(init[i] + column + j); });
    for (int part = 0; part < 2; ++part, K1 = K2, x1 = x2)
#pragma GCC unroll 4
        for (int64_t k = 0; k < K1; ++k, p += N * W) tile.step(x1 + k, ld, p);
    tile.put(out, out_ld);
}
typedef void MultiplyTile(const float*, int64_t, int64_t, const float*, int64_t, const float*, const float* const*,
                          int64_t, float*, int64_t);
static_assert(MR == 6, "one case for each number of rows");
template <int N>
MultiplyTile* tile_of(int64_t R) {
    MultiplyTile* const all[MR] = {multiply<1, N>, multiply<2, N>, multiply<3, N>, multiply<4, N>, multiply<5, N>, multiply<6, N>};
    return all[R - 1];
}
inline MultiplyTile* tile_of(int64_t R, int64_t N) {
    return N == 1 ? tile_of<1>(R) : N == 2 ? tile_of<NV < 2 ? 1 : 2>(R) : N == 3 ? tile_of<NV < 3 ? 1 : 3>(R) : tile_of<NV < 4 ? 1 : 4>(R);
}

// A matrix (K, columns), rows `ld` apart.
struct Matrix {
    const float* p;
    int64_t ld, K, columns;
};

template <bool whole>
bool refresh_rows(float* to, const Matrix& m, int64_t column, int64_t n) {
    const int64_t left = m.columns - column;
    const float* const from = m.p + column;
    I different = {};
    for (int64_t k = 0; k < m.K; ++k)
        for (int64_t i = 0; i < n; ++i)
            different |= (I)load(to + (k * n + i) * W) ^ (I)load<whole>(from + k * m.ld + i * W, left - i * W);
    bool same = true;
    for (int i = 0; i < W; ++i) same = same && different[i] == 0;
    if (same) return false;
    for (int64_t k = 0; k < m.K; ++k)
        for (int64_t i = 0; i < n; ++i)
            store(to + (k * n + i) * W, load<whole>(from + k * m.ld + i * W, left - i * W));
    return true;
}

// Brings a part's panels of `first` above `second` up to date, bit by bit; whether anything had changed. Comparing costs
// half of what writing does, and so no one has to say that he has changed a weight.
inline bool refresh(const Columns& own, int64_t panel, float*& p, const Matrix& first, const Matrix& second = {nullptr, 0, 0, 0}) {
    bool changed = false;
    for (int64_t j = own.from, n; j < own.to; j += n * W) {
        n = own.vectors(j, panel);
        for (const Matrix* m : {&first, &second}) {
            if (m->K == 0) continue;
            const bool whole = j + n * W <= m->columns;
            changed |= whole ? refresh_rows<true>(p, *m, j, n) : refresh_rows<false>(p, *m, j, n);
            p += m->K * n * W;
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
