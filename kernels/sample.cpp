// The sampler: characters drawn one after another, of n texts side by side.
//
// Limit of one text: the bytes of weights, all of which each character reads: 4 (6 L H^2 + H V) less 12 H^2 for the first layer,
// whose x U + b is looked up in a table; out of the second-level cache or the third. So the weights lie in the order in which
// they are read, in panels of some vectors of columns, each (k, columns), one stream of addresses. Limit of many: twice as many
// FLOP as weights a character, by register tiles of texts by columns. The sums of a text do not depend on how many there are.
//
// The columns are cut into parts, as many as there are threads: the same columns of every gate, so that a thread waits for the
// others only where a vector is read that all have written: twice a layer and once for the logits. Of one text each thread normalises
// the same states, and draws the same character from the same logits; many texts they share out, and wait once more.
// Where other programs keep the processors busy, waiting for a thread that does not run takes longer than its work: then one
// thread does all parts, as long as it is faster so.
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <initializer_list>

#include "draw.hpp"
#include "layernorm.hpp"
#include "pool.hpp"
#include "rngru.h"
#include "tile.hpp"

namespace rngru {
namespace {

constexpr int PANEL = 8;                   // vectors, of one text: sums, two a cycle, four cycles each
constexpr int64_t UNIT = 16;               // columns: a cache line, which no two threads write to
constexpr int64_t WORTH = 256 * 1024;      // weights that a thread should have to itself: below, it waits longer than it works
constexpr int MOST = 16;                   // parts, and threads
constexpr double LOST = 500e-6;            // seconds behind one thread's pace, at which several give up
constexpr double ROUND = 5e-3;             // seconds, about, that one thread then works before they try again; doubled each time they fail
constexpr int64_t AHEAD = 256;             // floats that a panel is fetched ahead of its use
static_assert(UNIT % W == 0, "a unit is whole vectors");

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

inline int64_t padded(int64_t columns) { return (columns + W - 1) / W * W; }

// A part's columns, of a gate's or of the logits'; whole vectors.
struct Columns {
    int64_t from = 0, to = 0;
    Columns() {}
    Columns(int64_t columns, int part, int parts) {
        const int64_t units = (columns + UNIT - 1) / UNIT, end = padded(columns);
        from = units * part / parts * UNIT;
        to = units * (part + 1) / parts * UNIT;
        from = from < end ? from : end;
        to = to < end ? to : end;
    }
    int64_t vectors(int64_t column, int64_t panel) const {
        const int64_t left = (to - column) / W;
        return left < panel ? left : panel;
    }
};

// out = init + x1 times the panel's first K1 rows + x2 times its next K2; in this order, whatever panel a column is in.
template <int N>
void multiply(const float* p, int64_t K1, const float* x1, int64_t K2, const float* x2, const float* init, float* out) {
    V sum[N];
    for (int i = 0; i < N; ++i) sum[i] = load(init + i * W);
    for (int part = 0; part < 2; ++part, K1 = K2, x1 = x2)
        for (int64_t k = 0; k < K1; ++k, p += N * W) {
            const V x = splat(x1[k]);
            for (int i = 0; i < N; ++i) sum[i] += x * load(p + i * W);
            for (int i = 0; i < N * W; i += 16) __builtin_prefetch(p + AHEAD + i);
        }
    for (int i = 0; i < N; ++i) store(out + i * W, sum[i]);
}
typedef void Multiply(const float*, int64_t, const float*, int64_t, const float*, const float*, float*);
Multiply* const multiply_panel[PANEL + 1] = {nullptr, multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                             multiply<5>, multiply<6>, multiply<7>, multiply<8>};

// The same for a tile of R texts, whose vectors lie `ld` apart, and the results `out_ld`.
template <int R, int N>
void multiply(const float* p, int64_t ld, int64_t K1, const float* x1, int64_t K2, const float* x2, const float* const* init,
              int64_t column, float* out, int64_t out_ld) {
    Tile<R, N> tile;
    tile.each([&](V& sum, int i, int j) RNGRU_LAMBDA { sum = load(init[i] + column + j); });
    for (int part = 0; part < 2; ++part, K1 = K2, x1 = x2)
#pragma GCC unroll 4
        for (int64_t k = 0; k < K1; ++k, p += N * W) tile.step(x1 + k, ld, p);
    tile.put(out, out_ld);
}
typedef void MultiplyTile(const float*, int64_t, int64_t, const float*, int64_t, const float*, const float* const*,
                          int64_t, float*, int64_t);
static_assert(MR == 6, "one case for each number of rows");
template <int N>
MultiplyTile* tile_of(int64_t R) {
    MultiplyTile* const all[MR] = {multiply<1, N>, multiply<2, N>, multiply<3, N>, multiply<4, N>, multiply<5, N>, multiply<6, N>};
    return all[R - 1];
}
MultiplyTile* tile_of(int64_t R, int64_t N) {
    return N == 1 ? tile_of<1>(R) : N == 2 ? tile_of<NV < 2 ? 1 : 2>(R) : N == 3 ? tile_of<NV < 3 ? 1 : 3>(R) : tile_of<NV < 4 ? 1 : 4>(R);
}

// A matrix (K, columns), rows `ld` apart.
struct Matrix {
    const float* p;
    int64_t ld, K, columns;
};

template <bool whole>
bool refresh_rows(float* to, const Matrix& m, int64_t column, int64_t n) {
    const int64_t left = m.columns - column;
    const float* const from = m.p + column;
    I different = {};
    for (int64_t k = 0; k < m.K; ++k)
        for (int64_t i = 0; i < n; ++i)
            different |= (I)load(to + (k * n + i) * W) ^ (I)load<whole>(from + k * m.ld + i * W, left - i * W);
    bool same = true;
    for (int i = 0; i < W; ++i) same = same && different[i] == 0;
    if (same) return false;
    for (int64_t k = 0; k < m.K; ++k)
        for (int64_t i = 0; i < n; ++i)
            store(to + (k * n + i) * W, load<whole>(from + k * m.ld + i * W, left - i * W));
    return true;
}

// Brings a part's panels of `first` above `second` up to date, bit by bit; whether anything had changed. Comparing costs
// half of what writing does, and so no one has to say that he has changed a weight.
bool refresh(const Columns& own, int64_t panel, float*& p, const Matrix& first, const Matrix& second = {nullptr, 0, 0, 0}) {
    bool changed = false;
    for (int64_t j = own.from, n; j < own.to; j += n * W) {
        n = own.vectors(j, panel);
        for (const Matrix* m : {&first, &second}) {
            if (m->K == 0) continue;
            const bool whole = j + n * W <= m->columns;
            changed |= whole ? refresh_rows<true>(p, *m, j, n) : refresh_rows<false>(p, *m, j, n);
            p += m->K * n * W;
        }
    }
    return changed;
}

bool refresh(float* to, const float* from, int64_t n) {
    if (memcmp(to, from, (size_t)n * sizeof(float)) == 0) return false;
    memcpy(to, from, (size_t)n * sizeof(float));
    return true;
}

// Where threads wait for each other: some hundred nanoseconds a time, too short to sleep; with fewer processors
// than threads they give way.
class Barrier {
    alignas(64) int64_t arrived = 0;
public:
    void wait(int threads, int64_t& round) {
        if (threads == 1) return;
        const int64_t all = ++round * threads;
        __atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
        for (int spins = 0; __atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < all; ++spins) {
            if (spins < 2000) pause();
            else sched_yield();
        }
    }
};

struct Sampler {
    const rngru_sampler& m;
    const int64_t L, H, K, N, n, HP, VP;
    const int64_t panel;  // vectors
    const bool encoded;
    // Kept from call to call: how it went, copies of what the table is made of, which rows of it each part has, the table, then
    // all weights in panels.
    struct Course {
        int64_t parts;         // that the rest is cut into
        int64_t texts;         // that the pace is of
        double pace;           // one thread's seconds a step; 0: not known
        int64_t alone, again;  // rounds that one thread does now, and next time
    }* course;
    float *E, *a, *b0;
    uint8_t* known;  // (MOST, N)
    float *table;    // (N, 3, HP): x U + b of the first layer
    float *firsts, *layers, *outputs;
    // Scratch
    float* passed;  // (n, HP), one text's (MOST, HP): with layernorm a layer's states as they are read from above
    float *states, *rs, *z, *h, *bias, *c, *logits, *x, *inputs;
    const float** rows_in;  // (MOST, n): x U + b of each text, the first layer's
    float* shares;          // room for the draws of MOST threads
    int32_t* characters;    // (MOST, n), the last ones: one text's are each thread's own, so that none waits for another's
    Columns columns[MOST], logit_columns[MOST];
    int parts = 1;
    int64_t step = 0, stop = 0;  // the next one; where the round ends
    bool failed = false;

