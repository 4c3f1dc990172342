// The output layer: logits, softmax, loss and their gradients.
//
// FLOP: 2 H V M each for the logits, dS and dV, and about 25 V M for the softmax. Rows go through in passes
// that bound the memory, and within a pass in blocks: logits, softmax and dS of a block come out of the
// second-level cache; dV is summed over the rows of the pass, in their order, when all its rows are there.
// Scratch, bytes: 4 [2 H V + min(M V, max(4M, 256 V)) + M + 33024 threads], V padded to a panel.
#include <math.h>

#include "gemm.hpp"
#include "gru.hpp"
#include "pool.hpp"
#include "rngru.h"

namespace rngru {
namespace {

struct Output {
    const int64_t M, H, V_;
    const float *S, *Wv, *c;
    const int32_t* y;
    float *dS, *dV, *dc;
    const int64_t np = whole_panels(V_), VP = np * PW;      // panels of the logits, their columns
    const int64_t kp = whole_panels(H);                     // panels of dS
    const int64_t pass = M < rows_of_a_pass() ? M : rows_of_a_pass();
    const int64_t stride = spread<float>(pass * PW);               // from one panel of the logits to the next
    float *right = nullptr, *right_transposed = nullptr;    // Wv in panels, (H, V) and (V, H)
    float *bias = nullptr;                                  // c; beyond V minus infinity
    float *logits = nullptr, *packed = nullptr;
    double* losses = nullptr;  // of each row: added up in order, whatever the threads

    static constexpr int64_t ROWS = 16 * MR;  // of a block

    int64_t rows_of_a_pass() const {
        const int64_t rows = (4 << 20) / VP;
        return rows < 256 ? 256 : rows;
    }

    bool reserve(int threads) {
        const int64_t sizes[] = {np * H * PW, kp * V_ * PW, VP, np * stride, PACKED<float> * threads, 2 * M};
        size_t bytes = 0;
        for (int64_t n : sizes) bytes += Scratch::bytes(n);
        if (!scratch.reserve(bytes)) return false;
        right = scratch.take(sizes[0]);
        right_transposed = scratch.take(sizes[1]);
        bias = scratch.take(sizes[2]);
        logits = scratch.take(sizes[3]);
        packed = scratch.take(sizes[4]);
        losses = scratch.take<double>(M);
        return true;
    }

    void pack_weights(int threads) {
        for (int64_t j = 0; j < VP; ++j) bias[j] = j < V_ ? c[j] : -__builtin_inff();
        Parts parts(np + (dS ? kp : 0), 4);
        parallel(threads, [&](int, int n) {
            for (int64_t p, end; parts.take(n, p, end);)
                for (; p < end; ++p)
                    if (p < np) pack(right + p * H * PW, Wv, V_, H, V_, p);
                    else pack_transposed(right_transposed + (p - np) * V_ * PW, Wv, V_, V_, V_, H, p - np);
        });
    }

    // The softmax of rows [from, to) of the pass, turned into its gradient where that is wanted, and the loss of
    // each. In three loops, since a row's maximum, sum and scale wait for each other, but not for other rows'.
    void softmax(int64_t start, int64_t from, int64_t to) const {
        float most[ROWS];
        double sum[ROWS];
        for (int64_t row = from; row < to; ++row) {
            const float* const l = logits + row * PW;
            V top = splat(-__builtin_inff());
            for (int64_t p = 0; p < np; ++p)
                for (int j = 0; j < PW; j += W) {
                    const V v = load(l + p * stride + j);
                    top = v > top ? v : top;
                }
            float m = top[0];
            for (int j = 1; j < W; ++j) m = top[j] > m ? top[j] : m;
            most[row - from] = m;
            losses[start + row] = (double)m - (double)at(row, y[start + row]);
        }
        for (int64_t row = from; row < to; ++row) {
            float* const l = logits + row * PW;
            V sums = splat(0);
            for (int64_t p = 0; p < np; ++p)
                for (int j = 0; j < PW; j += W) {
                    const V e = exp_negative(load(l + p * stride + j) - splat(most[row - from]));
                    store(l + p * stride + j, e);
                    sums += e;
                }
            double total = 0;
            for (int j = 0; j < W; ++j) total += (double)sums[j];
            sum[row - from] = total;
        }
        for (int64_t row = from; row < to; ++row) {
            losses[start + row] += log(sum[row - from]);
            if (!dS) continue;
            float* const l = logits + row * PW;
            const V scale = splat((float)(1 / (sum[row - from] * (double)M)));
            for (int64_t p = 0; p < np; ++p)
                for (int j = 0; j < PW; j += W) store(l + p * stride + j, load(l + p * stride + j) * scale);
            at(row, y[start + row]) -= (float)(1 / (double)M);
        }
    }
    float& at(int64_t row, int64_t column) const { return logits[column / PW * stride + row * PW + column % PW]; }

