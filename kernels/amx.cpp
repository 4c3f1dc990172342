// Tiles of AMX, and the same in plain C++ where there are none.
#include "amx.hpp"

#if defined(RNGRU_TILES)
#include <algorithm>

#if defined(RNGRU_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rngru {
namespace {

// What a thread's tiles are laid out for: R rows of a block; 0: for nothing.
thread_local int laid_out = 0;

// Tiles: sums of the block's upper rows in 0 and 1, of its lower ones in 2 and 3; its left operand in 4 and 5; 6 and 7 the right one.
// Of a block of 16 rows or fewer there are only upper ones, sums in 0 to 3 and the left operand in 4.
int rows_of_tile(int tile, int R) {
    const int upper = std::min(R, 16), lower = R - upper;
    if (tile >= 6 || (tile == 5 && lower == 0)) return 16;
    return tile < 2 || tile == 4 || lower == 0 ? upper : lower;
}

struct Emulated {
    struct Tiles {
        int rows[8];
        float sums[4][16][16];
        Bf16 operands[8][16][32];
    };
    static Tiles& tiles() {
        static thread_local Tiles tiles;
        return tiles;
    }
    static void lay_out(int R) {
        for (int tile = 0; tile < 8; ++tile) tiles().rows[tile] = rows_of_tile(tile, R);
    }
    template <int tile>
    static void zero() {
        memset(tiles().sums[tile], 0, sizeof tiles().sums[tile]);
    }
    template <int tile>
    static void load(const void* from, int64_t bytes) {
        for (int i = 0; i < tiles().rows[tile]; ++i)
            memcpy(tile < 4 ? (void*)tiles().sums[tile % 4][i] : tiles().operands[tile][i], (const char*)from + i * bytes, 64);
    }
    template <int tile>
    static void store(void* to, int64_t bytes) {
        for (int i = 0; i < tiles().rows[tile]; ++i) memcpy((char*)to + i * bytes, tiles().sums[tile][i], 64);
    }
    template <int sums, int left, int right>
    static void dot() {
        Tiles& t = tiles();
        for (int i = 0; i < t.rows[sums]; ++i)
            for (int k = 0; k < 32; ++k)
                for (int j = 0; j < 16; ++j)
                    t.sums[sums][i][j] += value(t.operands[left][i][k]) * value(t.operands[right][k / 2][2 * j + k % 2]);
    }
    static float value(Bf16 b) {
        const uint32_t bits = (uint32_t)b.bits << 16;
        float f;
        memcpy(&f, &bits, sizeof f);
        return f;
    }
};

#if defined(RNGRU_AMX)
// The compiler's own functions take a tile's number as a word of the assembler, and g++ does not know which memory they read.
struct Amx {
    static void lay_out(int R) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, none[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } layout;
        for (int tile = 0; tile < 8; ++tile) layout.bytes[tile] = 64, layout.rows[tile] = (uint8_t)rows_of_tile(tile, R);
        __asm__ volatile("ldtilecfg %0" : : "m"(layout));
    }
    template <int tile>
    static RNGRU_INLINE void zero() {
        __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
    }
    template <int tile>
    static RNGRU_INLINE void load(const void* from, int64_t bytes) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(bytes), "i"(tile) : "memory");
    }
    template <int tile>
    static RNGRU_INLINE void store(void* to, int64_t bytes) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(bytes), "i"(tile) : "memory");
    }
    template <int sums, int left, int right>
    static RNGRU_INLINE void dot() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right));
    }
};

// Linux gives tiles to a process that has asked for them.
bool asked() {
    constexpr long REQUEST = 0x1023, TILES = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
}
#endif

