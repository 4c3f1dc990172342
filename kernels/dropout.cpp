// Dropout whose mask is made of the words of Philox4x32-10 (Salmon et al. 2011, SC11): a counter, a key and ten
// rounds, and no state, so that any thread makes any part of it, and the backward pass makes it again.
//
// An element takes 5 products of 32 by 32 bits; with AVX2 all of it is 6.3 vector instructions an element,
// 1.6 cycles where a processor does four at once. Zen 3 takes 2.1, loads and stores included.
#include <utility>

#include "pool.hpp"
#include "rngru.h"

namespace rngru {
namespace {
constexpr int N = W / 2;              // counters a vector, one in the low half of each 64-bit lane: words for two vectors of floats
constexpr int G = 2;                  // vectors of counters at once: one alone would wait for its own products
constexpr int64_t BLOCK = G * 2 * W;  // elements

// Lane j: a's where j is even, b's where it is odd, from lane j with the last bit set to `odd`.
template <int odd, size_t... j>
RNGRU_INLINE L paired(L a, L b, std::index_sequence<j...>) {
    return L{(j % 2 ? b : a)[j / 2 * 2 + odd]...};
}

class Philox {
    L keys[10][2], layer, low, high;
    static L wide(uint64_t x) { return (x & 0xffffffff) - L{}; }

public:
    Philox(uint64_t seed, uint64_t updates, uint32_t layer) : layer(wide(layer)), low(wide(updates)), high(wide(updates >> 32)) {
        for (uint32_t i = 0; i < 10; ++i) {
            keys[i][0] = wide((uint32_t)seed + i * 0x9E3779B9u);
            keys[i][1] = wide((uint32_t)(seed >> 32) + i * 0xBB67AE85u);
        }
    }

    // The words of elements [first, first + BLOCK), first a multiple of 4, in order. Lanes with odd numbers hold the later
    // half of a vector's counters, so that `paired` is all the sorting. What is in a lane's upper half matters
    // only at the end: products and keys don't see it.
    RNGRU_INLINE void words(int64_t first, I out[2 * G]) const {
        L c0[G], c1[G], c2[G], c3[G];
        L lanes;
        for (int j = 0; j < N; ++j) lanes[j] = (uint64_t)(j / 2 + j % 2 * (N / 2));
        for (int g = 0; g < G; ++g) {
            c0[g] = lanes + (uint64_t)(first / 4 + g * N);
            c1[g] = layer;
            c2[g] = low;
            c3[g] = high;
        }
        for (int i = 0; i < 10; ++i)
            for (int g = 0; g < G; ++g) {
                const L p0 = multiply_low(c0[g], wide(0xD2511F53)), p1 = multiply_low(c2[g], wide(0xCD9E8D57));
                c0[g] = (p1 >> 32) ^ c1[g] ^ keys[i][0];
                c1[g] = p1;
                c2[g] = (p0 >> 32) ^ c3[g] ^ keys[i][1];
                c3[g] = p0;
            }
        for (int g = 0; g < G; ++g) {
            const L below = wide(0xffffffff), a = (c0[g] & below) | c1[g] << 32, b = (c2[g] & below) | c3[g] << 32;
            out[2 * g] = (I)paired<0>(a, b, std::make_index_sequence<N>());
            out[2 * g + 1] = (I)paired<1>(a, b, std::make_index_sequence<N>());
        }
    }
};
}  // namespace
}  // namespace rngru

int rngru_dropout(int64_t n, const float* S, float* out, uint32_t threshold, float scale, uint64_t seed, uint64_t updates, uint32_t layer) {
    using namespace rngru;
    Call call;
    Timer timer(DROPOUT);
    const Philox philox(seed, updates, layer);
    Parts blocks((n + BLOCK - 1) / BLOCK, 1024);
    parallel(threads_for(20. * (double)n), [&](int, int threads) {
        const V factor = splat(scale);
        const I least = threshold - I{};
        for (int64_t from, to; blocks.take(threads, from, to);)
            for (int64_t k = from * BLOCK; k < to * BLOCK; k += BLOCK) {
                I words[2 * G];
                philox.words(k, words);
                for (int j = 0; j < 2 * G; ++j) {
                    const int64_t at = k + j * W;
                    store(out + at, (V)((I)(load(S + at, n - at) * factor) & (I)(words[j] >= least)), n - at);
                }
            }
    });
    return 0;
}
