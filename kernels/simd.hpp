// What depends on the processor: the vector type, the size of the register tile, a few elementwise
// functions in vectors, and the mode that flushes denormals. Everything else is written on top of it,
// with the compiler's vector extensions (g++ and clang), so that one source serves every processor.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) || defined(__AVX512BW__)
#include <immintrin.h>
#endif

#define RNGRU_INLINE inline __attribute__((always_inline))

namespace rngru {

// W floats a vector; a register tile is MR rows by NV vectors: MR * NV accumulators, NV vectors of the
// right operand and one broadcast must fit the registers (16 on AVX2 and SSE2, 32 on AVX-512 and NEON).
// RNGRU_SHAPE=16 has the tiles of AVX-512 in the compiler's own vectors, to test them on a processor without;
// RNGRU_SHAPE=4 those of no vectors at all, which is "scalar", on any processor. With RNGRU_TILES=1 the former multiplies
// bfloat16 by the tiles of amx.hpp, emulated.
#if defined(RNGRU_SHAPE)
constexpr int W = RNGRU_SHAPE, NV = W == 16 ? 4 : 1, MR = 6;
constexpr const char* ISA = W == 4 ? "scalar" : "emulated";
#elif defined(__AVX512F__)
#define RNGRU_AVX512
constexpr int W = 16, NV = 4, MR = 6;
#if defined(__AVX512BF16__) && (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__)  // g++, older clang
#define RNGRU_AMX
#define RNGRU_TILES 1
constexpr const char* ISA = "AMX";
#else
constexpr const char* ISA = "AVX-512";
#endif
#elif defined(__AVX__)
#define RNGRU_AVX
constexpr int W = 8, NV = 2, MR = 6;
#if defined(__AVX2__) && defined(__FMA__)
#define RNGRU_AVX2
constexpr const char* ISA = "AVX2";
#else
constexpr const char* ISA = "AVX";
#endif
#elif defined(__SSE2__)
#define RNGRU_SSE2
constexpr int W = 4, NV = 2, MR = 6;
constexpr const char* ISA = "SSE2";
#elif defined(__ARM_NEON)
constexpr int W = 4, NV = 4, MR = 6;
constexpr const char* ISA = "NEON";
#else
constexpr int W = 4, NV = 1, MR = 6;
constexpr const char* ISA = "scalar";
#endif
#if defined(RNGRU_AVX512) && defined(__AVX512BF16__)
#define RNGRU_BF16
#endif
constexpr int PW = W * NV;  // columns of a panel: the width of the register tile

typedef float V __attribute__((vector_size(W * 4)));
typedef float Vu __attribute__((vector_size(W * 4), aligned(4), may_alias));  // the same, at any address
typedef uint32_t I __attribute__((vector_size(W * 4)));
typedef uint64_t L __attribute__((vector_size(W * 4)));
typedef int32_t Int __attribute__((vector_size(W * 4)));
typedef int16_t Shorts __attribute__((vector_size(W * 4)));

RNGRU_INLINE V splat(float x) { return x - V{}; }
RNGRU_INLINE V load(const float* p) { return *(const Vu*)p; }
RNGRU_INLINE void store(float* p, V v) { *(Vu*)p = v; }

// The first n floats at p (n may exceed W, or be below 1); the others read as 0 and are not touched. With
// `whole` the caller promises n >= W, and the compiler drops the rest.
template <bool whole = false>
RNGRU_INLINE V load(const float* p, int64_t n) {
    if (whole || n >= W) return load(p);
#if defined(RNGRU_AVX512) && defined(__AVX512BW__)
    return (V)_mm512_maskz_loadu_ps((__mmask16)(n > 0 ? (1u << n) - 1 : 0), p);
#else
    V v = splat(0);
    if (n > 0) memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
#endif
}
template <bool whole = false>
RNGRU_INLINE void store(float* p, V v, int64_t n) {
    if (whole || n >= W) store(p, v);
#if defined(RNGRU_AVX512) && defined(__AVX512BW__)
    else _mm512_mask_storeu_ps(p, (__mmask16)(n > 0 ? (1u << n) - 1 : 0), (__m512)v);
#else
    else if (n > 0) memcpy(p, &v, (size_t)n * sizeof(float));
#endif
}

// A bfloat16: the upper half of a float32. Operands of products may be such; sums never are.
struct Bf16 {
    uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(W * 2)));