    explicit Sampler(const rngru_sampler& m)
        : m(m), L(m.L), H(m.H), K(m.K), N(m.N), n(m.n), HP(padded(m.H)), VP(padded(m.N)),
          panel(m.n > 1 ? NV : PANEL), encoded(m.input == RNGRU_ENCODED) {}

    int64_t rows() const { return 6 * L * H - 3 * H; }  // of all layers' matrices, the first one's U left out

    template <class Take>
    void lay_out_kept(Take take) {
        take(course, 32);
        if (encoded) {
            take(E, N * K);
            take(a, K);
            take(b0, 3 * H);
            take(known, MOST * N / 4 + 1);
            take(table, N * 3 * HP);
            take(firsts, 3 * K * HP);
        }
        take(layers, rows() * HP);
        take(outputs, H * VP);
    }
    template <class Take>
    void lay_out(Take take) {
        take(states, L * n * HP);
        take(passed, m.layernorm ? (n > 1 ? n : MOST) * HP : 0);
        take(rs, n * HP);
        take(z, n * HP);
        take(h, n * HP);
        take(bias, L * 3 * HP);
        take(c, VP);
        take(logits, n * VP);
        take(x, MOST * (padded(K) + UNIT));
        take(inputs, n * 3 * HP);
        take(rows_in, MOST * 2 * lines(n));
        take(shares, MOST * Draw::floats(N));
        take(characters, MOST * lines(n));
    }

