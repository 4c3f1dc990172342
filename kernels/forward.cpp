// A GRU layer, forward over a whole sequence.
//
// FLOP, 2 a multiply-add: x U 6 K H T B (of vectors; of characters 6 K H times the distinct ones of the batch),
// recurrent products 6 H^2 T B, gates about 60 H T B. Bytes, beside operands that stay in the caches: G is
// written, read and written again, S written once: 40 H T B, which the products hide behind a prefetch.
// Scratch, bytes: 4 [3 H (H + K) + B H + n (K + 3 H)], n distinct characters, with H padded to a panel.
#include "gru.hpp"

namespace rngru {
namespace {

struct Forward {
    const rngru_layer& l;
    const Sizes d;
    float *Wp, *Up;       // in panels
    float* rs;            // (B, HP): r * s of the current step
    float *rows, *table;  // of the batch's characters: input vectors (n, K), their x U + b (n, 3H)

    template <class Take>
    void lay_out(Take take) {
        const int64_t n = Characters::most(l);
        take(Wp, 3 * d.HP * d.H);
        take(Up, l.input == RNGRU_ONEHOT ? 0 : 3 * d.HP * d.K);
        take(rs, d.B * d.HP);
        take(rows, l.input == RNGRU_ENCODED ? n * d.K : 0);
        take(table, n * 3 * d.H);
    }

    explicit Forward(const rngru_layer& l) : l(l), d(l) {}

    bool reserve() {
        size_t bytes = Characters::bytes(l);
        lay_out([&](float*&, int64_t n) { bytes += Scratch::bytes(n); });
        if (!scratch.reserve(bytes)) return false;
        lay_out([&](float*& p, int64_t n) { p = scratch.take(n); });
        return true;
    }

    void pack_weights(int threads) {
        Timer timer(PACK);
        const bool with_U = l.input != RNGRU_ONEHOT;
        Parts parts((with_U ? 6 : 3) * d.np, 8);
        parallel(threads, [&](int, int n) {
            for (int64_t i, end; parts.take(n, i, end);)
                for (; i < end; ++i) {
                    const int64_t p = i % (3 * d.np), gate = p / d.np;
                    const int64_t rows = i < 3 * d.np ? d.H : d.K;
                    float* const panels = i < 3 * d.np ? Wp : Up;
                    const float* const weights = i < 3 * d.np ? l.W : l.U;
                    pack(panels + p * rows * PW, weights + gate * d.H, 3 * d.H, rows, d.H, p % d.np);
                }
        });
    }

    // out (count, 3H) = x (count, K) U + b
    void inputs_times_U(int threads, int64_t count, const float* x, float* out) {
        const int64_t H = d.H;
        const float* const b = l.b;
        Parts parts((count + MR - 1) / MR, rows_in_cache(d.K) / MR);
        parallel(threads, [&](int, int n) {
            for (int64_t from, to; parts.take(n, from, to);) {
                const int64_t last = to * MR < count ? to * MR : count;
                product(
                    from * MR, last, d.K, row_major(x, d.K), Up, Gates{0, 3, H},
                    [&](int64_t row, int R, int gate, int64_t column) RNGRU_LAMBDA {
                        for (int i = 0; i < R; ++i) prefetch_write(out + (row + i) * 3 * H + gate * H + column);
                    },
                    [&](auto inside, int64_t row, int R, int gate, int64_t column, const float* c) RNGRU_LAMBDA {
                        constexpr bool whole = decltype(inside)::value;
                        const float* bias = b + gate * H + column;
                        float* to = out + row * 3 * H + gate * H + column;
                        for (int i = 0; i < R; ++i, c += PW, to += 3 * H)
                            for (int j = 0; j < PW; j += W) {
                                const int64_t left = H - column - j;
                                store<whole>(to + j, load(c + j) + load<whole>(bias + j, left), left);
                            }
                    });
            }
        });
    }

