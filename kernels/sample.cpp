// The sampler: characters drawn one after another, of n texts side by side, or read from texts that are given.
//
// Limit of one text: the bytes of weights, all of which each character reads: 4 (6 L H^2 + H V) less 12 H^2 for the first layer,
// whose x U + b is looked up in a table, half of it in bfloat16, a quarter in int8; out of the second-level cache or the third. So the
// weights lie in the order in which they are read, in panels of some vectors of columns, each (k, columns), one stream of addresses.
// Limit of many: twice as many FLOP as weights a character, by register tiles of texts by columns. The sums of a text do not depend
// on how many there are.
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

#include <type_traits>

#include "draw.hpp"
#include "layernorm.hpp"
#include "panels.hpp"
#include "pool.hpp"
#include "rngru.h"

namespace rngru {
namespace {

constexpr int64_t WORTH = 384 * 1024;       // bytes of weights that a thread should have to itself: below, it waits longer than it works
constexpr int MOST = 16;                   // parts, and threads
constexpr double LOST = 500e-6;            // seconds behind one thread's pace, at which several give up
constexpr double ROUND = 5e-3;             // seconds, about, that one thread then works before they try again; doubled each time they fail

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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

template <class P>
struct Sampler {
    typedef typename P::X X;
    static constexpr bool converts = !std::is_same<P, Float32>::value;  // weights into something else
    const rngru_sampler& m;
    const int64_t L, H, K, N, n, HP, VP;
    const int64_t panel;  // vectors
    const bool encoded;
    // Kept from call to call: how it went, copies of what the table is made of, which rows of it each part has, the table, then
    // all weights in panels, and copies of those that were converted.
    struct Course {
        int64_t parts;         // that the rest is cut into
        int64_t texts;         // that the pace is of
        double pace;           // one thread's seconds a step; 0: not known
        int64_t alone, again;  // rounds that one thread does now, and next time
        int64_t layout;        // how the panels are cut that `originals` were converted into
    }* course;
    float *E, *a, *b0;
    uint8_t* known;  // (MOST, N)
    float* table;    // (N, 3, HP): x U + b of the first layer
    char *firsts, *layers, *outputs;  // the first in float32
    float* originals;                 // (2 L, H, 3H), U and W of each layer, but of the first one's U nothing; (H, N): Wv
    // Scratch
    float *states, *r, *z, *h, *bias, *c, *logits, *x, *inputs;
    X *s_x, *rs_x;          // (L, n, HP), (n, HP): the states and r * s, as they are multiplied; in float32 `states` and `r` are
    X* passed;  // (n, HP), one text's (MOST, HP): with layernorm a layer's states as they are read from above, and multiplied
    float* normal;  // the same in float32
    float *unit, *perunit;  // (n): what an X of 1 stands for, and its inverse
    float* passed_unit;     // of each row of `passed`, the first of these
    const float** rows_in;  // (MOST, n): x U + b of each text, the first layer's
    float* shares;          // room for the draws of MOST threads
    int32_t* characters;    // (MOST, n), the last ones: one text's are each thread's own, so that none waits for another's
    Columns columns[MOST], logit_columns[MOST];
    int parts = 1;
    int64_t step = 0, stop = 0;  // the next one; where the round ends
    bool failed = false, nans[MOST] = {};  // by part: an X was made of a NaN

    explicit Sampler(const rngru_sampler& m)
        : m(m), L(m.L), H(m.H), K(m.K), N(m.N), n(m.n), HP(padded(m.H)), VP(padded(m.N)),
          panel(vectors_of(m.n == 1)), encoded(m.input == RNGRU_ENCODED) {}

    int64_t bytes() const { return (6 * L - 3) * P::bytes(H); }  // of a column of all layers' matrices, the first one's U left out

    template <class Take>
    void lay_out_kept(Take take) {
        take(course, 32);
        if (encoded) {
            take(E, N * K);
            take(a, K);
            take(b0, 3 * H);
            take(known, MOST * N / 4 + 1);
            take(table, N * 3 * HP);
            take(firsts, 3 * Float32::bytes(K) / 4 * HP);
        }
        take(layers, bytes() * HP / 4);
        take(outputs, P::bytes(H) * VP / 4);
        take(originals, converts ? 6 * L * H * H + H * N : 0);
    }
    template <class Take>
    void lay_out(Take take) {
        take(states, L * n * HP);
        take(r, n * HP);
        take(normal, passed_floats());
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
        take(unit, n);
        take(perunit, n);
        take(passed_unit, passed_floats() / HP);
        if (P::COPIES) {
            take(passed, passed_floats());
            take(s_x, L * n * HP);
            take(rs_x, n * HP);
        }
    }

