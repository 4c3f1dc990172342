// A GRU layer, forward over a whole sequence.
//
// FLOP, 2 a multiply-add: x U 6 K H T B (of vectors; of characters 6 K H times the distinct ones of the batch),
// recurrent products 6 H^2 T B, gates about 60 H T B. Bytes, beside operands that stay in the caches: G is
// written, read and written again, S written once: 40 H T B, which the products hide behind a prefetch.
// Scratch, bytes: 4 [3 H (H + K) + B H + n (K + 3 H)], n distinct characters, with H padded to a panel; of bfloat16 2 [3 H (H + K) +
// 2 B H + T B K] and the table. There s, r * s and X are rounded where they multiply; the table is of float32. By AMX the products are
// a tenth of float32's time or less, and bytes are what counts: each step reads all of W, 6 H^2, from the second-level cache where it
// stays there (H 384 of 2 MB), else from the third, for up to 32 rows of a thread as for one.
#include "gru.hpp"

namespace rngru {
namespace {

template <class O>
struct Forward {
    static constexpr bool rounds = STEP<O> > 1;
    const rngru_layer& l;
    const Sizes d;
    const int64_t HD, KD;  // H and K up to a whole step of a tile
    O *Wp, *Up;            // in panels; Up of vectors
    float* Ue;             // U of encoded characters, in panels
    O* rs;                 // (B, HP): r * s of the current step
    O *s, *X;              // what is rounded: (B, HP), the state before the current step; (T B, KD)
    float *rows, *table;   // of the batch's characters: input vectors (n, K), their x U + b (n, 3H)

    template <class Take>
    void lay_out(Take take) {
        const int64_t n = Characters::most(l);
        const bool vectors = l.input == RNGRU_VECTORS;
        take(Wp, 3 * d.HP * HD);
        take(Up, vectors ? 3 * d.HP * KD : 0);
        take(Ue, l.input == RNGRU_ENCODED ? 3 * d.HP * d.K : 0);
        take(rs, d.B * d.HP);
        take(s, rounds ? d.B * d.HP : 0);
        take(X, rounds && vectors ? d.TB * KD : 0);
        take(rows, l.input == RNGRU_ENCODED ? n * d.K : 0);
        take(table, n * 3 * d.H);
    }

    explicit Forward(const rngru_layer& l) : l(l), d(l), HD(depth<O>(l.H)), KD(depth<O>(l.K)) {}

    bool reserve() {
        size_t bytes = Characters::bytes(l);
        lay_out([&](auto*& p, int64_t n) { bytes += Scratch::bytes<decltype(*p)>(n); });
        if (!scratch.reserve(bytes)) return false;
        lay_out([&](auto*& p, int64_t n) { scratch.take(p, n); });
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
                    auto into = [&](auto* panels, const float* weights, int64_t rows, int64_t padded) {
                        pack(panels + p * padded * PW, weights + gate * d.H, 3 * d.H, rows, d.H, p % d.np);
                    };
                    if (i < 3 * d.np) into(Wp, l.W, d.H, HD);
                    else if (l.input == RNGRU_VECTORS) into(Up, l.U, d.K, KD);
                    else into(Ue, l.U, d.K, d.K);
                }
        });
    }

    // out (count, 3H) = x (count, K) U + b, `padded` floats a row; prepare(from, to) sees the rows first.
    template <class A, class Prepare>
    void inputs_times_U(int threads, int64_t count, const A* x, int64_t padded, const A* U, float* out, Prepare prepare) {
        const int64_t H = d.H;
        const float* const b = l.b;
        constexpr int R = ROWS<A>;
        Parts parts((count + R - 1) / R, rows_in_cache<A>(d.K) / R);
        parallel(threads, [&](int, int n) {
            for (int64_t from, to; parts.take(n, from, to);) {
                const int64_t last = to * R < count ? to * R : count;
                prepare(from * R, last);
                product(
                    from * R, last, padded, row_major(x, padded), U, Gates{0, 3, H},
                    [&](int64_t row, int R, int gate, int64_t column) RNGRU_LAMBDA {
                        for (int i = 0; i < R; ++i) prefetch_row(out + (row + i) * 3 * H + gate * H + column);
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

    // x U + b for each vector.
    void project(int threads) {
        Timer timer(INPUTS);
        if constexpr (rounds)
            inputs_times_U(threads, d.TB, X, KD, Up, l.G, [&](int64_t from, int64_t to) {
                for (int64_t i = from; i < to; ++i) to_bf16(X + i * KD, l.X + i * d.K, d.K, KD);
            });
        else
            inputs_times_U(threads, d.TB, l.X, d.K, Up, l.G, [](int64_t, int64_t) {});
    }

    // x U + b for each distinct character.
    void fill_table(int threads, const Characters& characters) {
        Timer timer(TABLE);
        if (l.input == RNGRU_ENCODED) {
            encode(l, characters, rows);
            inputs_times_U(threads, characters.n, rows, d.K, Ue, table, [](int64_t, int64_t) {});
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
        O* const rs = this->rs;
        O* const rounded = this->s;
        if constexpr (rounds)
            for (int64_t row = first; row < last; ++row) to_bf16(rounded + row * HP, l.s0 + row * H, H, HP);
        for (int64_t t = 0; t < d.T; ++t) {
            const float* const s = t ? l.S + (t - 1) * B * H : l.s0;
            float* const S = l.S + t * B * H;
            float* const G = l.G + t * B * 3 * H;
            auto input = [&](int64_t row) RNGRU_LAMBDA { return places ? table + places[t * B + row] * 3 * H : G + row * 3 * H; };

            Left<O> states;
            if constexpr (rounds) states = row_major(rounded, HP);
            else states = row_major(s, H);
            product(
                first, last, HD, states, Wp, Gates{0, 2, H},
                [&](int64_t row, int R, int gate, int64_t column) RNGRU_LAMBDA {
                    for (int i = 0; i < R; ++i) prefetch_row(G + (row + i) * 3 * H + gate * H + column);
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
                first, last, HD, row_major(rs, HP), Wp, Gates{2, 3, H},
                [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                    for (int i = 0; i < R; ++i) {
                        prefetch_row(G + (row + i) * 3 * H + 2 * H + column);
                        prefetch_row(S + (row + i) * H + column);
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
                            if constexpr (rounds) store(rounded + row * HP + column + j, next);
                        }
                    }
                });
        }
    }
};
template <class O>
int run(const rngru_layer& l) {
    Forward<O> forward(l);
    const Sizes& d = forward.d;
    if (!forward.reserve()) return 1;
    Characters characters(l);
    const int threads = threads_for(6. * (double)d.TB * (double)d.H * (double)d.H);
    forward.pack_weights(threads);
    if (l.input == RNGRU_VECTORS) forward.project(threads);
    else forward.fill_table(threads, characters);
    Timer timer(FORWARD);
    parallel(threads < d.B ? threads : (int)d.B,
             [&](int thread, int n) { forward.steps(d.B * thread / n, d.B * (thread + 1) / n, characters.places); });
    return 0;
}
}  // namespace
}  // namespace rngru

int rngru_gru_forward(const rngru_layer* layer) {
    using namespace rngru;
    Call call;
    return layer->precision == RNGRU_BFLOAT16 ? run<Bf16>(*layer) : run<float>(*layer);
}
