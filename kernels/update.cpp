// The update: clipping, an optimizer's rule and the running mean of the parameters, one pass over memory, which is the
// limit where they do not fit the caches: 12 bytes read and 8 written an element by RMSProp and SGD, 16 and 12 by Adam,
// 4 and 4 more for the mean. Clipping by the norm takes a pass over gradients and parameters before, 8 bytes.
// Squares are summed in double by chunks, and the chunks' sums in their order, whichever thread computes which.
#include <math.h>

#include "pool.hpp"
#include "rngru.h"

namespace rngru {
namespace {

constexpr int64_t CHUNK = 4096;  // elements; a part is a number of whole chunks of one parameter or more

// Sums of squares in double, two vectors of half as many: g++ makes single numbers of wider ones.
typedef float Half __attribute__((vector_size(W * 2)));
typedef double Doubles __attribute__((vector_size(W * 4)));
struct Squares {
    Doubles low = {}, high = {};

    RNGRU_INLINE void add(V v) {
        Half halves[2];
        memcpy(halves, &v, sizeof v);
        const Doubles a = __builtin_convertvector(halves[0], Doubles), b = __builtin_convertvector(halves[1], Doubles);
        low += a * a;
        high += b * b;
    }
    double total() const {
        const Doubles sums = low + high;
        double sum = 0;
        for (int j = 0; j < W / 2; ++j) sum += sums[j];
        return sum;
    }
};

struct Update {
    const rngru_optimizer& u;
    int64_t chunks = 0, elements = 0;
    double* squares = nullptr;  // of each chunk
    int64_t* changed = nullptr;

    explicit Update(const rngru_optimizer& u) : u(u) {
        for (int64_t i = 0; i < u.count; ++i) {
            chunks += (u.n[i] + CHUNK - 1) / CHUNK;
            elements += u.n[i];
        }
    }

    bool reserve() {
        if (!scratch.reserve(2 * Scratch::bytes<double>(chunks))) return false;
        squares = scratch.take<double>(chunks);
        changed = scratch.take<int64_t>(chunks);
        return true;
    }

    // f(chunk, parameter, first element, behind the last one) for every chunk.
    template <class F>
    void each_chunk(F&& f) const {
        Parts parts(chunks, 16);
        parallel(threads_for(20. * CHUNK * (double)chunks), [&](int, int threads) {
            for (int64_t chunk, end; parts.take(threads, chunk, end);)
                for (; chunk < end; ++chunk) {
                    int64_t i = 0, c = chunk;
                    for (; c >= (u.n[i] + CHUNK - 1) / CHUNK; ++i) c -= (u.n[i] + CHUNK - 1) / CHUNK;
                    f(chunk, i, c * CHUNK, (c + 1) * CHUNK < u.n[i] ? (c + 1) * CHUNK : u.n[i]);
                }
        });
    }

    double norm() const {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += squares[chunk];
        return ::sqrt(sum);
    }

    double share() const {
        int64_t sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += changed[chunk];
        return (double)sum / (double)elements;
    }

    V cost(int64_t i) const { return splat((float)(u.regcost * (double)u.w[i])); }

    void sum_squares() const {
        each_chunk([this](int64_t chunk, int64_t i, int64_t from, int64_t to) {
            const V cost = this->cost(i);
            Squares sums;
            for (int64_t k = from; k < to; k += W) sums.add(load(u.d[i] + k, to - k) + cost * load(u.p[i] + k, to - k));
            squares[chunk] = sums.total();
        });
    }

    // Every element: the slope times `scale`, clipped to +-`most`, into the optimizer's rule.
    template <int optimizer, bool averaged>
    void run(float scale, float most) const {
        const double t = u.cacheupdates + 1, kept = (1 + u.updates) / (10 + u.updates);
        const V factor = splat(scale), bound = splat(most);
        const V decay = splat((float)u.decay), add = splat(1 - (float)u.decay), momentum = splat((float)u.momentum);
        const V beta1 = splat((float)u.beta1), add1 = splat((float)(1 - u.beta1));
        const V beta2 = splat((float)u.beta2), add2 = splat((float)(1 - u.beta2));
        const V second = splat((float)(1 / ::sqrt(1 - pow(u.beta2, t))));
        const V rate = splat((float)(optimizer == RNGRU_ADAM ? u.learnrate / (1 - pow(u.beta1, t)) : u.learnrate));
        const V follow = splat((float)(1 - (u.ema < kept ? u.ema : kept)));
        each_chunk([=](int64_t chunk, int64_t i, int64_t from, int64_t to) {
            const V cost = this->cost(i);
            const V shrink = splat((float)(u.optimizer == RNGRU_ADAMW ? 1 - u.learnrate * u.weight_decay * (double)u.w[i] : 1));
            Squares sums;
            I outside = {};
            for (int64_t k = from; k < to; k += W) {
                const int64_t left = to - k;
                V p = load(u.p[i] + k, left);
                const V slope = load(u.d[i] + k, left) + cost * p;
                sums.add(slope);
                outside -= (I)(slope > bound) + (I)(slope < -bound);
                const V d = clip(slope * factor, -bound, bound);
                if (optimizer == RNGRU_RMSPROP) {
                    const V m = decay * load(u.m[i] + k, left) + add * d * d;
                    store(u.m[i] + k, m, left);
                    p = p - rate * d / sqrt(m + splat(1e-6f));
                } else if (optimizer == RNGRU_ADAM) {
                    const V g = beta1 * load(u.g[i] + k, left) + add1 * d;
                    const V m = beta2 * load(u.m[i] + k, left) + add2 * d * d;
                    store(u.g[i] + k, g, left);
                    store(u.m[i] + k, m, left);
                    p = p * shrink - rate * g / (sqrt(m) * second + splat(1e-8f));
                } else {
                    const V g = momentum * load(u.g[i] + k, left) + d;
                    store(u.g[i] + k, g, left);
                    p = p - rate * g;
                }
                store(u.p[i] + k, p, left);
                if (averaged) {
                    const V e = load(u.e[i] + k, left);
                    store(u.e[i] + k, e + follow * (p - e), left);
                }
            }
            squares[chunk] = sums.total();
            changed[chunk] = 0;
            for (int j = 0; j < W; ++j) changed[chunk] += outside[j];
        });
    }

    void run(float scale, float most) const {
        constexpr int R = RNGRU_RMSPROP, A = RNGRU_ADAM, S = RNGRU_SGD;
        if (u.optimizer == R) u.e ? run<R, true>(scale, most) : run<R, false>(scale, most);
        else if (u.optimizer == S) u.e ? run<S, true>(scale, most) : run<S, false>(scale, most);
        else u.e ? run<A, true>(scale, most) : run<A, false>(scale, most);  // AdamW is Adam that shrinks
    }
};
}  // namespace
}  // namespace rngru

int rngru_update(rngru_optimizer* u) {
    using namespace rngru;
    Call call;
    Timer timer(UPDATE);
    Update update(*u);
    if (!update.reserve()) return 1;
    if (u->clipping == RNGRU_NORM) {
        update.sum_squares();
        u->norm = update.norm();
        const double scale = u->norm <= u->clip ? 1 : u->clip / u->norm;  // NaN: NaN
        u->share = scale != 1;
        update.run((float)scale, __builtin_inff());
    } else {
        update.run(1, (float)u->clip);
        u->norm = update.norm();
        u->share = update.share();
    }
    return 0;
}
