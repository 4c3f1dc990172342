// Matrix products from one micro-kernel: a tile of up to MR rows by PW columns, summed over all of k in
// registers, left in a small buffer for whoever asked (gates, biases and gradients are computed from there,
// out of the first-level cache).
//
// The right operand lies in panels of PW columns, each (k, PW) contiguous: 64 bytes or more a step of k, in
// the order in which they are read. The left operand is read where it lies, row-major or in panels too.
// Limit: MR * NV multiply-adds a step of k, two a cycle (AVX2: 6 cycles); loads, NV + MR, stay below that.
// Zen 3: 99 to 101 GFLOP/s a core with blocks of 4 to 6 rows, panels from the second-level cache or the
// third; 76, 51 and 25 with 3, 2 and 1 rows, where the latency of the sums is the limit.
#pragma once
#include <stdint.h>

#include <string.h>

#include "simd.hpp"

namespace rngru {

// Element (i, k) of a left operand is p[i * rows + k / PW * chunks + k % PW].
struct Left {
    const float* p;
    int64_t rows, chunks;
};
inline Left row_major(const float* p, int64_t columns) { return {p, columns, PW}; }
inline Left panels(const float* p, int64_t stride) { return {p, PW, stride}; }

// c (R, PW) = left (R, K) times panel (K, PW), one function for each R.
typedef void Multiply(int64_t K, const float* p, int64_t rows, int64_t chunks, const float* panel, float* c);
extern Multiply* const multiply[MR + 1];
// The same with a left operand packed by k: element (i, k) is p[k * MR + i].
typedef void MultiplyPacked(int64_t K, const float* left, const float* panel, float* c);
extern MultiplyPacked* const multiply_packed[MR + 1];

inline int64_t whole_panels(int64_t columns) { return (columns + PW - 1) / PW; }

// Columns [p PW, p PW + PW) of src (K, N), rows `ld` apart, as a panel; columns beyond N are 0.
void pack(float* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p);
// The same of src transposed, src being (N, K); rows of the panel from K up to K_padded are 0.
void pack_transposed(float* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p);

// Whether a tile lies wholly within the columns of its matrix, known when its code is compiled.
template <bool whole>
struct Inside {
    static constexpr bool value = whole;
};
#define RNGRU_LAMBDA __attribute__((always_inline))

// The columns of the gates [first, last): each gate has `columns` of them, and panels of its own.
struct Gates {
    int first, last;
    int64_t columns;
};
inline Gates one_matrix(int64_t columns) { return {0, 1, columns}; }

// For each tile of rows [from, to) and of the gates' columns: before(row, R, gate, column), then
// after(inside, row, R, gate, column, c). Panels in the outer loop: one is read from afar once and then from
// the cache. The rows are cut into equal blocks, so that 8 become 4 + 4 and not 6 + 2.
template <class Before, class After>
RNGRU_INLINE void product(int64_t from, int64_t to, int64_t K, Left left, const float* right, Gates gates, Before before,
                          After after) {
    alignas(64) float c[MR * PW];
    const int64_t blocks = (to - from + MR - 1) / MR, least = (to - from) / blocks, more = (to - from) % blocks;
    right += gates.first * whole_panels(gates.columns) * K * PW;
    for (int gate = gates.first; gate < gates.last; ++gate)
        for (int64_t column = 0; column < gates.columns; column += PW, right += K * PW) {
            int64_t row = from;
            for (int64_t i = 0; i < blocks; ++i) {
                const int R = (int)(least + (i < more));
                before(row, R, gate, column);
                multiply[R](K, left.p + row * left.rows, left.rows, left.chunks, right, c);
                if (column + PW <= gates.columns) after(Inside<true>(), row, R, gate, column, (const float*)c);
                else after(Inside<false>(), row, R, gate, column, (const float*)c);
                row += R;
            }
        }
}

RNGRU_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }
RNGRU_INLINE void prefetch_write(const float* p) { __builtin_prefetch(p, 1, 3); }

// From one panel to the next of an operand that is read a few rows of each panel at a time, in floats: at a
// distance that is a multiple of a power of two these would fall on the same few sets of the caches, so
// that it is made odd in cache lines.
inline int64_t spread(int64_t floats) {
    int64_t lines = (floats + 15) / 16;
    while (lines % 128 != 65) ++lines;
    return lines * 16;
}

