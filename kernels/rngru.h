/* RN-GRU's native kernels: the C interface of librngru.so.
 *
 * Arrays are float32, row-major and contiguous; indices are int32 and must be in range (the caller checks);
 * sizes are int64, each at least 1. Dimensions: T steps, B batch rows, H state size, K inputs of a layer,
 * N rows of E, V vocabulary. Every function may be called from any thread; calls take turns.
 * Functions that return int give 0, or 1 where memory ran out; outputs are then undefined.
 * Results do not depend on the number of threads, bit for bit.
 * README.md says how to compile them.
 */
#ifndef RNGRU_H
#define RNGRU_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define RNGRU_API __attribute__((visibility("default")))

enum { RNGRU_VECTORS = 0, RNGRU_ONEHOT = 1, RNGRU_ENCODED = 2 };
enum { RNGRU_FLOAT32 = 0, RNGRU_BFLOAT16 = 1, RNGRU_INT8 = 2 };

/* One GRU layer over a sequence. With hard_sigmoid(v) = clip(0.2 v + 0.5, 0, 1), for each step:
 *   z  = hard_sigmoid(x Uz + s Wz + bz)
 *   r  = hard_sigmoid(x Ur + s Wr + br)
 *   h  = tanh(x Uh + (r * s) Wh + bh)
 *   s' = (1 - z) * h + z * s
 */
typedef struct rngru_layer {
    int64_t T, B, K, H, N;
    int input;              /* what x is: RNGRU_VECTORS: X; RNGRU_ONEHOT: x U is row x of U;
                               RNGRU_ENCODED: the vector tanh(E[x] + a) */
    int precision;          /* RNGRU_FLOAT32; RNGRU_BFLOAT16: the operands of all products but the characters' x U, and dG where
                               it is summed, are rounded to bfloat16; everything else is float32 */
    const float *X;         /* (T, B, K), RNGRU_VECTORS only */
    const int32_t *x;       /* (T, B), the other two; below K (one-hot) or below N (encoded) */
    const float *E, *a;     /* (N, K), (K), RNGRU_ENCODED only */
    const float *s0;        /* (B, H), the state before the first step */
    const float *U, *W, *b; /* (K, 3H), (H, 3H), (3H); columns in the order z, r, h */
    float *S;               /* (T, B, H), the states after each step: forward writes, backward reads */
    float *G;               /* (T, B, 3H), z, r and h of each step: forward writes, backward reads */
    const float *dS;        /* (T, B, H), gradient of the cost in S */
    /* What backward writes (it does not add to them): */
    float *dX;              /* (T, B, K), RNGRU_VECTORS only; may be NULL: not needed */
    float *dE, *da;         /* (N, K), (K), RNGRU_ENCODED only */
    float *ds0, *dU, *dW, *db;
} rngru_layer;

RNGRU_API int rngru_gru_forward(const rngru_layer *layer);
RNGRU_API int rngru_gru_backward(const rngru_layer *layer);

/* Mean negative log-likelihood, in nats, of the targets y (M) under softmax(S V + c): S (M, H), Wv (H, V),
 * c (V); and its gradients dS (M, H), dV (H, V), dc (V), or none of them where the three are NULL. */
RNGRU_API int rngru_softmax_loss(int64_t M, int64_t H, int64_t V, const float *S, const float *Wv, const float *c,
                                 const int32_t *y, double *loss, float *dS, float *dV, float *dc);

enum { RNGRU_RMSPROP = 0, RNGRU_ADAM = 1, RNGRU_ADAMW = 2, RNGRU_SGD = 3 };
enum { RNGRU_VALUE = 0, RNGRU_NORM = 1 };

/* One update of `count` parameters p[i] of n[i] elements, in place, from their gradients d[i]. Of what doubles hold, what multiplies
 * vectors is rounded to float32 first.
 *   d += regcost w[i] p;  norm = sqrt(sum of d^2 over all)
 *   RNGRU_VALUE: d = clip(d, -clip, clip), share = that of the elements changed
 *   RNGRU_NORM:  d *= clip / norm and share = 1 where norm > clip, else share = 0
 *   RNGRU_RMSPROP: m = decay m + (1 - decay) d^2;  p -= learnrate d / sqrt(m + 1e-6)
 *   RNGRU_ADAM:    g = beta1 g + (1 - beta1) d;  m = beta2 m + (1 - beta2) d^2;  t = cacheupdates + 1
 *                  p -= learnrate (g / (1 - beta1^t)) / (sqrt(m / (1 - beta2^t)) + 1e-8)
 *   RNGRU_ADAMW:   p *= 1 - learnrate weight_decay w[i] before that
 *   RNGRU_SGD:     g = momentum g + d;  p -= learnrate g
 *   and where e is given: e += (1 - min(ema, (1 + updates) / (10 + updates))) (p - e)
 * Not a number in, not a number out: norm, and elements of its own (RNGRU_VALUE) or all (RNGRU_NORM). */