    int64_t passed_floats() const { return m.layernorm ? (n > 1 ? n : MOST) * HP : 0; }
    static int64_t lines(int64_t floats) { return (floats + UNIT - 1) / UNIT * UNIT; }
    int64_t kept_floats() {
        int64_t floats = UNIT + AHEAD / 4;
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
        if constexpr (!P::COPIES) s_x = states, rs_x = r, passed = normal;
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

    // States are at most 1, or what they are at the beginning: then so is all that follows.
    void measure(int64_t text) {
        float most = 1;
        for (int64_t l = 0; l < L; ++l)
            for (int64_t j = 0; j < H; ++j) {
                const float s = fabsf(states[(l * n + text) * HP + j]);
                if (!(s <= most) && most == most) most = s;  // NaN stays
            }
        unit[text] = most / Int8::POINTS;
        perunit[text] = Int8::POINTS / most;
        for (int64_t l = 0; l < L; ++l)
            for (int64_t j = (l * n + text) * HP, end = j + HP; j < end; j += W) P::put(s_x + j, load(states + j), splat(perunit[text]));
    }

    void prepare() {
        for (int part = 0; part < parts; ++part) {
            columns[part] = Columns(H, part, parts);
            logit_columns[part] = Columns(N, part, parts);
        }
        for (int64_t i = 0; i < L * n; ++i) pad(states + i * HP, m.states + i * H, H, HP);
        for (int64_t i = 0; i < n; ++i) measure(i);
        for (int64_t i = 0; i < L * 3; ++i) pad(bias + i * HP, m.b[i / 3] + i % 3 * H, H, HP);
        pad(c, m.c, N, VP);
        const bool cut = course->parts != parts;
        course->parts = parts;
        if (course->texts != n) course->texts = n, course->pace = 0;
        if (!encoded) return;
        bool changed = refresh(E, m.E, N * K);
        changed |= refresh(a, m.a, K);
        changed |= refresh(b0, m.b[0], 3 * H);
        if (changed || cut) memset(known, 0, (size_t)(MOST * N));
    }

    // Whether the panels are those of these weights, which what they were made from tells: comparing takes a tenth of converting.
    bool unchanged(int threads) {
        const int64_t layout = parts * 2 * PANEL + panel, each = 3 * H * H;
        bool same = course->layout == layout;
        course->layout = 0;  // until all is done
        Parts matrices(2 * L + 1, 1, 0);
        parallel(threads, [&](int, int n) {
            for (int64_t i, end; matrices.take(n, i, end);)
                for (; i < end; ++i) {
                    const float* const from = i == 2 * L ? m.Wv : i % 2 ? m.W[i / 2] : m.U[i / 2];
                    if (i == 0 || !refresh(originals + i * each, from, i == 2 * L ? H * N : each)) continue;
                    __atomic_store_n(&same, false, __ATOMIC_RELAXED);
                }
        });
        return same;
    }

    Matrix gate(const float* p, int64_t rows, int which) const { return {p + which * H, 3 * H, rows, H}; }

    void refresh_weights(int part, bool same) {
        const Columns& own = columns[part];
        if (encoded) {
            char* p = firsts + own.from * 3 * Float32::bytes(K);
            bool changed = false;
            for (int g = 0; g < 3; ++g) changed |= refresh<Float32>(own, panel, p, gate(m.U[0], K, g));
            if (changed) memset(known + part * N, 0, (size_t)N);
        }
        if (same) return;
        char* p = layers + own.from * bytes();
        for (int64_t l = 0; l < L; ++l) {
            for (int g = 0; g < 2; ++g)
                if (l) refresh<P>(own, panel, p, gate(m.U[l], H, g), gate(m.W[l], H, g));
                else refresh<P>(own, panel, p, gate(m.W[l], H, g));
            if (l) refresh<P>(own, panel, p, gate(m.U[l], H, 2));
            refresh<P>(own, panel, p, gate(m.W[l], H, 2));
        }
        p = outputs + logit_columns[part].from * P::bytes(H);
        refresh<P>(logit_columns[part], panel, p, {m.Wv, N, H, N});
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
            const char* p = firsts + own.from * 3 * Float32::bytes(K);
            for (int g = 0; g < 3; ++g) {
                const float* const in = bias + g * HP;
                p = multiply_all<Float32>(own, p, 1, K, x, unit, 0, x, &in, 0, to + g * HP, HP);
            }
            known[part * N + character] = 1;
        }
        return to;
    }