// The order of a sum's products is that of k in all of them, whatever R is.
template <class T>
void multiply(int R, int64_t K, const Bf16* left, int64_t rows, int64_t half, int64_t chunk, const Bf16* panel, float* c, int64_t ld,
              bool add, const Bf16* coming, int64_t every) {
    constexpr int64_t RIGHT = 4 * PW, COLUMNS = 32;  // bytes from one pair of rows of a panel to the next; elements to the next 16 columns
    const int64_t bytes = rows * (int64_t)sizeof(Bf16), ldb = ld * (int64_t)sizeof(float);
    const Bf16* const lower = left + 16 * rows;
    if (R > 16) {
        for (int64_t j = 0; j < PW; j += 32, panel += 2 * COLUMNS, c += 32) {
            if (add) {
                T::template load<0>(c, ldb);
                T::template load<1>(c + 16, ldb);
                T::template load<2>(c + 16 * ld, ldb);
                T::template load<3>(c + 16 * ld + 16, ldb);
            } else {
                T::template zero<0>();
                T::template zero<1>();
                T::template zero<2>();
                T::template zero<3>();
            }
            const Bf16* b = panel;
            int64_t at = 0;
            for (int64_t k = 0; k < K; k += TILE_DEPTH, b += TILE_DEPTH * PW) {
                T::template load<4>(left + at, bytes);
                T::template load<6>(b, RIGHT);
                for (int i = 0; every && i < TILE_LINES / 2; ++i, coming += every) __builtin_prefetch(coming, 0, 2);
                T::template dot<0, 4, 6>();
                T::template load<7>(b + COLUMNS, RIGHT);
                T::template dot<1, 4, 7>();
                T::template load<5>(lower + at, bytes);
                T::template dot<2, 5, 6>();
                T::template dot<3, 5, 7>();
                at += k & TILE_DEPTH ? chunk - half : half;
            }
            T::template store<0>(c, ldb);
            T::template store<1>(c + 16, ldb);
            T::template store<2>(c + 16 * ld, ldb);
            T::template store<3>(c + 16 * ld + 16, ldb);
        }
        return;
    }
    if (add) {
        T::template load<0>(c, ldb);
        T::template load<1>(c + 16, ldb);
        T::template load<2>(c + 32, ldb);
        T::template load<3>(c + 48, ldb);
    } else {
        T::template zero<0>();
        T::template zero<1>();
        T::template zero<2>();
        T::template zero<3>();
    }
    for (int64_t k = 0; k < K; k += TILE_DEPTH, panel += TILE_DEPTH * PW) {
        T::template load<4>(left, bytes);
        T::template load<6>(panel, RIGHT);
        T::template dot<0, 4, 6>();
        T::template load<7>(panel + COLUMNS, RIGHT);
        T::template dot<1, 4, 7>();
        T::template load<5>(panel + 2 * COLUMNS, RIGHT);
        T::template dot<2, 4, 5>();
        T::template load<6>(panel + 3 * COLUMNS, RIGHT);
        T::template dot<3, 4, 6>();
        left += k & TILE_DEPTH ? chunk - half : half;
    }
    T::template store<0>(c, ldb);
    T::template store<1>(c + 16, ldb);
    T::template store<2>(c + 32, ldb);
    T::template store<3>(c + 48, ldb);
}
}  // namespace

bool tiles_permitted() {
#if defined(RNGRU_AMX)
    static const bool permitted = asked();
    return permitted;
#else
    return false;
#endif
}

void multiply_tiles(int R, int64_t K, const Bf16* left, int64_t rows, int64_t half, int64_t chunk, const Bf16* panel, float* c, int64_t ld,
                    bool add, const Bf16* coming, int64_t every) {
    static_assert(PW == 64, "a panel is four tiles wide");
#if defined(RNGRU_AMX)
    if (tiles_permitted()) {
        if (laid_out != R) Amx::lay_out(laid_out = R);  // a hundred nanoseconds
        return multiply<Amx>(R, K, left, rows, half, chunk, panel, c, ld, add, coming, every);
    }
#endif
    if (laid_out != R) Emulated::lay_out(laid_out = R);
    multiply<Emulated>(R, K, left, rows, half, chunk, panel, c, ld, add, coming, every);
}

void release_tiles() {
#if defined(RNGRU_AMX)
    if (laid_out && tiles_permitted()) __asm__ volatile("tilerelease");
#endif
    laid_out = 0;
}
}  // namespace rngru
#else
void rngru::release_tiles() {}
#endif