// Each in a lane of 32 bits; g++ 12 makes four instructions of what is one.
RNGRU_INLINE I widen(Halves halves) {
#if defined(RNGRU_AVX512)
    return (I)_mm512_cvtepu16_epi32((__m256i)halves);
#else
    return __builtin_convertvector(halves, I);
#endif
}
RNGRU_INLINE I load_wide(const Bf16* p) {
    Halves halves;
    memcpy(&halves, p, sizeof halves);
    return widen(halves);
}
RNGRU_INLINE V load(const Bf16* p) { return (V)(load_wide(p) << 16); }
// To the nearest, of two the even one, as processors do it; what is no number stays none.
RNGRU_INLINE Halves nearest(V v) {
#if defined(RNGRU_BF16)
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    const I bits = (I)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, Halves);
#endif
}
RNGRU_INLINE void store(Bf16* p, V v) {
    const Halves halves = nearest(v);
    memcpy(p, &halves, sizeof halves);
}

// Vectors of pairs of bfloat16, neighbours along k: two products a lane, added to the lane's sum.
RNGRU_INLINE V dot(V sum, I a, I b) {
#if defined(RNGRU_BF16)
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (V)(a << 16) * (V)(b << 16);
    return sum + (V)(a & 0xffff0000) * (V)(b & 0xffff0000);
#endif
}
RNGRU_INLINE I splat_pair(const Bf16* p) {
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair - I{};
}
RNGRU_INLINE I load_pairs(const Bf16* p) {
    I pairs;
    memcpy(&pairs, p, sizeof pairs);
    return pairs;
}
// Rows k and k + 1 of W columns as W pairs of their nearest bfloat16.
RNGRU_INLINE I nearest_pairs(V even, V odd) {
    return widen(nearest(even)) | widen(nearest(odd)) << 16;
}
RNGRU_INLINE void store_pairs(Bf16* p, V even, V odd) {
    const I pairs = nearest_pairs(even, odd);
    memcpy(p, &pairs, sizeof pairs);
}
// W vectors of W lanes: lane j of vector i becomes lane i of vector j.
RNGRU_INLINE void transpose(I (&rows)[W]) {
#if defined(RNGRU_AVX512)
    I parts[W];
    for (int i = 0; i < W; i += 2) {
        parts[i] = (I)_mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        parts[i + 1] = (I)_mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
    for (int i = 0; i < W; i += 4)
        for (int j = 0; j < 2; ++j) {
            rows[i + 2 * j] = (I)_mm512_unpacklo_epi64((__m512i)parts[i + j], (__m512i)parts[i + j + 2]);
            rows[i + 2 * j + 1] = (I)_mm512_unpackhi_epi64((__m512i)parts[i + j], (__m512i)parts[i + j + 2]);
        }
    // Now rows[4 i + j] holds lanes j, j + 4, j + 8 and j + 12 of rows 4 i to 4 i + 3.
    for (int j = 0; j < 4; ++j) {
        const __m512i a = (__m512i)rows[j], b = (__m512i)rows[j + 4], c = (__m512i)rows[j + 8], d = (__m512i)rows[j + 12];
        const __m512i ab = _mm512_shuffle_i32x4(a, b, 0x88), cd = _mm512_shuffle_i32x4(c, d, 0x88);
        const __m512i ba = _mm512_shuffle_i32x4(a, b, 0xdd), dc = _mm512_shuffle_i32x4(c, d, 0xdd);
        parts[j] = (I)_mm512_shuffle_i32x4(ab, cd, 0x88);
        parts[j + 4] = (I)_mm512_shuffle_i32x4(ba, dc, 0x88);
        parts[j + 8] = (I)_mm512_shuffle_i32x4(ab, cd, 0xdd);
        parts[j + 12] = (I)_mm512_shuffle_i32x4(ba, dc, 0xdd);
    }
    for (int i = 0; i < W; ++i) rows[i] = parts[i];
#else
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < i; ++j) {
            const uint32_t lane = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = lane;
        }
#endif
}