    // A part's panels of layer l, from its matrix `matrix` on: [Uz Wz], [Ur Wr], Uh, Wh, above the first layer.
    const char* panels(const Columns& own, int64_t l, int64_t matrix) const {
        return layers + own.from * bytes() + (own.to - own.from) * ((l ? 6 * l - 3 : 0) + matrix) * P::bytes(H);
    }

    // For each of `rows` texts, HP apart (the results `ld`), out = in[text] + offset + x1 times the panels' first K1 rows + x2
    // times their next K2, for all of a part's columns; returns where its panels end. The panel in the outer loop: it is read from afar
    // once and then from the cache.
    template <class Q>
    const char* multiply_all(const Columns& own, const char* p, int64_t rows, int64_t K1, const typename Q::X* x1, const float* unit1,
                             int64_t K2, const typename Q::X* x2, const float* const* in, int64_t offset, float* out,
                             int64_t ld) const {
        const int64_t blocks = (rows + MR - 1) / MR, least = rows / blocks, more = rows % blocks;
        for (int64_t j = own.from, N; j < own.to; j += N * W, p += (Q::bytes(K1) * (K1 > 0) + Q::bytes(K2) * (K2 > 0)) * N * W) {
            N = own.vectors(j, panel);
            for (int64_t i = 0, block = 0; block < blocks; ++block) {
                const int64_t R = least + (block < more);
                product_of<Q>(R, N)(p, HP, K1, x1 + i * HP, K2, x2 + i * HP, unit1 + i, unit + i, in + i, offset + j, out + i * ld + j, ld);
                i += R;
            }
        }
        return p;
    }

    // z, r * s and what of h's sum does not depend on them. below: what the layer below passes up.
    void gates(int part, int64_t l, const int32_t* characters, const X* below, const float* below_unit) {
        const Columns& own = columns[part];
        const float* const s = states + l * n * HP;
        const X* const x = s_x + l * n * HP;
        const int64_t K = l ? H : 0;
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = l ? bias + l * 3 * HP : first_input(part, i, characters[i]);
        const char* p = multiply_all<P>(own, panels(own, l, 0), n, K, below, below_unit, H, x, in, 0, z, HP);
        p = multiply_all<P>(own, p, n, K, below, below_unit, H, x, in, HP, r, HP);
        multiply_all<P>(own, p, n, K, below, below_unit, 0, x, in, 2 * HP, h, HP);
        I lost = {};
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i * HP + own.from; j < i * HP + own.to; j += W) {
                store(z + j, hard_sigmoid(load(z + j)));
                const V rs = hard_sigmoid(load(r + j)) * load(s + j);
                if (!P::COPIES) store(r + j, rs);
                lost |= P::put(rs_x + j, rs, splat(perunit[i]));
            }
        note(part, lost);
    }

    // h and the state after step t.
    void next_state(int part, int64_t l, int64_t t) {
        const Columns& own = columns[part];
        float* const s = states + l * n * HP;
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = h + i * HP;
        multiply_all<P>(own, panels(own, l, l ? 5 : 2), n, H, rs_x, unit, 0, rs_x, in, 0, h, HP);
        I lost = {};
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i * HP + own.from; j < i * HP + own.to; j += W) {
                const V candidate = tanh(load(h + j)), next = candidate + load(z + j) * (load(s + j) - candidate);
                store(s + j, next);
                if (m.S) store(m.S + ((l * m.steps + t) * n + i) * H + j - i * HP, next, H + i * HP - j);
                lost |= P::put(s_x + l * n * HP + j, next, splat(perunit[i]));
            }
        note(part, lost);
    }

    // What layer l passes up of texts [from, to), with layernorm, into rows `at` and further of `passed`; noted as a part's.
    void pass_up(int part, int64_t l, int64_t from, int64_t to, int64_t at) {
        I lost = {};
        for (int64_t i = from; i < to; ++i) {
            float* const p = normal + (at + i) * HP;
            normalise(states + (l * n + i) * HP, H, p);
            memset(p + H, 0, (size_t)(HP - H) * sizeof(float));
            V most = splat(Int8::LEAST);
            for (int64_t j = 0; j < HP; j += W) most = at_least((V)((I)load(p + j) & 0x7fffffff), most);
            float greatest = most[0];
            for (int j = 1; j < W; ++j) greatest = most[j] > greatest ? most[j] : greatest;
            passed_unit[at + i] = greatest / Int8::POINTS;
            const V perunit = splat(Int8::POINTS / greatest);
            for (int64_t j = 0; j < HP; j += W) lost |= P::put(passed + (at + i) * HP + j, load(p + j), perunit);
        }
        note(part, lost);
    }

