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
            for (int step = 0; step < FETCH<O>; ++step, a += STEP<O> * PR<O>, b += STEP<O> * PW) tile.step(a, STEP<O>, b);
        }
    if (add) tile.add(c, ld);
    tile.put(c, ld);
    if (K > 0) rest<O, R>(K, a, STEP<O>, PR<O>, b, c, ld);
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
#if !defined(RNGRU_TILES)
template struct Multiply<Bf16>;
#endif

// A row of a panel's columns of weights is in another page than the one before: no processor foresees it.
constexpr int64_t AHEAD = 8;  // rows

void pack(float* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p) {
    src += p * PW;
    for (int64_t k = 0; k < K; ++k, panel += PW, src += ld) {
        fetch_row<3>(src + AHEAD * ld);
        for (int v = 0; v < NV; ++v) store(panel + v * W, load(src + v * W, N - p * PW - v * W));
    }
}

void pack(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p) {
    src += p * PW;
    for (int64_t k = 0; k < K; k += 2, panel += 2 * PW, src += 2 * ld) {
        fetch_row<3>(src + AHEAD * ld);
        fetch_row<3>(src + (AHEAD + 1) * ld);
        for (int v = 0; v < NV; ++v) {
            const int64_t left = N - p * PW - v * W;
            store_pairs(panel + 2 * v * W, load(src + v * W, left), load(src + (k + 1 < K ? ld : 0) + v * W, k + 1 < K ? left : 0));
        }
    }
    memset(panel, 0, (size_t)(PW * (depth<Bf16>(K) - (K + 1) / 2 * 2)) * sizeof(Bf16));
}

void pack_transposed(float* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p) {
    const int64_t n = N - p * PW < PW ? N - p * PW : PW;
    src += p * PW * ld;
    for (int64_t k0 = 0; k0 < K_padded; k0 += W)
        for (int64_t j0 = 0; j0 < PW; j0 += W) {
            I rows[W];
            for (int64_t j = 0; j < W; ++j) {
                const float* const row = src + (j0 + j) * ld + k0;
                __builtin_prefetch(row + AHEAD * W);
                rows[j] = (I)(j0 + j < n ? load(row, K - k0) : splat(0));
            }
            transpose(rows);
            for (int64_t k = 0; k < W && k0 + k < K_padded; ++k) store(panel + (k0 + k) * PW + j0, (V)rows[k]);
        }
}

