// The gradients of a GRU layer over a whole sequence.
//
// With ds the gradient in a state and dz, dr, dh those before the gates' functions, for t descending:
//   ds = dS[t] + what comes back from step t + 1
//   dh = ds (1 - z)(1 - h^2)     dz = ds (s - h) hard_sigmoid'(z)     where s is the state before the step
//   drs = dh Wh^T                dr = drs s hard_sigmoid'(r)
//   ds z + drs r + [dz, dr] [Wz, Wr]^T goes back to step t - 1
// FLOP: the steps 6 H^2 T B, dX and dU 6 K H T B each, dW 6 H^2 T B. Bytes: G, S, dS read, dG written, once in
// the steps (32 H T B); dG read once for dX, and once for each 96 rows of dU and dW (AMX: 128), from afar where it does
// not fit the third-level cache.
// Scratch, bytes: 4 [3 H T B + 3 H (H + K) + B H + n (2 K + 3 H) + 33024 threads], H padded to a panel; of bfloat16 2 for 4 in dG
// and the weights, and 32768 threads besides. There dG is rounded as soon as it is known, s and X where they multiply; ds, the sums by
// character and what comes of them are float32.
#include "gru.hpp"

namespace rngru {
namespace {

// The gradient behind a hard sigmoid: none where its value is 0 or 1, which alone are their own squares.
RNGRU_INLINE V between(V value, V gradient) { return value > value * value ? gradient : splat(0); }

template <class O>
struct Backward {
    const rngru_layer& l;
    const Sizes d;
    const int64_t KP;       // K up to the next panel
    const int64_t stride;   // from one panel of dG to the next
    O *Wzr, *Wh, *Ut;       // transposed, in panels: (2 HP, H), (HP, H), (3 HP, K); Ut of vectors
    float* Ue;              // U of encoded characters, as Ut
    float* ds;              // (B, HP): the gradient in the state
    O* dG;                  // 3 np panels of T B rows
    float *rows, *drows;    // of the batch's characters: input vectors and their gradients (n, K)
    float* sums;            // dG summed by character: 3 np panels of n rows
    float* packed;          // for each thread, the block of a left operand,
    O* paired;              // and one of a right operand

    template <class Take>
    void lay_out(int threads, Take take) {
        const int64_t n = Characters::most(l);
        take(Wzr, 2 * d.HP * d.HP);
        take(Wh, d.HP * d.HP);
        take(Ut, l.input == RNGRU_VECTORS ? 3 * d.HP * KP : 0);
        take(Ue, l.input == RNGRU_ENCODED ? 3 * d.HP * KP : 0);
        take(ds, d.B * d.HP);
        take(dG, 3 * d.np * stride);
        take(rows, l.input == RNGRU_ENCODED ? n * d.K : 0);
        take(drows, l.input == RNGRU_ENCODED ? n * d.K : 0);
        take(sums, n * 3 * d.HP);
        take(packed, PACKED<float> * threads);
        take(paired, STEP<O> > 1 ? KC * PW * threads : 0);
    }

    explicit Backward(const rngru_layer& l)
        : l(l), d(l), KP(whole_panels(l.K) * PW), stride(spread<O>(l.T * l.B * PW)) {}

    bool reserve(int threads) {
        size_t bytes = Characters::bytes(l);
        lay_out(threads, [&](auto*& p, int64_t n) { bytes += Scratch::bytes<decltype(*p)>(n); });
        if (!scratch.reserve(bytes)) return false;
        lay_out(threads, [&](auto*& p, int64_t n) { scratch.take(p, n); });
        return true;
    }

    void pack_weights(int threads) {
        Timer timer(PACK);
        const int64_t input_panels = l.input == RNGRU_ONEHOT || (l.input == RNGRU_VECTORS && !l.dX) ? 0 : KP / PW;
        Parts parts(d.np + input_panels, 2);
        parallel(threads, [&](int, int n) {
            for (int64_t i, end; parts.take(n, i, end);)
                for (; i < end; ++i)
                    for (int gate = 0; gate < 3; ++gate) {
                        if (i >= d.np) {
                            const int64_t p = i - d.np, at = (3 * p + gate) * d.HP * PW;
                            const float* const U = l.U + gate * d.H;
                            if (l.input == RNGRU_VECTORS) pack_transposed(Ut + at, U, 3 * d.H, d.H, d.HP, d.K, p);
                            else pack_transposed(Ue + at, U, 3 * d.H, d.H, d.HP, d.K, p);
                        } else {
                            O* const panel = gate == 2 ? Wh + i * d.HP * PW : Wzr + (2 * i + gate) * d.HP * PW;
                            pack_transposed(panel, l.W + gate * d.H, 3 * d.H, d.H, d.HP, d.H, i);
                        }
                    }
        });
    }

