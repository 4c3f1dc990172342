// What the two directions of a GRU layer share: sizes, and the characters of a batch.
#pragma once
#include "gemm.hpp"
#include "pool.hpp"
#include "rngru.h"

namespace rngru {

struct Sizes {
    int64_t T, B, K, H, TB;
    int64_t np;  // panels of a gate: z's are [0, np), r's [np, 2 np), h's [2 np, 3 np), each padded on its own
    int64_t HP;  // H up to the next panel
    explicit Sizes(const rngru_layer& l)
        : T(l.T), B(l.B), K(l.K), H(l.H), TB(l.T * l.B), np(whole_panels(l.H)), HP(np * PW) {}
};

// The distinct characters of a batch, in the order of their indices: character list[i] has slot[list[i]] = i.
// What depends on the character alone is computed once for each, not for each of the T B places: 18 H^2 of
// the first layer's 36 H^2 FLOP a character are saved.
struct Characters {
    int32_t *slot, *list;
    int32_t* places = nullptr;  // (T, B): the slot of each place's character; null in a layer of vectors
    int64_t n = 0, all;         // of `all` there are
    static int64_t most(const rngru_layer& l) {
        const int64_t all = l.input == RNGRU_ENCODED ? l.N : l.K, places = l.T * l.B;
        return l.input == RNGRU_VECTORS ? 0 : all < places ? all : places;
    }
    static size_t bytes(const rngru_layer& l) {
        if (l.input == RNGRU_VECTORS) return 0;
        return Scratch::bytes(l.input == RNGRU_ENCODED ? l.N : l.K) + Scratch::bytes(most(l)) + Scratch::bytes(l.T * l.B);
    }
    explicit Characters(const rngru_layer& l) : all(l.input == RNGRU_ENCODED ? l.N : l.K) {
        if (l.input == RNGRU_VECTORS) return;
        slot = scratch.take<int32_t>(all);
        list = scratch.take<int32_t>(most(l));
        places = scratch.take<int32_t>(l.T * l.B);
        for (int64_t i = 0; i < all; ++i) slot[i] = -1;
        for (int64_t i = 0; i < l.T * l.B; ++i) slot[l.x[i]] = 0;
        for (int64_t i = 0; i < all; ++i)
            if (slot[i] == 0) {
                slot[i] = (int32_t)n;
                list[n++] = (int32_t)i;
            }
        for (int64_t i = 0; i < l.T * l.B; ++i) places[i] = slot[l.x[i]];
    }
};

// rows (n, K): tanh(E[character] + a), the input vectors of the characters.
inline void encode(const rngru_layer& l, const Characters& characters, float* rows) {
    for (int64_t i = 0; i < characters.n; ++i) {
        const float* e = l.E + characters.list[i] * l.K;
        for (int64_t k = 0; k < l.K; k += W)
            store(rows + i * l.K + k, tanh(load(e + k, l.K - k) + load(l.a + k, l.K - k)), l.K - k);
    }
}

// Rows of a left operand of K columns that, with a panel beside them, fit half of a second-level cache of 512 KB; for AMX, a quarter of
// one of 2 MB, of which `product` gives panels half.
template <class O>
int64_t rows_in_cache(int64_t K) {
    const int64_t blocks = (TILED<O> ? 256 : 48) * 1024 / K / ROWS<O>, least = TILED<O> ? 2 : 4, most = TILED<O> ? 16 : 20;
    return (blocks < least ? least : blocks > most ? most : blocks) * ROWS<O>;
}
}  // namespace rngru
