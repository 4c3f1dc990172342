// RMSProp with clipped gradients, one pass over memory: 12 bytes read and 8 written an element, which is the
// limit where the parameters do not fit the caches.
#include "pool.hpp"
#include "rngru.h"

int rngru_rmsprop(int64_t count, float* const* p, float* const* m, const float* const* g, const int64_t* n,
                  const float* weightcost, float learnrate, float decay, float clip_at) {
    using namespace rngru;
    Call call;
    Timer timer(UPDATE);
    constexpr int64_t CHUNK = 4096;  // elements; a part is a number of whole chunks of one parameter or more
    int64_t chunks = 0;
    for (int64_t i = 0; i < count; ++i) chunks += (n[i] + CHUNK - 1) / CHUNK;
    Parts parts(chunks, 16);
    parallel(threads_for(20. * CHUNK * (double)chunks), [&](int, int threads) {
        const V rate = splat(learnrate), keep = splat(decay), add = splat(1 - decay), most = splat(clip_at);
        for (int64_t chunk, end; parts.take(threads, chunk, end);)
            for (; chunk < end; ++chunk) {
                int64_t i = 0, c = chunk;
                for (; c >= (n[i] + CHUNK - 1) / CHUNK; ++i) c -= (n[i] + CHUNK - 1) / CHUNK;
                const V cost = splat(weightcost[i]);
                const int64_t stop = (c + 1) * CHUNK < n[i] ? (c + 1) * CHUNK : n[i];
                for (int64_t k = c * CHUNK; k < stop; k += W) {
                    const int64_t left = stop - k;
                    const V old = load(p[i] + k, left);
                    const V d = clip(load(g[i] + k, left) + cost * old, -most, most);
                    const V mean = keep * load(m[i] + k, left) + add * d * d;
                    store(m[i] + k, mean, left);
                    store(p[i] + k, old - rate * d / sqrt(mean + splat(1e-6f)), left);
                }
            }
    });
    return 0;
}