    const float* state_before(int64_t t) const { return t ? l.S + (t - 1) * d.B * d.H : l.s0; }

    // One step of the sequence: where its values lie.
    struct Step {
        const float *G, *s, *dS;  // gates; the state before; the gradient from above
        O* dG;                    // in the first panel
        const int64_t H, gate, stride;  // gate: from one gate of dG to the next

        // What `split` reads, R rows of a panel: near = 2 into the second-level cache, 3 into the first.
        template <int near>
        RNGRU_INLINE void fetch(int64_t row, int R, int64_t column) const {
            const float* g = G + row * 3 * H + column;
            for (int64_t at = row * H + column; R > 0; --R, g += 3 * H, at += H) {
                fetch_row<near>(g);
                fetch_row<near>(g + H);
                fetch_row<near>(g + 2 * H);
                fetch_row<near>(s + at);
                fetch_row<near>(dS + at);
            }
        }

        // From ds at a place: dz and dh.
        template <bool whole>
        RNGRU_INLINE void split(int64_t row, int64_t column, V ds) const {
            const int64_t left = H - column;
            const float* const g = G + row * 3 * H + column;
            const V z = load<whole>(g, left), h = load<whole>(g + 2 * H, left), s_ = load<whole>(s + row * H + column, left);
            const V dh = ds * (splat(1) - z) * (splat(1) - h * h);
            const V dz = between(z, ds * (s_ - h) * splat(0.2f));
            O* const to = dG + column / PW * stride + row * PW + column % PW;
            store(to, dz);
            store(to + 2 * gate, dh);
        }
    };
    Step step(int64_t t) const {
        return {l.G + t * d.B * 3 * d.H, state_before(t), l.dS + t * d.B * d.H, dG + t * d.B * PW, d.H,
                d.np * stride, stride};
    }

    // All steps of rows [first, last) of the batch, the last step first: no thread waits for another.
    void steps(int64_t first, int64_t last) {
        const int64_t H = d.H, HP = d.HP;
        float* const ds = this->ds;
        for (int64_t row = first; row < last; ++row)
            for (int64_t column = 0; column < HP; column += W) {
                const Step top = step(d.T - 1);
                const V v = load(top.dS + row * H + column, H - column);
                store(ds + row * HP + column, v);
                top.template split<false>(row, column, v);
            }
        for (int64_t t = d.T - 1; t >= 0; --t) {
            const Step here = step(t), below = step(t > 0 ? t - 1 : 0);
            product(
                first, last, HP, panels(here.dG + 2 * here.gate, stride), Wh, one_matrix(H),
                [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                    O* const far = here.dG + here.gate + column / PW * here.stride + row * PW;
                    for (int i = 0; i < R * PW; i += LINE<O>) prefetch_write(far + i);
                    below.template fetch<2>(row, R, column);  // early: the misses of a tile at once would hold up its own loads
                },
                [&](auto inside, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                    constexpr bool whole = decltype(inside)::value;
                    O* to = here.dG + here.gate + column / PW * here.stride + row * PW;
                    for (int i = 0; i < R; ++i, ++row, c += PW, to += PW) {
                        const float* const g = here.G + row * 3 * H + column;
                        const float* const s = here.s + row * H + column;
                        float* const back = ds + row * HP + column;
                        for (int j = 0; j < PW; j += W) {
                            const int64_t left = H - column - j;
                            const V drs = load(c + j), z = load<whole>(g + j, left), r = load<whole>(g + H + j, left);
                            const V dr = between(r, drs * load<whole>(s + j, left) * splat(0.2f));
                            store(to + j, dr);
                            store(back + j, load(back + j) * z + drs * r);
                        }
                    }
                });
            if (t == 0) break;
            product(
                first, last, 2 * HP, panels(here.dG, stride), Wzr, one_matrix(H),
                [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                    below.template fetch<3>(row, R, column);
                    O* const far = below.dG + column / PW * below.stride + row * PW;
                    for (int i = 0; i < R * PW; i += LINE<O>) {
                        prefetch_write(far + i);
                        prefetch_write(far + 2 * below.gate + i);
                    }
                },
                [&](auto inside, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                    constexpr bool whole = decltype(inside)::value;
                    for (int i = 0; i < R; ++i, ++row, c += PW)
                        for (int j = 0; j < PW; j += W) {
                            const int64_t left = H - column - j;
                            float* const back = ds + row * HP + column + j;
                            const V v = load(back) + load(c + j) + load<whole>(below.dS + row * H + column + j, left);
                            store(back, v);
                            below.template split<whole>(row, column + j, v);
                        }
                });
        }
        product(
            first, last, 2 * HP, panels(dG, stride), Wzr, one_matrix(H), [](int64_t, int, int, int64_t) RNGRU_LAMBDA {},
            [&](auto, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                for (int i = 0; i < R; ++i, ++row, c += PW)
                    for (int j = 0; j < PW; j += W) {
                        const int64_t at = column + j;
                        store(l.ds0 + row * H + at, load(ds + row * HP + at) + load(c + j), H - at);
                    }
            });
    }