    // Logits, loss and dS of rows [from, to) of the pass that begins at row `start`.
    void rows(int64_t start, int64_t from, int64_t to) const {
        auto nothing = [](int64_t, int, int, int64_t) RNGRU_LAMBDA {};
        product(from, to, H, row_major(S + start * H, H), right, one_matrix(V_), nothing,
                [&](auto, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                    float* to = logits + column / PW * stride + row * PW;
                    for (int i = 0; i < R; ++i, to += PW, c += PW)
                        for (int j = 0; j < PW; j += W) store(to + j, load(c + j) + load(bias + column + j));
                });
        softmax(start, from, to);
        if (!dS) return;
        float* const out = dS + start * H;
        const int64_t H = this->H;
        product(from, to, V_, panels(logits, stride), right_transposed, one_matrix(H),
                [&](int64_t row, int R, int, int64_t column) RNGRU_LAMBDA {
                    for (int i = 0; i < R; ++i) prefetch_row(out + (row + i) * H + column);
                },
                [&](auto inside, int64_t row, int R, int, int64_t column, const float* c) RNGRU_LAMBDA {
                    constexpr bool whole = decltype(inside)::value;
                    for (int i = 0; i < R; ++i, ++row, c += PW)
                        for (int j = 0; j < PW; j += W)
                            store<whole>(out + row * H + column + j, load(c + j), H - column - j);
                });
    }

    // Tiles [first, last) of dV, summed over the `count` rows of the pass; the first ones see to dc.
    void weight_rows(int64_t start, int64_t count, const Tiles<float>& tiles, int64_t first, int64_t last, int thread) const {
        const auto add_to_dc = [&](const float* panel, int64_t k, int64_t n, int, int64_t column) {
            for (int j = 0; j < PW; j += W) {
                const int64_t left = V_ - column - j;
                const V sum = sum_of_rows(panel + j, n);
                store(dc + column + j, start + k ? load(dc + column + j, left) + sum : sum, left);
            }
        };
        transposed_product(tiles, first, last, Rows{nullptr, S + start * H, 0, H}, count, logits, stride, one_matrix(V_), dV,
                           V_, start > 0, packed + thread * PACKED<float>, (float*)nullptr,
                           first > 0 ? Witness<float>() : witness<float>(add_to_dc));
    }

    double run(int threads) {
        pack_weights(threads);
        for (int64_t start = 0; start < M; start += pass) {
            const int64_t count = M - start < pass ? M - start : pass;
            Parts blocks((count + MR - 1) / MR, ROWS / MR);
            parallel(threads, [&](int, int n) {
                for (int64_t from, to; blocks.take(n, from, to);)
                    rows(start, from * MR, to * MR < count ? to * MR : count);
            });
            if (!dS) continue;
            const Tiles<float> tiles(H);
            Parts parts(tiles.count, TILES<float>);
            parallel(threads, [&](int thread, int n) {
                for (int64_t from, to; parts.take(n, from, to);) weight_rows(start, count, tiles, from, to, thread);
            });
        }
        double loss = 0;
        for (int64_t i = 0; i < M; ++i) loss += losses[i];
        return loss / (double)M;
    }
};
}  // namespace
}  // namespace rngru

int rngru_softmax_loss(int64_t M, int64_t H, int64_t V, const float* S, const float* Wv, const float* c, const int32_t* y,
                       double* loss, float* dS, float* dV, float* dc) {
    using namespace rngru;
    Call call;
    Timer timer(OUTPUT);
    Output output{M, H, V, S, Wv, c, y, dS, dV, dc};
    const int threads = threads_for(6. * (double)M * (double)H * (double)V);
    if (!output.reserve(threads)) return 1;
    *loss = output.run(threads);
    return 0;
}
