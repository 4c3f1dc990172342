// Products of bfloat16 by the tiles of Intel's AMX: a block of up to 32 rows by a panel at a time.
//
// A tile is 16 rows of 64 bytes: 16 floats of a sum, 32 bfloat16 of a left operand, 16 pairs of 16 columns of a right one, which is how
// a panel lies. One instruction adds the product of two such to a third, 16384 FLOP in 16 cycles, fewer rows in as many: 16 times what
// AVX-512 does in float32. So blocks are as large as they can be, and the last one has what is left. Limit: where panels come from. They
// are read at 32 bytes a cycle by 32 rows, at 64 by 16 or fewer; 43 are to be had from the second-level cache (of a Xeon, 2 MB a core), a
// fifth of that from the third.
#pragma once
#include "simd.hpp"

namespace rngru {
#if defined(RNGRU_TILES)
constexpr bool AMX = true;
#else
constexpr bool AMX = false;
#endif
constexpr int TILE_ROWS = 32, TILE_DEPTH = 32, TILE_LINES = 16;  // rows of a block; k of a tile, and lines fetched meanwhile

// c (R, PW) = left (R, K) times panel (K, PW), K whole tiles; with `add` the product is added to c, whose rows are `ld` apart. Of the left
// operand 32 elements from k on lie side by side, at left + k / 64 * chunk + k % 64 / 32 * half, its rows `rows` apart.
// Of a block of more than 16 rows, each line `every` elements from `coming` on is fetched as by Multiply, TILE_LINES in a tile of k.
void multiply_tiles(int R, int64_t K, const Bf16* left, int64_t rows, int64_t half, int64_t chunk, const Bf16* panel, float* c, int64_t ld,
                    bool add, const Bf16* coming, int64_t every);

// What a thread does behind its last product: without it the system would keep 8 KB of tiles for it whenever another one runs.
void release_tiles();

// Whether the processor has the tiles, and the system lets the process use them. Else the products are right, and slow.
bool tiles_permitted();
}  // namespace rngru