void pack_transposed(Bf16* panel, const float* src, int64_t ld, int64_t K, int64_t K_padded, int64_t N, int64_t p) {
    const int64_t n = N - p * PW < PW ? N - p * PW : PW;
    src += p * PW * ld;
    for (int64_t k0 = 0; k0 < K_padded; k0 += 2 * W)
        for (int64_t j0 = 0; j0 < PW; j0 += W) {
            I rows[W];
            for (int64_t j = 0; j < W; ++j) {
                Halves halves[2] = {};
                const float* const row = src + (j0 + j) * ld + k0;
                __builtin_prefetch(row + AHEAD * W);
                __builtin_prefetch(row + (AHEAD + 1) * W);
                for (int64_t i = 0; i < 2 && j0 + j < n; ++i) halves[i] = nearest(load(row + i * W, K - k0 - i * W));
                memcpy(&rows[j], halves, sizeof halves);
            }
            transpose(rows);
            for (int64_t k = 0; k < W && k0 + 2 * k < K_padded; ++k) memcpy(panel + (k0 + 2 * k) * PW + 2 * j0, &rows[k], sizeof rows[k]);
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
template <bool product>
RNGRU_INLINE V row_part(const Rows& rows, int64_t k, int64_t m, int64_t left) {
    const V v = load(rows.row(k) + m, left);
    return product ? v * load(rows.times + k * rows.times_ld + m, left) : v;
}
// Copies tiles [first, last) of row k, or of n rows from there in pairs (to AMX: its tile's DEPTH), to places TILE apart.
template <bool product>
RNGRU_INLINE void pack_rows(const Tiles<float>& tiles, int64_t first, int64_t last, const Rows& rows, int64_t k, int64_t, float* p) {
    int64_t m = tiles.start(first);
    for (int64_t i = first; i < last; m += tiles.size(i), ++i, p += TILE<float>)
        for (int j = 0; j < PR<float>; j += W) {
            const V v = row_part<product>(rows, k, m + j, tiles.M - m - j);
            memcpy(p + j, &v, sizeof(float) * (W < PR<float> ? W : PR<float>));
        }
}
template <bool product>
RNGRU_INLINE void pack_rows(const Tiles<Bf16>& tiles, int64_t first, int64_t last, const Rows& rows, int64_t k, int64_t n, Bf16* p) {
    int64_t m = tiles.start(first);
    const auto row = [&](int64_t i, int64_t at) RNGRU_LAMBDA {
        return i < n ? row_part<product>(rows, k + i, at, tiles.M - at) : splat(0);
    };
    for (int64_t i = first; i < last; m += tiles.size(i), ++i, p += TILE<Bf16>)
        if constexpr (TILED<Bf16>) {
            for (int j = 0; j < TILE_ROWS; j += W) {
                I pairs[W];
                for (int k = 0; k < W; ++k) pairs[k] = nearest_pairs(row(2 * k, m + j), row(2 * k + 1, m + j));
                transpose(pairs);
                memcpy(p + j * TILE_DEPTH, pairs, sizeof pairs);
            }
        } else {
            for (int j = 0; j < PR<Bf16>; j += W) {
                const I pairs = nearest_pairs(row(0, m + j), row(1, m + j));
                memcpy(p + 2 * j, &pairs, sizeof(Bf16) * 2 * (W < PR<Bf16> ? W : PR<Bf16>));
            }
        }
}

// The first n rows of a panel as the right operand of a product over its rows: where they are, or in pairs in `to`.
const float* rows_as_panel(const float* panel, int64_t, float*) { return panel; }
const Bf16* rows_as_panel(const Bf16* panel, int64_t n, Bf16* to) {
    for (int64_t k = 0; k < n; k += 2, panel += 2 * PW)
        for (int j = 0; j < PW; j += W) {
            const I even = load_wide(panel + j), odd = k + 1 < n ? load_wide(panel + PW + j) : I{}, pairs = even | odd << 16;
            memcpy(to + k * PW + 2 * j, &pairs, sizeof pairs);
        }
    const int64_t end = (n + 1) / 2 * 2;
    memset(to + end * PW, 0, (size_t)((depth<Bf16>(n) - end) * PW) * sizeof(Bf16));
    return to;
}
}  // namespace

template <class O>
void transposed_product(const Tiles<O>& tiles, int64_t first, int64_t last, const Rows& rows, int64_t K, const O* right, int64_t stride,
                        Gates gates, float* result, int64_t ld, bool add, O* packed, O* paired, Witness<O> witness) {
    const int64_t np = whole_panels(gates.columns), all = (gates.last - gates.first) * np * (last - first);
    const int64_t from = tiles.start(first), to = tiles.start(last);
    for (int64_t k0 = 0; k0 < K; k0 += KC) {
        const int64_t kn = K - k0 < KC ? K - k0 : KC, next = K - k0 - kn < KC ? K - k0 - kn : KC;
        for (int64_t k = 0; k < kn; k += DEPTH<O>) {
            const int64_t n = kn - k < DEPTH<O> ? kn - k : DEPTH<O>;
            for (int64_t ahead = k + 4; ahead < k + 4 + DEPTH<O> && ahead < kn; ++ahead) rows.fetch<3>(k0 + ahead, from, to);
            if (rows.times) pack_rows<true>(tiles, first, last, rows, k0 + k, n, packed + k * PR<O>);
            else pack_rows<false>(tiles, first, last, rows, k0 + k, n, packed + k * PR<O>);
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
                    if (column + PW <= gates.columns && (!TILED<O> || R == ROWS<O>)) {
                        multiply_packed(R, depth<O>(kn), left, operand, c, ld, add || k0 > 0, coming, every);
                    } else {
                        alignas(64) float part[ROWS<O> * PW];
                        multiply_packed(TILED<O> ? ROWS<O> : R, depth<O>(kn), left, operand, part, PW, false, coming, every);
                        const int64_t end = column + PW < gates.columns ? column + PW : gates.columns;
                        for (int j = 0; j < R; ++j)
                            for (int64_t n = column; n < end; ++n) {
                                float* const at = c + j * ld + n - column;
                                *at = part[j * PW + n - column] + (add || k0 > 0 ? *at : 0);
                            }
                    }
                    c += R * ld;
                    coming += every * lines_fetched<O>(kn);
                }
            }
    }
}
template void transposed_product(const Tiles<float>&, int64_t, int64_t, const Rows&, int64_t, const float*, int64_t, Gates, float*, int64_t,
                                 bool, float*, float*, Witness<float>);
template void transposed_product(const Tiles<Bf16>&, int64_t, int64_t, const Rows&, int64_t, const Bf16*, int64_t, Gates, float*, int64_t,
                                 bool, Bf16*, Bf16*, Witness<Bf16>);
}  // namespace rngru