    void output(int part, const X* top, const float* top_unit) {
        const Columns& own = logit_columns[part];
        const float** const in = rows_in + part * lines(n);
        for (int64_t i = 0; i < n; ++i) in[i] = c;
        multiply_all<P>(own, outputs + own.from * P::bytes(H), n, H, top, top_unit, 0, top, in, 0, logits, VP);
        for (int i = 0; i < parts; ++i)
            for (int64_t text = 0; __atomic_load_n(&nans[i], __ATOMIC_RELAXED) && text < n; ++text)
                for (int64_t j = own.from; j < own.to; ++j) logits[text * VP + j] = NAN;
    }

    // X may be no NaN, and logits made of them are then given as NaN. What one text's layers pass up each thread notes as its own, and
    // waits for no other before it looks.
    void note(int part, I lost) {
        for (int i = 0; i < W; ++i)
            if (lost[i] != 0) __atomic_store_n(&nans[part], true, __ATOMIC_RELAXED);
    }

    // A thread's part of the steps from `step` to `stop`; the first thread may set `stop` lower on the way.
    void steps(int thread, int threads, Barrier& barrier) {
        const int first = parts * thread / threads, last = parts * (thread + 1) / threads;
        const int64_t from = n > 1 ? n * thread / threads : 0, to = n > 1 ? n * (thread + 1) / threads : n;
        int32_t* const read = characters + (n > 1 ? 0 : thread * lines(n));
        const int64_t at = n > 1 ? 0 : thread;
        Draw draw(m, shares + thread * Draw::floats(N));
        double before = threads > 1 && thread == 0 ? now() : 0, behind = 0;
        int64_t round = 0, t = step;
        memcpy(read + from, m.chars + from, (size_t)(to - from) * sizeof(int32_t));
        if (n > 1) barrier.wait(threads, round);
        for (bool more = t < stop; more; ++t) {
            const X* below = s_x;
            const float* const below_unit = m.layernorm ? passed_unit + at : unit;
            for (int64_t l = 0; l < L; ++l) {
                for (int part = first; part < last; ++part) gates(part, l, read, below, below_unit);
                barrier.wait(threads, round);
                for (int part = first; part < last; ++part) next_state(part, l, t);
                barrier.wait(threads, round);
                below = s_x + l * n * HP;
                if (!m.layernorm) continue;
                pass_up(first, l, from, to, at);
                if (n > 1) barrier.wait(threads, round);
                below = passed + at * HP;
            }
            for (int part = first; part < last && !m.S; ++part) output(part, below, below_unit);
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
                const int64_t drawn = m.S ? m.out[i * m.steps + t] : draw(logits + i * VP, m.uniforms[i * m.steps + t]);
                if (drawn < 0) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
                read[i] = drawn < 0 ? 0 : (int32_t)drawn;
                if (!m.S && (n > 1 || thread == 0)) m.out[i * m.steps + t] = read[i];
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
        const int64_t worth = (bytes() * HP + P::bytes(H) * VP) * n / WORTH, units = (H + UNIT - 1) / UNIT;
        int64_t most = wanted < MOST ? wanted : MOST;
        most = most < worth ? most : worth;
        most = most < units ? most : units;
        parts = most > 1 ? (int)most : 1;
        prepare();
        Parts each(parts, 1, 0);
        const int threads = course->alone > 0 ? 1 : parts;
        const bool same = converts && unchanged(threads);
        parallel(threads, [&](int, int threads) {
            for (int64_t part, end; each.take(threads, part, end);) refresh_weights((int)part, same);
        });
        course->layout = parts * 2 * PANEL + panel;
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
        for (int part = 0; part < parts; ++part) failed |= nans[part];
        if (failed) return 2;
        for (int64_t i = 0; i < L * n; ++i) memcpy(m.states + i * H, states + i * HP, (size_t)H * sizeof(float));
        return 0;
    }
};
}  // namespace
}  // namespace rngru

// f(Sampler<P>) for the sampler's precision.
template <class F>
static auto of_precision(const rngru_sampler& sampler, F f) {
    using namespace rngru;
    switch (sampler.precision) {
        case RNGRU_BFLOAT16: return f(Sampler<Bfloat16>(sampler));
        case RNGRU_INT8: return f(Sampler<Int8>(sampler));
        default: return f(Sampler<Float32>(sampler));
    }
}

int64_t rngru_sample_kept(const rngru_sampler* sampler) {
    return of_precision(*sampler, [](auto s) { return s.kept_floats(); });
}

int rngru_sample(const rngru_sampler* sampler) {
    rngru::Call call;
    return of_precision(*sampler, [](auto s) { return s.reserve() ? s.run(rngru::threads_for(1e9)) : 1; });
}
