// The micro-kernel, compiled once for each number of rows, and the packing of weights.
#include "gemm.hpp"

namespace rngru {
namespace {

// The last K steps of a tile, fewer than a chunk; a function of its own: few tiles need it.
template <int R>
__attribute__((noinline)) void rest(int64_t K, const float* a, int64_t rows, int64_t ks, const float* b, float* c, int64_t ld) {
    Tile<R> tile;
    tile.clear();
    tile.add(c, ld);
    for (int64_t k = 0; k < K; ++k, a += ks, b += PW) tile.step(a, rows, b);
    tile.put(c, ld);
}

template <int R>
void multiply_rows(int64_t K, const float* a, int64_t rows, int64_t chunks, const float* b, float* c) {
    Tile<R> tile;
    tile.clear();
    for (; K >= PW; K -= PW, a += chunks)
#pragma GCC unroll 4
        for (int k = 0; k < PW; ++k, b += PW) tile.step(a + k, rows, b);
    tile.put(c, PW);
    if (K > 0) rest<R>(K, a, rows, 1, b, c, PW);
}

template <int R>
void multiply_packed_rows(int64_t K, const float* a, const float* b, float* c, int64_t ld, bool add) {
    Tile<R> tile;
    tile.clear();
    for (; K >= PW; K -= PW)
#pragma GCC unroll 4
        for (int k = 0; k < PW; ++k, a += PR, b += PW) tile.step(a, 1, b);
    if (add) tile.add(c, ld);
    tile.put(c, ld);
    if (K > 0) rest<R>(K, a, 1, PR, b, c, ld);
}
}  // namespace

static_assert(MR == 6, "one entry for each number of rows");
Multiply* const multiply[MR + 1] = {nullptr,          multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                    multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
MultiplyPacked* const multiply_packed[MR + 1] = {
    nullptr,                 multiply_packed_rows<1>, multiply_packed_rows<2>, multiply_packed_rows<3>,
    multiply_packed_rows<4>, multiply_packed_rows<5>, multiply_packed_rows<6>};

void pack(float* panel, const float* src, int64_t ld, int64_t K, int64_t N, int64_t p) {
    src += p * PW;
    for (int64_t k = 0; k < K; ++k, panel += PW, src += ld)
        for (int v = 0; v < NV; ++v) store(panel + v * W, load(src + v * W, N - p * PW - v * W));
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
}  // namespace rngru