    static int64_t lines(int64_t floats) { return (floats + UNIT - 1) / UNIT * UNIT; }
    int64_t kept_floats() {
        int64_t floats = UNIT + AHEAD;
        lay_out_kept([&](auto*&, int64_t count) { floats += lines(count); });
        return floats;
    }

    bool reserve() {
        float* p = (float*)(((uintptr_t)m.kept + 63) / 64 * 64);
        lay_out_kept([&](auto*& to, int64_t count) {
            point(to, p);
            p += lines(count);
        });
        size_t bytes = 0;
        lay_out([&](auto*&, int64_t count) { bytes += Scratch::bytes(count); });
        if (!scratch.reserve(bytes)) return false;
        lay_out([&](auto*& to, int64_t count) { point(to, scratch.take(count)); });
        return true;
    }
    template <class A>
    static void point(A*& to, void* memory) {
        to = (A*)memory;
    }

    static void pad(float* to, const float* from, int64_t count, int64_t whole) {
        memcpy(to, from, (size_t)count * sizeof(float));
        memset(to + count, 0, (size_t)(whole - count) * sizeof(float));
    }

    void prepare() {
        for (int part = 0; part < parts; ++part) {
            columns[part] = Columns(H, part, parts);
            logit_columns[part] = Columns(N, part, parts);
        }
        for (int64_t i = 0; i < L * n; ++i) pad(states + i * HP, m.states + i * H, H, HP);
        for (int64_t i = 0; i < L * 3; ++i) pad(bias + i * HP, m.b[i / 3] + i % 3 * H, H, HP);
        pad(c, m.c, N, VP);
        const bool cut = course->parts != parts;
        course->parts = parts;
        if (course->texts != n) course->texts = n, course->pace = 0;
        if (encoded && (refresh(E, m.E, N * K) | refresh(a, m.a, K) | refresh(b0, m.b[0], 3 * H) | cut))
            memset(known, 0, (size_t)(MOST * N));
    }

    Matrix gate(const float* p, int64_t rows, int which) const { return {p + which * H, 3 * H, rows, H}; }

    void refresh_weights(int part) {
        const Columns& own = columns[part];
        if (encoded) {
            float* p = firsts + own.from * 3 * K;
            bool changed = false;
            for (int g = 0; g < 3; ++g) changed |= refresh(own, panel, p, gate(m.U[0], K, g));
            if (changed) memset(known + part * N, 0, (size_t)N);
        }
        float* p = layers + own.from * rows();
        for (int64_t l = 0; l < L; ++l) {
            for (int g = 0; g < 2; ++g)
                if (l) refresh(own, panel, p, gate(m.U[l], H, g), gate(m.W[l], H, g));
                else refresh(own, panel, p, gate(m.W[l], H, g));
            if (l) refresh(own, panel, p, gate(m.U[l], H, 2));
            refresh(own, panel, p, gate(m.W[l], H, 2));
        }
        p = outputs + logit_columns[part].from * H;
        refresh(logit_columns[part], panel, p, {m.Wv, N, H, N});
    }

