// One character drawn from its logits.
#pragma once
#include <stdint.h>

#include "rngru.h"

namespace rngru {

// draw(logits, uniform): the character at which the cumulated shares first exceed `uniform` of their sum, in float64 and in the
// order of the indices; -1 where the logits are not numbers. The shares are exp(logit / temp) of the characters that may be drawn:
// those allowed; of these the top_k likeliest; of these the fewest likeliest that have top_p of their sum; of these those with at
// least min_p of the likeliest's share. Of equals the first index counts as likelier.
class Draw {
    const rngru_sampler& m;
    double* const shares;    // (N), room for them
    int32_t* const ranking;  // (N)

    void choose(const float* logits);
public:
    Draw(const rngru_sampler& m, float* room) : m(m), shares((double*)room), ranking((int32_t*)(shares + m.N)) {}
    static int64_t floats(int64_t N) { return (3 * N + 47) / 16 * 16; }
    int64_t operator()(const float* logits, double uniform);
};
}  // namespace rngru