typedef struct rngru_optimizer {
    int optimizer, clipping;
    int64_t count;
    const int64_t *n;
    const float *w;                 /* (count): 1, or 0 where regcost and weight_decay do nothing */
    float *const *p, *const *m, *const *g, *const *e; /* `count` of each; NULL: m of SGD, g of RMSProp; e: no averages */
    const float *const *d;
    double learnrate, decay, beta1, beta2, momentum, weight_decay, clip, regcost, ema, updates, cacheupdates;
    double norm, share;             /* what it writes besides */
} rngru_optimizer;

RNGRU_API int rngru_update(rngru_optimizer *optimizer);

/* out[i] = S[i] scale where word i of the generator is at least `threshold`, else 0, for n elements; out may be S. Word i is
 * word i % 4 of Philox4x32-10 of key (seed's lower half, upper half) and counter (i / 4, layer, updates' lower half, upper half). */
RNGRU_API int rngru_dropout(int64_t n, const float *S, float *out, uint32_t threshold, float scale, uint64_t seed, uint64_t updates,
                            uint32_t layer);

/* N (M, H): each row of S (M, H) with mean 0 and variance 1, (S - mean) / sqrt(variance + 1e-5); and the gradient dS (M, H) of a cost
 * whose gradient in N is dN (M, H). N may be S, dS may be dN. */
RNGRU_API int rngru_layer_norm(int64_t M, int64_t H, const float *S, float *N);
RNGRU_API int rngru_layer_norm_gradient(int64_t M, int64_t H, const float *S, const float *dN, float *dS);

/* Characters drawn one after another, n texts at once: each from softmax(logits / temp) behind the one before, of what top_k, top_p
 * and min_p leave of it (draw.hpp), the first index in 0 .. N - 1 at which the cumulated softmax (float64) exceeds the step's uniform. */
typedef struct rngru_sampler {
    int64_t L, H, K, N, n, steps;
    int input;                      /* RNGRU_ONEHOT (K = N) or RNGRU_ENCODED */
    int precision;                  /* of Wv, of every W, of every U above the first layer's and of the vectors that they multiply,
                                       s and r s. RNGRU_INT8: weights as nearest(127 w / max |w| of the column), vectors as
                                       nearest(63 s / max(1, |initial states| of the text)), or with layernorm, read from
                                       above, as nearest(63 s / max |s|) */
    int layernorm;                  /* not 0: the layer above, and Wv, read a layer's state as rngru_layer_norm makes it */
    double temp;                    /* 0: the most likely character */
    int64_t top_k;                  /* at least 1; N: all */
    double top_p, min_p;            /* in (0, 1], in [0, 1] */
    const float *E, *a;             /* (N, K), (K), RNGRU_ENCODED only */
    const float *const *U, *const *W, *const *b; /* L of each: (K, 3H), above the first layer (H, 3H); (H, 3H); (3H) */
    const float *Wv, *c;            /* (H, N), (N) */
    const uint8_t *allowed;         /* (N), 0: never drawn; not all of them */
    const double *uniforms;         /* (n, steps), in [0, 1) */
    float *states;                  /* (L, n, H): before chars are read; then, before the last ones drawn are */
    int32_t *chars;                 /* (n): read first; then, the last ones drawn */
    int32_t *out;                   /* (n, steps): the characters drawn */
    float *S;                       /* NULL, or (L, steps, n, H): then nothing is drawn; `out` holds what is read behind chars, each
                                       text's last one behind the last step, and S gets the states after each step */
    float *kept;                    /* rngru_sample_kept floats, 0 before their first use: packed weights, which the next
                                       call with the same L, H, K, N, input and precision compares with its own and uses again where they
                                       are equal. Not for two calls at once */
} rngru_sampler;

RNGRU_API int64_t rngru_sample_kept(const rngru_sampler *sampler);
/* 2: some logits, or what they would be made of, are not numbers; what it writes is then undefined. */
RNGRU_API int rngru_sample(const rngru_sampler *sampler);

/* Processors this process may use: affinity and container limits (cgroup quota) respected, at least 1. */
RNGRU_API int rngru_threads_available(void);
/* Threads that the next calls use, the caller's included; n < 1: as many as available. Returns the number. */
RNGRU_API int rngru_set_threads(int n);
RNGRU_API int rngru_get_threads(void);

/* "AMX", "AVX-512", "AVX2", "AVX", "SSE2", "NEON" or "scalar": what the library was compiled for. */
RNGRU_API const char *rngru_isa(void);

/* Whether there are instructions that multiply operands of a precision faster than float32, and the system lets the process use them.
 * Without, the results are the same, but for rounding. */
RNGRU_API int rngru_accelerates(int precision);

/* Time by phase, wall clock of the calling thread. profile(1) starts from zero, profile(0) stops.
 * profile_read gives the number of phases; names and seconds may be NULL, or hold that many entries. */
RNGRU_API void rngru_profile(int on);
RNGRU_API int rngru_profile_read(const char **names, double *seconds);

#ifdef __cplusplus
}
#endif
#endif