    // x U + b of the first layer for a character, (3, HP), a part's columns of it.
    const float* first_input(int part, int64_t stream, int64_t character) {
        const Columns& own = columns[part];
        if (!encoded) {
            float* const to = inputs + stream * 3 * HP;
            for (int64_t g = 0; g < 3; ++g)
                for (int64_t j = own.from; j < own.to; j += W)
                    store(to + g * HP + j, load(m.U[0] + character * 3 * H + g * H + j, H - j) + load(bias + g * HP + j));
            return to;
        }
        float* const to = table + character * 3 * HP;
        if (!known[part * N + character]) {
            float* const x = this->x + part * (padded(K) + UNIT);
            for (int64_t k = 0; k < K; k += W)
                store(x + k, tanh(load(m.E + character * K + k, K - k) + load(m.a + k, K - k)), K - k);
            const float* p = firsts + own.from * 3 * K;
            for (int g = 0; g < 3; ++g) {
                const float* const in = bias + g * HP;
                p = multiply_all(own, p, 1, K, x, 0, x, &in, 0, to + g * HP, HP);
            }
            known[part * N + character] = 1;
        }
        return to;
    }

    // A part's panels of layer l, from row `row` of the layer on: [Uz Wz], [Ur Wr], Uh, Wh, above the first layer.
    const float* panels(const Columns& own, int64_t l, int64_t row) const {
        return layers + own.from * rows() + (own.to - own.from) * ((l ? 6 * l - 3 : 0) * H + row);
    }

    // For each of `rows` texts, HP floats apart (the results `ld`), out = in[text] + offset + x1 times the panels' first K1 rows + x2
    // times their next K2, for all of a part's columns; returns where its panels end. The panel in the outer loop: it is read from afar
    // once and then from the cache.
    const float* multiply_all(const Columns& own, const float* p, int64_t rows, int64_t K1, const float* x1, int64_t K2, const float* x2,
                              const float* const* in, int64_t offset, float* out, int64_t ld) const {
        const int64_t blocks = (rows + MR - 1) / MR, least = rows / blocks, more = rows % blocks;
        for (int64_t j = own.from, N; j < own.to; j += N * W, p += (K1 + K2) * N * W) {
            N = own.vectors(j, panel);
            if (n == 1) {
                multiply_panel[N](p, K1, x1, K2, x2, *in + offset + j, out + j);
                continue;
            }
            for (int64_t i = 0, block = 0; block < blocks; ++block) {
                const int64_t R = least + (block < more);
                tile_of(R, N)(p, HP, K1, x1 + i * HP, K2, x2 + i * HP, in + i, offset + j, out + i * ld + j, ld);
                i += R;
            }
        }
        return p;
    }

    // z, r * s and what of h's sum does not depend on them. below: what the layer below passes up.
    void gates(int part, int64_t l, const int32_t* characters, const float* below) {
        const Columns& own = columns[part];
        const float* const s = states + l * n * HP;
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = l ? bias + l * 3 * HP : first_input(part, i, characters[i]);
        const float* p = multiply_all(own, panels(own, l, 0), n, l ? H : 0, below, H, s, in, 0, z, HP);
        p = multiply_all(own, p, n, l ? H : 0, below, H, s, in, HP, rs, HP);
        multiply_all(own, p, n, l ? H : 0, below, 0, s, in, 2 * HP, h, HP);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i * HP + own.from; j < i * HP + own.to; j += W) {
                store(z + j, hard_sigmoid(load(z + j)));
                store(rs + j, hard_sigmoid(load(rs + j)) * load(s + j));
            }
    }

    // h and the next state.
    void next_state(int part, int64_t l) {
        const Columns& own = columns[part];
        float* const s = states + l * n * HP;
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = h + i * HP;
        multiply_all(own, panels(own, l, l ? 5 * H : 2 * H), n, H, rs, 0, rs, in, 0, h, HP);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i * HP + own.from; j < i * HP + own.to; j += W) {
                const V candidate = tanh(load(h + j));
                store(s + j, candidate + load(z + j) * (load(s + j) - candidate));
            }
    }

    void output(int part, const float* top) {
        const Columns& own = logit_columns[part];
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = c;
        multiply_all(own, outputs + own.from * H, n, H, top, 0, top, in, 0, logits, VP);
    }

