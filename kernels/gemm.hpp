// Matrix products from one micro-kernel: a tile of up to MR rows by PW columns, summed over all of k in
// registers, left in a small buffer for whoever asked (gates, biases and gradients are computed from there,
// out of the first-level cache).
//
// The right operand lies in panels of PW columns, each (k, PW) contiguous: 64 bytes or more a step of k, in
// the order in which they are read. The left operand is read where it lies, row-major or in panels too.
// Limit: MR * NV multiply-adds a step of k, two a cycle (AVX2: 6 cycles); loads, NV + MR, stay below that.
// Zen 3: 99 to 101 GFLOP/s a core with blocks of 4 to 6 rows, panels from the second-level cache or the
// third; 76, 51 and 25 with 3, 2 and 1 rows, where the latency of the sums is the limit. A Xeon with AVX-512: 180 to 194
// with 4 to 6 rows, 155 to 175, 125 to 157 and 77 to 117 with 3, 2 and 1 (K above 128 and up to it), of 217.
#pragma once
#include <stdint.h>

#include "amx.hpp"
#include "tile.hpp"

namespace rngru {

// The operands O are float, or Bf16 with its sums in float: then a panel holds pairs of rows, (k / 2, PW, 2), so that one instruction
// multiplies and adds two of them. One step of a tile takes STEP<O> rows of k, of AMX's DEPTH<O>, and depth<O>(K) is K up to the next
// whole step; operands are 0 from K to there. A block of a product has ROWS<O> rows at the most.
template <class O>
constexpr int64_t STEP = sizeof(float) / sizeof(O);
template <class O>
constexpr bool TILED = AMX && STEP<O> == 2;  // AMX computes
template <class O>
constexpr int ROWS = TILED<O> ? TILE_ROWS : MR;
template <class O>
constexpr int64_t DEPTH = TILED<O> ? TILE_DEPTH : STEP<O>;
template <class O>
constexpr int64_t depth(int64_t K) {
    return (K + DEPTH<O> - 1) / DEPTH<O> * DEPTH<O>;
}

// Element (i, k) of a left operand is p[i * rows + k / PW * chunks + k % PW].
template <class O>
struct Left {
    const O* p;
    int64_t rows, chunks;
};
template <class O>
Left<O> row_major(const O* p, int64_t columns) {
    return {p, columns, PW};
}
template <class O>
Left<O> panels(const O* p, int64_t stride) {
    return {p, PW, stride};
}

template <class O>
constexpr int PR = TILED<O> ? TILE_ROWS : 8;  // rows of a packed left operand
static_assert(MR <= PR<float>, "a tile's rows fit a packed step");
template <class O>
constexpr int FETCH = 128 / PW < PW / STEP<O> ? 128 / PW : PW / STEP<O>;  // steps for each line fetched: 8 tiles fetch a panel
// The products of a tile, one function for each number of rows R. K is whole steps.
template <class O>
struct Multiply {
    // c (R, PW) = left (R, K) times panel (K, PW).
    typedef void Rows(int64_t K, const O* p, int64_t rows, int64_t chunks, const O* panel, float* c);
    static Rows* const rows[MR + 1];
    // The same with a left operand packed by k, PR<O> a step: element (i, k) is p[k * PR<O> + i], of pairs
    // p[(k / 2 * PR<O> + i) * 2 + k % 2]. The rows of c are `ld` apart, and with `add` the product is added to what they hold.
    // Meanwhile the line at `coming`, and then each line `every` elements on, is fetched into the second-level cache, one in FETCH
    // steps: a processor has some dozen places for lines on their way, and waits where more are asked for at once.
    typedef void Packed(int64_t K, const O* left, const O* panel, float* c, int64_t ld, bool add, const O* coming, int64_t every);
    static Packed* const packed[MR + 1];
};
extern template struct Multiply<float>;
extern template struct Multiply<Bf16>;

// The products of a block, by whatever computes them. AMX's packed left operand lies in tiles: element (i, k) is
// p[(k / 32 * 32 + i) * 32 + k % 32], and has 32 rows.
template <class O>
RNGRU_INLINE void multiply(int R, int64_t K, const O* p, Left<O> left, const O* panel, float* c) {
    if constexpr (TILED<O>) multiply_tiles(R, K, p, left.rows, TILE_DEPTH, left.chunks, panel, c, PW, false, panel, 0);
    else Multiply<O>::rows[R](K, p, left.rows, left.chunks, panel, c);
}
template <class O>
RNGRU_INLINE void multiply_packed(int R, int64_t K, const O* left, const O* panel, float* c, int64_t ld, bool add, const O* coming,
                                  int64_t every) {
    constexpr int64_t step = TILE_ROWS * TILE_DEPTH;
    if constexpr (TILED<O>) multiply_tiles(R, K, left, TILE_DEPTH, step, 2 * step, panel, c, ld, add, coming, every);
    else Multiply<O>::packed[R](K, left, panel, c, ld, add, coming, every);
}
// How many lines it fetches.
template <class O>
constexpr int64_t lines_fetched(int64_t K) {
    return TILED<O> ? depth<O>(K) / TILE_DEPTH * TILE_LINES : K / PW * PW / (FETCH<O> * STEP<O>);
}

inline int64_t whole_panels(int64_t columns) { return (columns + PW - 1) / PW; }

// Columns [p PW, p PW + PW) of src (K, N), rows `ld` apart, as a panel of depth<O>(K) rows; columns beyond N are 0.
void pack(float* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p);
void pack(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p);
// The same of src transposed, src being (N, K); rows of the panel from K up to K_padded are 0.
void pack_transposed(float* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p);
void pack_transposed(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p);
// The nearest bfloat16 of a row of n floats; up to `padded` follow zeros.
void to_bf16(Bf16* to, const float* from, int64_t n, int64_t padded);

// Whether a tile lies wholly within the columns of its matrix, known when its code is compiled.
template <bool whole>
struct Inside {
    static constexpr bool value = whole;
};
// The columns of the gates [first, last): each gate has `columns` of them, and panels of its own.
struct Gates {
    int first, last;
    int64_t columns;
};
inline Gates one_matrix(int64_t columns) { return {0, 1, columns}; }

// M rows in blocks of ROWS<O> at the most: of equal size (within 1), so that 8 become 4 + 4 and not 6 + 2; to AMX 16 rows are as much
// work as fewer, so that there only the last block is smaller.
template <class O>
struct Tiles {
    const int64_t M, count = (M + ROWS<O> - 1) / ROWS<O>;
    const int64_t least = TILED<O> ? ROWS<O> : M / count, more = TILED<O> ? 0 : M % count;
    explicit Tiles(int64_t M) : M(M) {}
    int64_t start(int64_t i) const {
        const int64_t row = i * least + (i < more ? i : more);
        return row < M ? row : M;
    }
    int64_t size(int64_t i) const { return start(i + 1) - start(i); }
};

// For each block of rows [from, to) and of the gates' columns: before(row, R, gate, column), then
// after(inside, row, R, gate, column, c). Panels in the outer loop: one is read from afar once and then from
// the cache. By AMX as many of them as half of its second-level cache holds: it needs no nearer one, and another number of rows takes a
// hundred nanoseconds.
template <class O, class Before, class After>
RNGRU_INLINE void product(int64_t from, int64_t to, int64_t K, Left<O> left, const O* right, Gates gates, Before before,
                          After after) {
    alignas(64) float c[ROWS<O> * PW];
    const Tiles<O> blocks(to - from);
    const int64_t np = whole_panels(gates.columns), end = gates.last * np;
    const int64_t fitting = TILED<O> ? (1 << 20) / (K * PW * (int64_t)sizeof(O)) : 1, group = fitting < 1 ? 1 : fitting;
    for (int64_t first = gates.first * np, last; first < end; first = last) {
        last = first + group < end ? first + group : end;
        for (int64_t i = 0, row = from, R; i < blocks.count; ++i, row += R) {
            R = blocks.size(i);
            for (int64_t panel = first; panel < last; ++panel) {
                const int gate = (int)(panel / np);
                const int64_t column = panel % np * PW;
                before(row, (int)R, gate, column);
                multiply((int)R, K, left.p + row * left.rows, left, right + panel * K * PW, c);
                if (column + PW <= gates.columns) after(Inside<true>(), row, (int)R, gate, column, (const float*)c);
                else after(Inside<false>(), row, (int)R, gate, column, (const float*)c);
            }
        }
    }
}

template <class O>
constexpr int64_t LINE = 64 / sizeof(O);  // elements of a cache line
RNGRU_INLINE void prefetch_write(const void* p) { __builtin_prefetch(p, 1, 3); }
// The lines of a tile's row that begins at p: to write it, or to read it, into the second-level cache (near = 2) or the first (3).
RNGRU_INLINE void prefetch_row(const float* p) {
    for (int j = 0; j < PW; j += (int)LINE<float>) prefetch_write(p + j);
}
template <int near>
RNGRU_INLINE void fetch_row(const float* p) {
    for (int j = 0; j < PW; j += (int)LINE<float>) __builtin_prefetch(p + j, 0, near);
}

// From one panel to the next of an operand that is read a few rows of each panel at a time, in elements: at a
// distance that is a multiple of a power of two these would fall on the same few sets of the caches, so
// that it is made odd in cache lines.
template <class O>
int64_t spread(int64_t elements) {
    int64_t lines = (elements + LINE<O> - 1) / LINE<O>;
    while (lines % 128 != 65) ++lines;
    return lines * LINE<O>;
}

// The sum of n rows of W columns of a panel, in four sums at a time: one would wait for each addition.
template <class O>
V sum_of_rows(const O* panel, int64_t n) {
    V sums[4] = {splat(0), splat(0), splat(0), splat(0)};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] += load(panel + (i + j) * PW);
    for (; i < n; ++i) sums[0] += load(panel + i * PW);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The rows of a left operand that is read by columns, `ld` apart: of one matrix, or the first ones of another; each as it is, or times a
// row of a third, element by element.
struct Rows {
    const float *start, *others;
    int64_t starts, ld;
    const float* times = nullptr;
    int64_t times_ld = 0;
    const float* row(int64_t k) const { return k < starts ? start + k * ld : others + (k - starts) * ld; }
    template <int near>
    RNGRU_INLINE void fetch(int64_t k, int64_t from, int64_t to) const {
        for (int64_t m = from; m < to + 16; m += 16) {
            __builtin_prefetch(row(k) + m, 0, near);
            if (times) __builtin_prefetch(times + k * times_ld + m, 0, near);
        }
    }
};

// Whoever wants to see rows [k, k + n) of each panel of a right operand, just before they are used.
template <class O>
struct Witness {
    const void* who = nullptr;
    void (*tell)(const void* who, const O* panel, int64_t k, int64_t n, int gate, int64_t column) = nullptr;
};
template <class O, class F>
Witness<O> witness(const F& f) {
    return {&f, [](const void* who, const O* panel, int64_t k, int64_t n, int gate, int64_t column) {
                (*(const F*)who)(panel, k, n, gate, column);
            }};
}

constexpr int64_t KC = 256;
template <class O>
constexpr int64_t TILES = TILED<O> ? 4 : 16;  // of 128 rows and 1536 columns the sums take 0.8 MB, and stay near
template <class O>
constexpr int64_t TILE = KC * PR<O> + LINE<O>;
template <class O>
constexpr int64_t PACKED = TILES<O> * TILE<O>;

// Tiles [first, last), at most TILES<O> of them, of left^T right, where the
// right operand's panels have K rows and are `stride` apart; the result's rows are `ld` apart, its gates side by
// side. k goes in blocks of KC, so that a block of a panel stays in the first-level cache; the sums of the
// blocks are added up in the result, and the rows of the next block and the next panel fetched meanwhile.
// `packed` holds PACKED<O> elements, `paired` KC PW of them (Bf16 only); the packed tiles lie an odd number of cache lines apart,
// since at a multiple of 4096 bytes the 16 that are written in turn fell on the same few sets of the cache. Packing costs 2 % at 256
// columns of the right operand, less at more.
template <class O>
void transposed_product(const Tiles<O>& tiles, int64_t first, int64_t last, const Rows& left, int64_t K, const O* right, int64_t stride,
                        Gates gates, float* result, int64_t ld, bool add, O* packed, O* paired, Witness<O> witness);
extern template void transposed_product(const Tiles<float>&, int64_t, int64_t, const Rows&, int64_t, const float*, int64_t, Gates, float*,
                                        int64_t, bool, float*, float*, Witness<float>);
extern template void transposed_product(const Tiles<Bf16>&, int64_t, int64_t, const Rows&, int64_t, const Bf16*, int64_t, Gates, float*,
                                        int64_t, bool, Bf16*, Bf16*, Witness<Bf16>);
}  // namespace rngru