    // db: adds rows [k, k + n) of a panel.
    template <class A>
    RNGRU_INLINE void add_to_db(const A* panel, int64_t k, int64_t n, int gate, int64_t column) {
        float* const db = l.db + gate * d.H + column;
        const int64_t left = d.H - column;
        for (int j = 0; j < PW; j += W) {
            const V sum = sum_of_rows(panel + j, n);
            store(db + j, k ? load(db + j, left - j) + sum : sum, left - j);
        }
    }
    // The sums by character: adds rows [k, k + n) of a panel.
    RNGRU_INLINE void add_to_sums(const O* panel, int64_t k, int64_t n, int gate, int64_t column, const Characters& of) {
        float* const sum = sums + (gate * d.np + column / PW) * of.n * PW;
        if (k == 0) memset(sum, 0, (size_t)(of.n * PW) * sizeof(float));
        const int32_t* const places = of.places + k;
        for (int64_t i = 0; i < n; ++i) {
            float* const to = sum + places[i] * PW;
            for (int j = 0; j < PW; j += W) store(to + j, load(to + j) + load(panel + i * PW + j));
        }
    }

    // Tiles [first, last) of rows of a (., 3H) weight gradient, the columns of some gates.
    template <class A>
    void weight_rows(float* dW, const Tiles<A>& tiles, int64_t first, int64_t last, const Rows& left, int64_t K, const A* right,
                     int64_t right_stride, int first_gate, int last_gate, int thread, Witness<A> witness = {}) {
        static_assert(PACKED<A> * sizeof(A) <= PACKED<float> * sizeof(float), "the operand's blocks fit");
        A* const block = sizeof(A) == sizeof(O) ? (A*)paired + thread * KC * PW : nullptr;
        transposed_product(tiles, first, last, left, K, right, right_stride, Gates{first_gate, last_gate, d.H}, dW, 3 * d.H, false,
                           (A*)(packed + thread * PACKED<float>), block, witness);
    }

    // out (count, K) = dG (count, 3H) U^T, rows [from, to). Meanwhile the rows `ahead` from there come nearer: a
    // processor foresees long runs of memory by itself, not the short ones in so many panels.
    template <class A>
    void input_rows(int64_t from, int64_t to, int64_t ahead, Left<A> dG, const A* Ut, float* out) {
        const int64_t K = d.K, chunks = 3 * d.np, tiles = ((to - from + ROWS<A> - 1) / ROWS<A>) * (KP / PW);
        const A* const coming = dG.p + (from + ahead) * dG.rows;
        int64_t tile = 0, chunk = ahead ? 0 : chunks;
        product(
            from, to, 3 * d.HP, dG, Ut, one_matrix(K),
            [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                for (int i = 0; i < R; ++i) prefetch_row(out + (row + i) * K + column);
                for (++tile; chunk < chunks && chunk * tiles < tile * chunks; ++chunk)
                    for (int64_t i = 0; i < (to - from) * PW; i += LINE<A>)
                        __builtin_prefetch(coming + chunk * dG.chunks + i, 0, 2);
            },
            [&](auto inside, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                constexpr bool whole = decltype(inside)::value;
                for (int i = 0; i < R; ++i, ++row, c += PW)
                    for (int j = 0; j < PW; j += W)
                        store<whole>(out + row * K + column + j, load(c + j), K - column - j);
            });
    }

