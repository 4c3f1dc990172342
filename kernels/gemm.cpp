// The micro-kernel, compiled once for each number of rows, the packing of weights, and the product that sums over rows.
#include "gemm.hpp"

namespace rngru {
namespace {

// The last K steps of a tile, fewer than a chunk; a function of its own: few tiles need it.
template <class O, int R>
__attribute__((noinline)) void rest(int64_t K, const O* a, int64_t rows, int64_t ks, const O* b, float* c, int64_t ld) {
    Tile<R> tile;
    tile.clear();
    tile.add(c, ld);
    for (int64_t k = 0; k < K; k += STEP<O>, a += STEP<O> * ks, b += STEP<O> * PW) tile.step(a, rows, b);
    tile.put(c, ld);
}

template <class O, int R>
void multiply_rows(int64_t K, const O* a, int64_t rows, int64_t chunks, const O* b, float* c) {
    Tile<R> tile;
    tile.clear();
    for (; K >= PW; K -= PW, a += chunks)
#pragma GCC unroll 4
        for (int k = 0; k < PW; k += (int)STEP<O>, b += STEP<O> * PW) tile.step(a + k, rows, b);
    tile.put(c, PW);
    if (K > 0) rest<O, R>(K, a, rows, 1, b, c, PW);
}

template <class O, int R>
void multiply_packed_rows(int64_t K, const O* a, const O* b, float* c, int64_t ld, bool add, const O* coming, int64_t every) {
    Tile<R> tile;
    tile.clear();
    for (; K >= PW; K -= PW)
        for (int k = 0; k < PW; k += FETCH<O> * (int)STEP<O>, coming += every) {
            __builtin_prefetch(coming, 0, 2);
#pragma GCC unroll 4
            for (int step = 0; step < FETCH<O>; ++step, a += STEP<O> * PR, b += STEP<O> * PW) tile.step(a, STEP<O>, b);
        }
    if (add) tile.add(c, ld);
    tile.put(c, ld);
    if (K > 0) rest<O, R>(K, a, STEP<O>, PR, b, c, ld);
}
}  // namespace

static_assert(MR == 6, "one entry for each number of rows");
template <class O>
typename Multiply<O>::Rows* const Multiply<O>::rows[MR + 1] = {
    nullptr,             multiply_rows<O, 1>, multiply_rows<O, 2>, multiply_rows<O, 3>,
    multiply_rows<O, 4>, multiply_rows<O, 5>, multiply_rows<O, 6>};
template <class O>
typename Multiply<O>::Packed* const Multiply<O>::packed[MR + 1] = {
    nullptr,                    multiply_packed_rows<O, 1>, multiply_packed_rows<O, 2>, multiply_packed_rows<O, 3>,
    multiply_packed_rows<O, 4>, multiply_packed_rows<O, 5>, multiply_packed_rows<O, 6>};
template struct Multiply<float>;
template struct Multiply<Bf16>;

void pack(float* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p) {
    src += p * PW;
    for (int64_t k = 0; k < K; ++k, panel += PW, src += ld)
        for (int v = 0; v < NV; ++v) store(panel + v * W, load(src + v * W, N - p * PW - v * W));
}

void pack(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p) {
    src += p * PW;
    for (int64_t k = 0; k < K; k += 2, panel += 2 * PW, src += 2 * ld)
        for (int v = 0; v < NV; ++v) {
            const int64_t left = N - p * PW - v * W;
            store_pairs(panel + 2 * v * W, load(src + v * W, left), load(src + (k + 1 < K ? ld : 0) + v * W, k + 1 < K ? left : 0));
        }
}

void pack_transposed(float* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p) {
    const int64_t n = N - p * PW < PW ? N - p * PW : PW;
    src += p * PW * ld;
    constexpr int64_t BLOCK = 16;  // 16 columns of each row, a line or two, go to 16 rows of the panel
    for (int64_t k0 = 0; k0 < K; k0 += BLOCK) {
        const int64_t kn = K - k0 < BLOCK ? K - k0 : BLOCK;
        for (int64_t j = 0; j < n; ++j)
            for (int64_t k = 0; k < kn; ++k) panel[(k0 + k) * PW + j] = src[j * ld + k0 + k];
        for (int64_t j = n; j < PW; ++j)
            for (int64_t k = 0; k < kn; ++k) panel[(k0 + k) * PW + j] = 0;
    }
    for (int64_t k = K * PW; k < K_padded * PW; ++k) panel[k] = 0;
}

void pack_transposed(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p) {
    const int64_t n = N - p * PW < PW ? N - p * PW : PW;
    src += p * PW * ld;
    constexpr int64_t BLOCK = 16;
    static_assert(BLOCK % W == 0, "a block is whole vectors");
    memset(panel, 0, (size_t)(K_padded * PW) * sizeof(Bf16));
    for (int64_t k0 = 0; k0 < K; k0 += BLOCK)
        for (int64_t j = 0; j < n; ++j) {
            Bf16 block[BLOCK];
            for (int64_t k = 0; k < BLOCK; k += W) store(block + k, load(src + j * ld + k0 + k, K - k0 - k));
            for (int64_t k = 0; k < BLOCK && k0 + k < K; k += 2) memcpy(panel + (k0 + k) * PW + 2 * j, block + k, 2 * sizeof(Bf16));
        }
}

void to_bf16(Bf16* to, const float* from, int64_t n, int64_t padded) {
    int64_t i = 0;
    for (; i + W <= padded; i += W) store(to + i, load(from + i, n - i));
    if (i == padded) return;
    Bf16 last[W];
    store(last, load(from + i, n - i));
    memcpy(to + i, last, (size_t)(padded - i) * sizeof(Bf16));
}

namespace {
// Copies tiles [first, last) of row k, or of two rows from there in pairs, to places TILE apart.
template <bool product>
RNGRU_INLINE V row_part(const Rows& rows, int64_t k, int64_t m, int64_t left) {
    const V v = load(rows.row(k) + m, left);
    return product ? v * load(rows.times + k * rows.times_ld + m, left) : v;
}
template <bool product>
RNGRU_INLINE void pack_rows(const Tiles& tiles, int64_t first, int64_t last, const Rows& rows, int64_t k, bool, float* p) {
    int64_t m = tiles.start(first);
    for (int64_t i = first; i < last; m += tiles.size(i), ++i, p += TILE<float>)
        for (int j = 0; j < PR; j += W) {
            const V v = row_part<product>(rows, k, m + j, tiles.M - m - j);
            memcpy(p + j, &v, sizeof(float) * (W < PR ? W : PR));
        }
}
template <bool product>
RNGRU_INLINE void pack_rows(const Tiles& tiles, int64_t first, int64_t last, const Rows& rows, int64_t k, bool both, Bf16* p) {
    int64_t m = tiles.start(first);
    for (int64_t i = first; i < last; m += tiles.size(i), ++i, p += TILE<Bf16>)
        for (int j = 0; j < PR; j += W) {
            const int64_t left = tiles.M - m - j;
            Bf16 pairs[2 * W];
            store_pairs(pairs, row_part<product>(rows, k, m + j, left), both ? row_part<product>(rows, k + 1, m + j, left) : splat(0));
            memcpy(p + 2 * j, pairs, sizeof(Bf16) * 2 * (W < PR ? W : PR));
        }
}

// The first n rows of a panel as the right operand of a product over its rows: where they are, or in pairs in `to`.
const float* rows_as_panel(const float* panel, int64_t, float*) { return panel; }
const Bf16* rows_as_panel(const Bf16* panel, int64_t n, Bf16* to) {
    for (int64_t k = 0; k < n; k += 2, panel += 2 * PW)
        for (int j = 0; j < PW; j += W) {
            const V even = load(panel + j), odd = k + 1 < n ? load(panel + PW + j) : splat(0);
            const I pairs = (I)even >> 16 | (I)odd;
            memcpy(to + k * PW + 2 * j, &pairs, sizeof pairs);
        }
    return to;
}
}  // namespace

template <class O>
void transposed_product(const Tiles& tiles, int64_t first, int64_t last, const Rows& rows, int64_t K, const O* right, int64_t stride,
                        Gates gates, float* result, int64_t ld, bool add, O* packed, O* paired, Witness<O> witness) {
    const int64_t np = whole_panels(gates.columns), all = (gates.last - gates.first) * np * (last - first);
    const int64_t from = tiles.start(first), to = tiles.start(last);
    for (int64_t k0 = 0; k0 < K; k0 += KC) {
        const int64_t kn = K - k0 < KC ? K - k0 : KC, next = K - k0 - kn < KC ? K - k0 - kn : KC;
        for (int64_t k = 0; k < kn; k += STEP<O>) {
            for (int64_t ahead = k + 4; ahead < k + 4 + STEP<O> && ahead < kn; ++ahead) rows.fetch<3>(k0 + ahead, from, to);
            if (rows.times) pack_rows<true>(tiles, first, last, rows, k0 + k, k + 1 < kn, packed + k * PR);
            else pack_rows<false>(tiles, first, last, rows, k0 + k, k + 1 < kn, packed + k * PR);
        }
        int64_t fetched = 0, done = 0;  // rows of the next block; tiles of this one
        for (int gate = gates.first; gate < gates.last; ++gate)
            for (int64_t column = 0; column < gates.columns; column += PW) {
                const O* const panel = right + (gate * np + column / PW) * stride + k0 * PW;
                const bool is_last = gate + 1 == gates.last && column + PW >= gates.columns;
                const O* coming = is_last ? right + gates.first * np * stride + (k0 + kn) * PW : panel + stride;
                const O* const end = coming + (is_last ? next : kn) * PW;
                if (witness.tell) witness.tell(witness.who, panel, k0, kn, gate, column);
                const O* const operand = rows_as_panel(panel, kn, paired);
                float* c = result + from * ld + gate * gates.columns + column;
                for (int64_t i = first; i < last; ++i) {
                    const int R = (int)tiles.size(i);
                    const int64_t every = coming < end ? LINE<O> : 0;
                    for (++done; fetched < next && fetched * all < done * next; ++fetched) rows.fetch<2>(k0 + kn + fetched, from, to);
                    for (int j = 0; j < R; ++j) prefetch_row(c + j * ld);
                    const O* const left = packed + (i - first) * TILE<O>;
                    if (column + PW <= gates.columns) {
                        Multiply<O>::packed[R](depth<O>(kn), left, operand, c, ld, add || k0 > 0, coming, every);
                    } else {
                        alignas(64) float part[MR * PW];
                        Multiply<O>::packed[R](depth<O>(kn), left, operand, part, PW, false, coming, every);
                        for (int j = 0; j < R; ++j)
                            for (int64_t n = column; n < gates.columns; ++n) {
                                float* const at = c + j * ld + n - column;
                                *at = part[j * PW + n - column] + (add || k0 > 0 ? *at : 0);
                            }
                    }
                    c += R * ld;
                    coming += every * (kn / PW * PW / (FETCH<O> * STEP<O>));
                }
            }
    }
}
template void transposed_product(const Tiles&, int64_t, int64_t, const Rows&, int64_t, const float*, int64_t, Gates, float*, int64_t, bool,
                                 float*, float*, Witness<float>);
template void transposed_product(const Tiles&, int64_t, int64_t, const Rows&, int64_t, const Bf16*, int64_t, Gates, float*, int64_t, bool,
                                 Bf16*, Bf16*, Witness<Bf16>);
}  // namespace rngru