// The sum of n rows of W columns of a panel, in four sums at a time: one would wait for each addition.
inline V sum_of_rows(const float* panel, int64_t n) {
    V sums[4] = {splat(0), splat(0), splat(0), splat(0)};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] += load(panel + (i + j) * PW);
    for (; i < n; ++i) sums[0] += load(panel + i * PW);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The M rows of a left operand that is read by columns, in tiles of equal size (within 1).
struct Tiles {
    const int64_t M, count = (M + MR - 1) / MR, least = M / count, more = M % count;
    explicit Tiles(int64_t M) : M(M) {}
    int64_t start(int64_t i) const { return i * least + (i < more ? i : more); }
};

// A row of a left operand that is read by columns: of a matrix, or of the product of two, element by element.
struct Row {
    const float *a, *times = nullptr;
    RNGRU_INLINE V at(int64_t m, int64_t left) const { return times ? load(a + m, left) * load(times + m, left) : load(a + m, left); }
    RNGRU_INLINE void fetch(int64_t from, int64_t to) const {
        for (int64_t m = from; m < to + 16; m += 16) {
            __builtin_prefetch(a + m, 0, 2);
            if (times) __builtin_prefetch(times + m, 0, 2);
        }
    }
};

// Tiles [first, last), at most TILES of them, of left^T right, where row(k) is row k of the left operand and the
// right operand's panels have K rows and are `stride` apart.
// k goes in blocks of KC, so that a block of a panel stays in the first-level cache; the sums are kept in
// the result, the rows of the next block and the next panel fetched meanwhile: put(inside, row, R, gate, column, c, add) stores c, or adds it. piece(panel, k, n, gate,
// column) sees rows [k, k + n) of each panel, before they are used and leave the cache again.
// `packed` holds PACKED floats; its tiles lie an odd number of cache lines apart, since at a multiple of 4096
// bytes the 16 that are written in turn fell on the same few sets of the cache. Packing costs 2 % at 128
// columns of the right operand, less at more.
constexpr int64_t KC = 256, TILES = 32, TILE = KC * MR + 16, PACKED = TILES * TILE;
template <class Rows, class Piece, class Before, class Put>
RNGRU_INLINE void transposed_product(const Tiles& tiles, int64_t first, int64_t last, int64_t K, const float* right,
                                     int64_t stride, Gates gates, float* packed, Rows row, Piece piece, Before before, Put put) {
    alignas(64) float c[MR * PW];
    const int64_t np = whole_panels(gates.columns);
    for (int64_t k0 = 0; k0 < K; k0 += KC) {
        const int64_t kn = K - k0 < KC ? K - k0 : KC;
        for (int64_t k = 0; k < kn; ++k) {  // whole vectors: what goes beyond a tile's row is overwritten by the next
            const Row values = row(k0 + k);
            float* p = packed + k * MR;
            for (int64_t i = first; i < last; ++i, p += TILE)
                for (int j = 0; j < MR; j += W) store(p + j, values.at(tiles.start(i) + j, tiles.M - tiles.start(i) - j));
        }
        const int64_t next = K - k0 - kn < KC ? K - k0 - kn : KC, all = (gates.last - gates.first) * np * (last - first);
        int64_t fetched = 0, done = 0;  // rows of the next block; tiles of this one
        for (int gate = gates.first; gate < gates.last; ++gate)
            for (int64_t column = 0; column < gates.columns; column += PW) {
                const float* const panel = right + (gate * np + column / PW) * stride + k0 * PW;
                piece(panel, k0, kn, gate, column);
                for (int64_t i = first; i < last; ++i) {
                    const int64_t m = tiles.start(i);
                    const int R = (int)(tiles.start(i + 1) - m);
                    const int64_t ahead = kn * PW * (i - first) / (last - first), end = ahead + kn * PW / (last - first);
                    for (int64_t line = ahead; line < end; line += 16) __builtin_prefetch(panel + stride + line, 0, 2);
                    for (++done; fetched < next && fetched * all < done * next; ++fetched)
                        row(k0 + kn + fetched).fetch(tiles.start(first), tiles.start(last));
                    before(m, R, gate, column);
                    multiply_packed[R](kn, packed + (i - first) * TILE, panel, c);
                    if (column + PW <= gates.columns) put(Inside<true>(), m, R, gate, column, (const float*)c, k0 > 0);
                    else put(Inside<false>(), m, R, gate, column, (const float*)c, k0 > 0);
                }
            }
    }
}
}  // namespace rngru