// Vectors of pairs of int16, neighbours along k: two products a lane, added to the lane's sum, which wraps around.
RNGRU_INLINE Int dot(Int sum, Int a, Int b) {
#if defined(RNGRU_AVX512) && defined(__AVX512VNNI__)
    return (Int)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(RNGRU_AVX512) && defined(__AVX512BW__)
    return sum + (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(RNGRU_AVX2)
    return sum + (Int)__builtin_ia32_pmaddwd256((Shorts)a, (Shorts)b);
#elif defined(RNGRU_AVX)
    typedef int16_t Half __attribute__((vector_size(W * 2)));
    Half halves[2][2];
    memcpy(halves[0], &a, sizeof a);
    memcpy(halves[1], &b, sizeof b);
    for (int i = 0; i < 2; ++i) halves[0][i] = (Half)__builtin_ia32_pmaddwd128(halves[0][i], halves[1][i]);
    memcpy(&a, halves[0], sizeof a);
    return sum + a;
#elif defined(RNGRU_SSE2)
    return sum + (Int)__builtin_ia32_pmaddwd128((Shorts)a, (Shorts)b);
#else
    return sum + (Int)((I)(a << 16 >> 16) * (I)(b << 16 >> 16) + (I)(a >> 16) * (I)(b >> 16));
#endif
}
// Of four bytes, neighbours along k: four products a lane of 0 .. 127 in x with a signed one in w, added to the lane's sum.
RNGRU_INLINE Int dot_bytes(Int sum, Int x, Int w) {
#if defined(RNGRU_AVX512) && defined(__AVX512VNNI__)
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(RNGRU_AVX512) && defined(__AVX512BW__)
    return dot(sum, (Int)_mm512_maddubs_epi16((__m512i)x, (__m512i)w), (Int)_mm512_set1_epi16(1));
#elif defined(RNGRU_AVX2)
    typedef char Bytes __attribute__((vector_size(W * 4)));
    return dot(sum, (Int)__builtin_ia32_pmaddubsw256((Bytes)x, (Bytes)w), (Int)(Shorts{} + 1));
#else
    sum = dot(sum, (Int)((Shorts)x & 0xff), (Int)((Shorts)w << 8 >> 8));
    return dot(sum, (Int)((Shorts)x >> 8), (Int)((Shorts)w >> 8));
#endif
}
RNGRU_INLINE Int splat_bytes(const uint8_t* p) {
    int32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return bytes - Int{};
}
// The nearest whole number, of two the even one, in a lane's lower 22 bits; |v| < 2^21.
RNGRU_INLINE I nearest_whole(V v) { return (I)(v + splat(12582912.f)); }
RNGRU_INLINE void store(uint8_t* p, V v) {
    typedef uint8_t Bytes __attribute__((vector_size(W)));
    const Bytes bytes = __builtin_convertvector(nearest_whole(v), Bytes);
    memcpy(p, &bytes, sizeof bytes);
}

// The greater of v and low, the lesser of v and high; v where it is not a number, which is what x86's
// instructions do with their second operand (g++ 12 makes two instructions of the comparison).
RNGRU_INLINE V at_least(V v, V low) {
#if defined(RNGRU_AVX512) && !defined(__clang__)
    return (V)__builtin_ia32_maxps512_mask(low, v, v, -1, 4);
#elif defined(RNGRU_AVX)
    return __builtin_ia32_maxps256(low, v);
#elif defined(RNGRU_SSE2)
    return __builtin_ia32_maxps(low, v);
#else
    return v < low ? low : v;
#endif
}
RNGRU_INLINE V at_most(V v, V high) {
#if defined(RNGRU_AVX512) && !defined(__clang__)
    return (V)__builtin_ia32_minps512_mask(high, v, v, -1, 4);
#elif defined(RNGRU_AVX)
    return __builtin_ia32_minps256(high, v);
#elif defined(RNGRU_SSE2)
    return __builtin_ia32_minps(high, v);
#else
    return v > high ? high : v;
#endif
}
RNGRU_INLINE V clip(V v, V low, V high) { return at_most(at_least(v, low), high); }
RNGRU_INLINE V hard_sigmoid(V v) { return clip(v * splat(0.2f) + splat(0.5f), splat(0), splat(1)); }

// x P(x^2) / Q(x^2), P of degree 5 and Q of degree 3, the least maximum of the error over |x| < 9, where
// tanh reaches 1 in float32: 5e-8 before rounding, 2.9e-7 in all (with FMA). A library's tanh takes 40 times as long.
RNGRU_INLINE V tanh(V x) {
    x = clip(x, splat(-9), splat(9));
    const V u = x * x;
    V p = u * splat(1.78372803e-11f) + splat(-1.25907027e-08f);
    p = p * u + splat(9.19487684e-06f);
    p = p * u + splat(2.91196955e-03f);
    p = p * u + splat(1.29106596e-01f);
    p = p * u + splat(9.99999762e-01f);
    V q = u * splat(2.26937686e-04f) + splat(2.37260647e-02f);
    q = q * u + splat(4.62438941e-01f);
    q = q * u + splat(1);
    return clip(x * p / q, splat(-1), splat(1));
}

// e^x for x <= 0, to 2 ulp; exactly 0 below -87. 2^n is built in the exponent bits, e^(x - n ln 2) is a
// polynomial (Taylor's, to degree 7, on |x| < 0.35).
RNGRU_INLINE V exp_negative(V x) {
    const V round = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, left in the low bits
    const V shifted = x * splat(1.44269504f) + round;
    const V n = shifted - round;
    V f = x - n * splat(0.693359375f);
    f = f - n * splat(-2.12194440e-4f);
    V p = f * splat(1.f / 5040) + splat(1.f / 720);
    p = p * f + splat(1.f / 120);
    p = p * f + splat(1.f / 24);
    p = p * f + splat(1.f / 6);
    p = p * f + splat(0.5f);
    p = p * f + splat(1);
    p = p * f + splat(1);
    const V power = (V)(((I)shifted << 23) + 0x3f800000u);
    return x < splat(-87) ? splat(0) : p * power;
}

// The 64-bit products of the lower halves of the lanes. g++ doesn't see that x86 has an instruction for them.
RNGRU_INLINE L multiply_low(L a, L b) {
#if !defined(__clang__) && (defined(RNGRU_AVX512) || defined(RNGRU_AVX2) || defined(RNGRU_SSE2))
    typedef int Words __attribute__((vector_size(W * 4)));
#if defined(RNGRU_AVX512)
    typedef long long Lanes __attribute__((vector_size(W * 4)));
    return (L)__builtin_ia32_pmuludq512_mask((Words)a, (Words)b, Lanes{}, -1);
#elif defined(RNGRU_AVX2)
    return (L)__builtin_ia32_pmuludq256((Words)a, (Words)b);
#else
    return (L)__builtin_ia32_pmuludq128((Words)a, (Words)b);
#endif
#else
    return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif
RNGRU_INLINE V sqrt(V v) {
#if __has_builtin(__builtin_elementwise_sqrt)
    return __builtin_elementwise_sqrt(v);
#elif defined(RNGRU_AVX512) && defined(__clang__)
    return (V)__builtin_ia32_sqrtps512(v, 4);
#elif defined(RNGRU_AVX512)
    return (V)__builtin_ia32_sqrtps512_mask(v, v, -1, 4);
#elif defined(RNGRU_AVX)
    return __builtin_ia32_sqrtps256(v);
#elif defined(RNGRU_SSE2)
    return __builtin_ia32_sqrtps(v);
#else
    for (int j = 0; j < W; ++j) v[j] = __builtin_sqrtf(v[j]);
    return v;
#endif
}

// Numbers below 1e-38 take some processors a hundred cycles each: count them as 0 while this lives.
class FlushDenormals {
#if defined(__SSE2__)
    const unsigned before = __builtin_ia32_stmxcsr();
public:
    FlushDenormals() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushDenormals() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
public:
    FlushDenormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    }
    ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
public:
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
};

RNGRU_INLINE void pause() {
#if defined(__SSE2__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
}  // namespace rngru