    // dX, dU and dW, with no wait between them. What sees all of dG first adds it up: the first tiles of dW.
    void large_products(int threads, const Characters& characters) {
        Timer timer(WEIGHTS);
        const bool vectors = l.input == RNGRU_VECTORS;
        constexpr int64_t R = ROWS<O>, MOST = TILES<O>;
        const int64_t blocks = (d.TB + R - 1) / R;
        const Tiles<O> inputs(d.K), states(d.H);
        Parts dX(vectors && l.dX ? blocks : 0, rows_in_cache<O>(3 * d.HP) / R, 0), dU(vectors ? inputs.count : 0, MOST, 0);
        Parts dWzr(states.count, MOST, 0), dWh(states.count, MOST, TILED<O> ? 1 : 2);
        const Rows before{l.s0, l.S, d.B, d.H}, reset{l.s0, l.S, d.B, d.H, l.G + d.H, 3 * d.H};

        parallel(threads, [&](int thread, int n) {
            int64_t from, to;
            const auto sum = [&](const O* panel, int64_t k, int64_t count, int gate, int64_t column) {
                if (vectors) add_to_db(panel, k, count, gate, column);
                else add_to_sums(panel, k, count, gate, column, characters);
            };
            const auto summed = [&] { return from > 0 ? Witness<O>() : witness<O>(sum); };
            const O* const dG = this->dG;
            while (dX.take(n, from, to))
                input_rows(from * R, to * R < d.TB ? to * R : d.TB, (to - from) * R * n, panels(dG, stride), Ut, l.dX);
            while (dU.take(n, from, to))
                weight_rows(l.dU, inputs, from, to, Rows{nullptr, l.X, 0, d.K}, d.TB, dG, stride, 0, 3, thread);
            while (dWzr.take(n, from, to)) weight_rows(l.dW, states, from, to, before, d.TB, dG, stride, 0, 2, thread, summed());
            while (dWh.take(n, from, to)) weight_rows(l.dW, states, from, to, reset, d.TB, dG, stride, 2, 3, thread, summed());
        });
    }

    // The same for the characters' input vectors: their gradients, and dU.
    void character_products(int threads, const Characters& characters) {
        const Tiles<float> inputs(d.K);
        Parts dX((characters.n + MR - 1) / MR, 4, 0), dU(inputs.count, 8);
        parallel(threads, [&](int thread, int n) {
            int64_t from, to;
            while (dX.take(n, from, to))
                input_rows(from * MR, to * MR < characters.n ? to * MR : characters.n, 0, panels(sums, characters.n * PW),
                           Ue, drows);
            while (dU.take(n, from, to))
                weight_rows(l.dU, inputs, from, to, Rows{nullptr, rows, 0, d.K}, characters.n, sums, characters.n * PW, 0, 3,
                            thread);
        });
    }

    // What comes from the sums by character: db, and dE, da and dU, or the rows of dU; 0 for those that do not occur.
    void character_gradients(int threads, const Characters& characters) {
        Timer timer(TABLE);
        for (int gate = 0; gate < 3; ++gate)
            for (int64_t column = 0; column < d.H; column += PW)
                add_to_db(sums + (gate * d.np + column / PW) * characters.n * PW, 0, characters.n, gate, column);
        if (l.input == RNGRU_ONEHOT) {
            memset(l.dU, 0, (size_t)(d.K * 3 * d.H) * sizeof(float));
            for (int64_t i = 0; i < characters.n; ++i)
                for (int64_t p = 0; p < 3 * d.np; ++p)
                    for (int j = 0; j < PW; j += W) {
                        const int64_t gate = p / d.np, column = (p - gate * d.np) * PW + j;
                        store(l.dU + characters.list[i] * 3 * d.H + gate * d.H + column,
                              load(sums + (p * characters.n + i) * PW + j), d.H - column);
                    }
        } else {
            character_products(threads, characters);
            memset(l.dE, 0, (size_t)(l.N * d.K) * sizeof(float));
            memset(l.da, 0, (size_t)d.K * sizeof(float));
            for (int64_t i = 0; i < characters.n; ++i)
                for (int64_t k = 0; k < d.K; k += W) {
                    const int64_t left = d.K - k;
                    const V e = load(rows + i * d.K + k, left);
                    const V de = load(drows + i * d.K + k, left) * (splat(1) - e * e);
                    store(l.dE + characters.list[i] * d.K + k, de, left);
                    store(l.da + k, load(l.da + k, left) + de, left);
                }
        }
    }
};
template <class O>
int run(const rngru_layer& l) {
    Backward<O> backward(l);
    const Sizes& d = backward.d;
    const int threads = threads_for(18. * (double)d.TB * (double)d.H * (double)d.H);
    if (!backward.reserve(threads)) return 1;
    Characters characters(l);
    if (l.input == RNGRU_ENCODED) encode(l, characters, backward.rows);
    backward.pack_weights(threads);
    {
        Timer timer(BACKWARD);
        parallel(threads < d.B ? threads : (int)d.B,
                 [&](int thread, int n) { backward.steps(d.B * thread / n, d.B * (thread + 1) / n); });
    }
    backward.large_products(threads, characters);
    if (l.input != RNGRU_VECTORS) backward.character_gradients(threads, characters);
    return 0;
}
}  // namespace
}  // namespace rngru

int rngru_gru_backward(const rngru_layer* layer) {
    using namespace rngru;
    Call call;
    return layer->precision == RNGRU_BFLOAT16 ? run<Bf16>(*layer) : run<float>(*layer);
}