    // x U + b for each distinct character.
    void fill_table(int threads, const Characters& characters) {
        Timer timer(TABLE);
        if (l.input == RNGRU_ENCODED) {
            encode(l, characters, rows);
            inputs_times_U(threads, characters.n, rows, table);
        } else {
            for (int64_t i = 0; i < characters.n; ++i)
                for (int64_t j = 0; j < 3 * d.H; j += W) {
                    const int64_t left = 3 * d.H - j;
                    const V u = load(l.U + characters.list[i] * 3 * d.H + j, left);
                    store(table + i * 3 * d.H + j, u + load(l.b + j, left), left);
                }
        }
    }

    // All steps of rows [first, last) of the batch: no thread waits for another.
    void steps(int64_t first, int64_t last, const int32_t* places) {
        const int64_t H = d.H, HP = d.HP, B = d.B;
        const float* const table = this->table;
        float* const rs = this->rs;
        for (int64_t t = 0; t < d.T; ++t) {
            const float* const s = t ? l.S + (t - 1) * B * H : l.s0;
            float* const S = l.S + t * B * H;
            float* const G = l.G + t * B * 3 * H;
            auto input = [&](int64_t row) RNGRU_LAMBDA { return places ? table + places[t * B + row] * 3 * H : G + row * 3 * H; };

            product(
                first, last, H, row_major(s, H), Wp, Gates{0, 2, H},
                [&](int64_t row, int R, int gate, int64_t column) RNGRU_LAMBDA {
                    for (int i = 0; i < R; ++i) prefetch_write(G + (row + i) * 3 * H + gate * H + column);
                },
                [&](auto inside, int64_t row, int R, int gate, int64_t column, const float* c) RNGRU_LAMBDA {
                    constexpr bool whole = decltype(inside)::value;
                    for (int i = 0; i < R; ++i, ++row, c += PW) {
                        const float* in = input(row) + gate * H + column;
                        for (int j = 0; j < PW; j += W) {
                            const int64_t left = H - column - j;
                            const V zr = hard_sigmoid(load(c + j) + load<whole>(in + j, left));
                            store<whole>(G + row * 3 * H + gate * H + column + j, zr, left);
                            if (gate == 1) store(rs + row * HP + column + j, zr * load<whole>(s + row * H + column + j, left));
                        }
                    }
                });

            product(
                first, last, H, row_major(rs, HP), Wp, Gates{2, 3, H},
                [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                    for (int i = 0; i < R; ++i) {
                        prefetch_write(G + (row + i) * 3 * H + 2 * H + column);
                        prefetch_write(S + (row + i) * H + column);
                    }
                },
                [&](auto inside, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                    constexpr bool whole = decltype(inside)::value;
                    for (int i = 0; i < R; ++i, ++row, c += PW) {
                        const float* const in = input(row) + 2 * H + column;
                        const float* const before = s + row * H + column;
                        float* const g = G + row * 3 * H + column;
                        for (int j = 0; j < PW; j += W) {
                            const int64_t left = H - column - j;
                            const V h = tanh(load(c + j) + load<whole>(in + j, left)), z = load<whole>(g + j, left);
                            store<whole>(g + 2 * H + j, h, left);
                            const V next = (splat(1) - z) * h + z * load<whole>(before + j, left);
                            store<whole>(S + row * H + column + j, next, left);
                        }
                    }
                });
        }
    }
};
}  // namespace
}  // namespace rngru

int rngru_gru_forward(const rngru_layer* layer) {
    using namespace rngru;
    Call call;
    const rngru_layer& l = *layer;
    Forward forward(l);
    const Sizes& d = forward.d;
    if (!forward.reserve()) return 1;
    Characters characters(l);
    const int threads = threads_for(6. * (double)d.TB * (double)d.H * (double)d.H);
    forward.pack_weights(threads);
    if (l.input == RNGRU_VECTORS) {
        Timer timer(INPUTS);
        forward.inputs_times_U(threads, d.TB, l.X, l.G);
    } else {
        forward.fill_table(threads, characters);
    }
    Timer timer(FORWARD);
    parallel(threads < d.B ? threads : (int)d.B,
             [&](int thread, int n) { forward.steps(d.B * thread / n, d.B * (thread + 1) / n, characters.places); });
    return 0;
}