    // A thread's part of the steps from `step` to `stop`; the first thread may set `stop` lower on the way.
    void steps(int thread, int threads, Barrier& barrier) {
        const int first = parts * thread / threads, last = parts * (thread + 1) / threads;
        const int64_t from = n > 1 ? n * thread / threads : 0, to = n > 1 ? n * (thread + 1) / threads : n;
        int32_t* const read = characters + (n > 1 ? 0 : thread * lines(n));
        float* const normal = passed + (n > 1 ? 0 : thread) * HP;
        Draw draw(m, shares + thread * Draw::floats(N));
        double before = threads > 1 && thread == 0 ? now() : 0, behind = 0;
        int64_t round = 0, t = step;
        memcpy(read + from, m.chars + from, (size_t)(to - from) * sizeof(int32_t));
        if (n > 1) barrier.wait(threads, round);
        for (bool more = t < stop; more; ++t) {
            const float* below = states;
            for (int64_t l = 0; l < L; ++l) {
                for (int part = first; part < last; ++part) gates(part, l, read, below);
                barrier.wait(threads, round);
                for (int part = first; part < last; ++part) next_state(part, l);
                barrier.wait(threads, round);
                below = states + l * n * HP;
                if (!m.layernorm) continue;
                for (int64_t i = from; i < to; ++i) normalise(below + i * HP, H, normal + i * HP);
                if (n > 1) barrier.wait(threads, round);
                below = normal;
            }
            for (int part = first; part < last; ++part) output(part, below);
            if (threads > 1 && thread == 0) {
                const double time = now();
                behind += time - before - course->pace;
                behind = behind > 0 ? behind : 0;
                before = time;
                if (behind > LOST && t + 1 < stop) __atomic_store_n(&stop, t + 1, __ATOMIC_RELAXED);
            }
            barrier.wait(threads, round);
            more = t + 1 < __atomic_load_n(&stop, __ATOMIC_RELAXED);
            for (int64_t i = from; i < to; ++i) {
                const int64_t drawn = draw(logits + i * VP, m.uniforms[i * m.steps + t]);
                if (drawn < 0) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
                read[i] = drawn < 0 ? 0 : (int32_t)drawn;
                if (n > 1 || thread == 0) m.out[i * m.steps + t] = read[i];
            }
            if (n > 1) barrier.wait(threads, round);
            if (__atomic_load_n(&failed, __ATOMIC_RELAXED)) return;
        }
    }

    // Steps up to `end` by so many threads; seconds.
    double round(int threads, int64_t end) {
        Barrier barrier;
        const double start = now();
        stop = end;
        parallel(threads, [&](int thread, int n) { steps(thread, n, barrier); });
        step = stop;
        memcpy(m.chars, characters, (size_t)n * sizeof(int32_t));
        return now() - start;
    }

    int run(int wanted) {
        const int64_t worth = (rows() * HP + H * VP) * n / WORTH, units = (H + UNIT - 1) / UNIT;
        int64_t most = wanted < MOST ? wanted : MOST;
        most = most < worth ? most : worth;
        most = most < units ? most : units;
        parts = most > 1 ? (int)most : 1;
        prepare();
        Parts each(parts, 1, 0);
        parallel(course->alone > 0 ? 1 : parts, [&](int, int threads) {
            for (int64_t part, end; each.take(threads, part, end);) refresh_weights((int)part);
        });
        for (step = 0; step < m.steps && !failed;) {
            const int64_t left = m.steps - step;
            if (parts > 1 && step > 0 && course->alone == 0) {
                const int64_t before = step;
                const double seconds = round(parts, m.steps), paced = (double)(step - before) * course->pace;
                if (paced > ROUND) course->again = 1;
                if (seconds > paced + LOST || step < m.steps) {
                    course->alone = course->again;
                    course->again = course->again < 64 ? 2 * course->again : 64;
                }
                continue;
            }
            int64_t count = course->alone > 0 && course->pace > 0 ? (int64_t)(ROUND / course->pace) + 1 : 2;
            count = parts == 1 || count > left ? left : count;
            const double pace = round(1, step + count) / (double)count, known = course->pace * 1.02;
            course->pace = course->pace > 0 && known < pace ? known : pace;
            if (course->alone > 0) --course->alone;
            if (course->again < 1) course->again = 1;
        }
        if (failed) return 2;
        for (int64_t i = 0; i < L * n; ++i) memcpy(m.states + i * H, states + i * HP, (size_t)H * sizeof(float));
        return 0;
    }
};
}  // namespace
}  // namespace rngru

int64_t rngru_sample_kept(const rngru_sampler* sampler) {
    return rngru::Sampler(*sampler).kept_floats();
}

int rngru_sample(const rngru_sampler* sampler) {
    using namespace rngru;
    Call call;
    Sampler s(*sampler);
    if (!s.reserve()) return 1;
    return s.run(threads_for(1e9));
}
