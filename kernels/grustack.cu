// All GRU layers over a whole sequence in one launch on an NVIDIA GPU, in bfloat16: `stack.GRUStack` and its gradient.
//
// A block owns N columns of one layer's state for R batch rows and keeps in shared memory, as bfloat16, all weights that its products
// need: 6 H N of them. Blocks hand each other the states (gradients) of a step through memory and count who has written; a block waits
// until all C = H / N blocks of its layer and rows have, so each waits for the slowest of C and for nobody else. All layers work at once,
// each two steps behind the one below, which makes T + 2 (L - 1) waves of two such exchanges. All blocks have to be on the card at once,
// which a cooperative launch sees to; a wait that lasts two seconds is given up, and so said in count[0].
//
// Products are mma instructions of 16 x 8 x 16 (bfloat16, sums float32; compute capability 8.0). A warp sums over its share of k, a slice;
// the slices are added up in shared memory.
//
// Included from a file that defines EMULATED and what stands in its place below, it runs on threads of the processor
// (tests/grustack.cpp), which proves indices and waits, though nothing of a GPU's memory order.
#include <cstdint>

#ifndef EMULATED
#include <cuda_bf16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;
typedef cudaStream_t Stream;
#define KERNEL(threads) __global__ __launch_bounds__(threads, 1)
#define DEVICE __device__ __forceinline__
#define SHARED extern __shared__ __align__(128) unsigned char shared[]
#define BIND xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<Stream>>()
#define STREAM Stream stream,
static const int WARPS = 8;  // of a block

DEVICE int thread() { return threadIdx.x; }
DEVICE int block() { return blockIdx.x; }
DEVICE void syncblock() { __syncthreads(); }
DEVICE bf16 rounded(float v) { return __float2bfloat16(v); }
DEVICE uint4 load(const void* p) { return __ldcg((const uint4*)p); }  // from L2, where other blocks' writes are
DEVICE void arrive(unsigned* count) {
    __threadfence();
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
}
DEVICE unsigned arrived(unsigned* count) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(count) : "memory");
    return v;
}
DEVICE void multiply(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static int current() {
    int device = 0;
    cudaGetDevice(&device);
    return device;
}
static int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, device) ? 0 : value;
}
static int most_blocks(int device) {
    return attribute(cudaDevAttrCooperativeLaunch, device) ? attribute(cudaDevAttrMultiProcessorCount, device) : 0;
}
static size_t most_shared(int device) { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device); }

// Clears the counters and starts a kernel of so many blocks, with so much shared memory for each; nullptr, or what went wrong.
template <class Arguments>
const char* start(void (*kernel)(Arguments), Arguments a, int blocks, int threads, size_t bytes, size_t counters, Stream stream) {
    void* arguments[] = {&a};
    cudaError_t error = cudaMemsetAsync(a.count, 0, counters, stream);
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (!error) error = cudaLaunchCooperativeKernel((const void*)kernel, dim3(blocks), dim3(threads), arguments, bytes, stream);
    return error ? cudaGetErrorString(error) : nullptr;
}
#endif

namespace {

struct Stack {
    int L, T, B, H;
    const float *first;             // (T, B, 3H): x U + b of the first layer
    const float *W, *U, *b, *s0;    // (L, H, 3H) twice, (L, 3H), (L, B, H); of U and b the first layer's are not read
    const bf16 *s0b;                // s0 rounded
    float *s, *zr, *h, *last;       // (T + L - 1, L, B, H), its double, (T + L - 1, L, B, H), (L, B, H): by waves, as GRUStack keeps them
    bf16 *S, *rs;                   // (L, T, B, H): states and r * s rounded, as blocks exchange them
    const float *dtop;              // (T, B, H)
    bf16 *dzr, *dh;                 // (L, T, B, 2H), (L, T, B, H): before the nonlinearities
    float *ds0;                     // (L, B, H)
    unsigned *count;                // [0]: whether a wait was given up; then two counters for each layer and group of rows, 32 apart
};

const int ROWS = 16;                // fewest rows of a block: the most groups that counters are needed for
const int SPINS = 1 << 22;          // of some half a microsecond
const int AHEAD = 4;                // chunks of 32 k of the states that a warp loads at once

template <int R_, int N_>
struct Tile {
    static const int R = R_, N = N_, THREADS = WARPS * 32, M = R / 16, SLICES = WARPS / M, EACH = R * N / THREADS;
    static const bool whole = M * SLICES == WARPS && EACH * THREADS == R * N;
    static size_t weights(int H) { return size_t(6) * H * N * sizeof(bf16); }
    static size_t bytes(int H) { return weights(H) + sizeof(float) * SLICES * R * (2 * N + 4); }
    static int groups(int B) { return (B + R - 1) / R; }
    static int blocks(int L, int B, int H) { return L * groups(B) * (H / N); }
};

// What a thread knows of its place: layer l, group g of rows, columns c; its warp's rows from `row` on, and its slice of k.
template <class Q>
struct Place {
    int L, T, B, H, C, l, g, c, row, slice;
    unsigned *count, *mine;

    DEVICE Place(const Stack& a, bool down)
        : L(a.L), T(a.T), B(a.B), H(a.H), C(H / Q::N), c(block() % C), row(0), slice(0), count(a.count) {
        const int groups = (B + Q::R - 1) / Q::R, warp = thread() / 32;
        g = block() / C % groups, l = block() / C / groups;
        if (down) l = L - 1 - l;
        row = g * Q::R + warp % Q::M * 16, slice = warp / Q::M;
        mine = counters(l);
    }
    DEVICE unsigned* counters(int layer) const { return count + 64 * (1 + layer * ((B + Q::R - 1) / Q::R) + g); }
    DEVICE long wave(int t) const { return (long(t + l) * L + l) * B; }           // row of this layer's step t in arrays by waves
    DEVICE long step(int layer, int t) const { return (long(layer) * T + t) * B; }  // and in those by layers

    // f(i, row, column in the tile, batch row, column of H) for this thread's elements; past the last batch row it is the last again.
    template <class F>
    DEVICE void each(F f) const {
#pragma unroll
        for (int i = 0; i < Q::EACH; i++) {
            const int e = thread() + i * Q::THREADS, b = g * Q::R + e / Q::N;
            f(i, e / Q::N, e % Q::N, b < B ? b : B - 1, c * Q::N + e % Q::N);
        }
    }
    DEVICE bool has(int row) const { return g * Q::R + row < B; }
};

// Until `target` blocks have arrived, or somebody has given up; then nobody waits any more.
DEVICE void await(unsigned* counter, unsigned target, unsigned* gaveup, bool& dead) {
    if (thread() == 0 && !dead)
        for (int spins = 1; int(arrived(counter) - target) < 0; spins++)
            if (spins > SPINS || (spins % 1024 == 0 && arrived(gaveup))) {
                arrive(gaveup);
                dead = true;
                break;
            }
    syncblock();
}

// Weights into shared memory in the order in which lanes read them: [chunk of 32 k][tile of 8 columns][lane][8 k].
// Element (k, n) is w[k * sk + n * sn]; n counts `columns` of them in groups of N at a distance of `apart`.
template <int N, int THREADS>
DEVICE void pack(bf16* to, const float* w, int K, int columns, int sk, int sn, int apart) {
    const int octets = K / 8, tiles = columns / 8;
    for (int i = thread(); i < octets * columns; i += THREADS) {
        const int k = sn == 1 ? i / columns : i % octets, n = sn == 1 ? i % columns : i / octets;  // neighbours read neighbours
        const float* from = w + long(k) * 8 * sk + n / N * apart + long(n % N) * sn;
        union {
            bf16 each[8];
            uint4 all;
        } v = {};
#pragma unroll
        for (int e = 0; e < 8; e++) v.each[e] = rounded(from[long(e) * sk]);
        *(uint4*)(to + (((k / 4) * tiles + n / 8) * 32 + n % 8 * 4 + k % 4) * 8) = v.all;
    }
}

// sums[TILES][4] += A (16 rows from at.row, K) times `packed`, tiles from `tile` of ALL, over this warp's slice of k.
template <int TILES, int ALL, class Q>
DEVICE void product(float (*sums)[4], const Place<Q>& at, const bf16* A, int stride, int K, const bf16* packed, int tile = 0) {
    const int lane = thread() % 32, chunks = K / 32;
    const int low = at.row + lane / 4, high = low + 8;
    const bf16* A0 = A + long(low < at.B ? low : at.B - 1) * stride + lane % 4 * 8;
    const bf16* A1 = A + long(high < at.B ? high : at.B - 1) * stride + lane % 4 * 8;
    packed += tile * 256 + lane * 8;
    for (int chunk = at.slice; chunk < chunks; chunk += AHEAD * Q::SLICES) {
        uint4 x[AHEAD], y[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {  // all loads before the first product; past the end the last chunk again
            const int k = (chunk + j * Q::SLICES < chunks ? chunk + j * Q::SLICES : chunks - 1) * 32;
            x[j] = load(A0 + k), y[j] = load(A1 + k);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (chunk + j * Q::SLICES >= chunks) break;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const uint4 w = *(const uint4*)(packed + ((chunk + j * Q::SLICES) * ALL + i) * 256);
                multiply(sums[i], x[j].x, y[j].x, x[j].y, y[j].y, w.x, w.y);
                multiply(sums[i], x[j].z, y[j].z, x[j].w, y[j].w, w.z, w.w);
            }
        }
    }
}

// This warp's sums to shared memory [slice][R rows][WIDTH + 4], and 0 in their place; behind it all warps' are there.
template <int WIDTH, class Q>
DEVICE void leave(float (*sums)[4], float* to, const Place<Q>& at) {
    const int lane = thread() % 32;
    to += (at.slice * Q::R + at.row - at.g * Q::R + lane / 4) * (WIDTH + 4) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++) {
        *(float2*)(to + i * 8) = {sums[i][0], sums[i][1]};
        *(float2*)(to + i * 8 + 8 * (WIDTH + 4)) = {sums[i][2], sums[i][3]};
        sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
    }
    syncblock();
}

template <int WIDTH, class Q>
DEVICE float total(const float* sums, int row, int column) {
    float v = 0;
#pragma unroll
    for (int i = 0; i < Q::SLICES; i++) v += sums[(i * Q::R + row) * (WIDTH + 4) + column];
    return v;
}

DEVICE float gate(float v) {
    v = .2f * v + .5f;
    return v < 0 ? 0 : v > 1 ? 1 : v;  // NaN stays NaN
}
DEVICE float slope(float gate) { return gate > 0 && gate < 1 ? .2f : 0.f; }

template <class Q>
KERNEL(Q::THREADS) void forward(Stack a) {
    SHARED;
    const int N = Q::N;
    const Place<Q> at(a, false);
    const int H = at.H, B = at.B, l = at.l, C = at.C;
    bf16 *Wzr = (bf16*)shared, *Wh = Wzr + 2 * H * N, *U = Wh + H * N;
    float* sums = (float*)(U + 3 * H * N);
    const float *W0 = a.W + long(l) * H * 3 * H + at.c * N, *U0 = a.U + long(l) * H * 3 * H + at.c * N;
    unsigned *rsdone = at.mine, *sdone = at.mine + 32, *below = at.counters(l - 1) + 32;
    bool dead = false;
    pack<N, Q::THREADS>(Wzr, W0, H, 2 * N, 3 * H, 1, H);
    pack<N, Q::THREADS>(Wh, W0 + 2 * H, H, N, 3 * H, 1, H);
    if (l) pack<N, Q::THREADS>(U, U0, H, 3 * N, 3 * H, 1, H);
    float s[Q::EACH], z[Q::EACH], r[Q::EACH], h[Q::EACH], xz[Q::EACH], xr[Q::EACH], xh[Q::EACH];
    at.each([&](int i, int row, int, int b, int j) {
        const float* bias = a.b + l * 3 * H + j;
        s[i] = a.s0[(long(l) * B + b) * H + j], xz[i] = bias[0], xr[i] = bias[H], xh[i] = bias[2 * H];
        if (!at.has(row)) return;
        for (int t = -l; t <= 0; t++) a.s[(at.wave(t) + b) * H + j] = s[i];
    });
    syncblock();
    // What the layer reads at step t, for z and r, then for h. The next step's is multiplied while others are waited for, so that a layer
    // follows the one below by two steps.
    float ofzr[2 * N / 8][4] = {}, ofh[N / 8][4] = {};
    auto readzr = [&](int t) {
        if (!l || t == a.T) return;
        await(below, C * (t + 1), a.count, dead);
        product<2 * N / 8, 3 * N / 8>(ofzr, at, a.S + at.step(l - 1, t) * H, H, H, U);
    };
    auto readh = [&](int t) {
        if (t == a.T) return;
        if (l) product<N / 8, 3 * N / 8>(ofh, at, a.S + at.step(l - 1, t) * H, H, H, U, 2 * N / 8);
        else
            at.each([&](int i, int, int, int b, int j) {
                const float* x = a.first + (long(t) * B + b) * 3 * H + j;
                xz[i] = x[0], xr[i] = x[H], xh[i] = x[2 * H];
            });
    };
    readzr(0), readh(0);
    for (int t = 0; t < a.T; t++) {
        if (t) await(sdone, C * t, a.count, dead);
        product<2 * N / 8, 2 * N / 8>(ofzr, at, t ? a.S + at.step(l, t - 1) * H : a.s0b + long(l) * B * H, H, H, Wzr);
        leave<2 * N>(ofzr, sums, at);
        at.each([&](int i, int row, int n, int b, int j) {
            z[i] = gate(xz[i] + total<2 * N, Q>(sums, row, n));
            r[i] = gate(xr[i] + total<2 * N, Q>(sums, row, N + n));
            if (at.has(row)) a.rs[(at.step(l, t) + b) * H + j] = rounded(r[i] * s[i]);
        });
        syncblock();
        if (thread() == 0) arrive(rsdone);
        at.each([&](int i, int row, int, int b, int j) {
            float* kept = a.zr + (at.wave(t) + b) * 2 * H + j;
            if (at.has(row)) kept[0] = z[i], kept[H] = r[i];
        });
        readzr(t + 1);
        await(rsdone, C * (t + 1), a.count, dead);
        product<N / 8, N / 8>(ofh, at, a.rs + at.step(l, t) * H, H, H, Wh);
        leave<N>(ofh, sums, at);
        at.each([&](int i, int row, int n, int b, int j) {
            h[i] = tanhf(xh[i] + total<N, Q>(sums, row, n));
            s[i] = h[i] + z[i] * (s[i] - h[i]);
            if (at.has(row)) a.S[(at.step(l, t) + b) * H + j] = rounded(s[i]);
        });
        syncblock();
        if (thread() == 0) arrive(sdone);
        at.each([&](int i, int row, int, int b, int j) {
            if (!at.has(row)) return;
            a.h[(at.wave(t) + b) * H + j] = h[i];
            if (t < a.T - 1) a.s[(at.wave(t + 1) + b) * H + j] = s[i];
        });
        readh(t + 1);
    }
    at.each([&](int i, int row, int, int b, int j) {
        if (!at.has(row)) return;
        a.last[(long(l) * B + b) * H + j] = s[i];
        for (int t = a.T; t + l < a.T + a.L - 1; t++) a.s[(at.wave(t) + b) * H + j] = s[i];
    });
}

template <class Q>
KERNEL(Q::THREADS) void backward(Stack a) {
    SHARED;
    const int N = Q::N;
    const Place<Q> at(a, true);
    const int H = at.H, B = at.B, l = at.l, C = at.C;
    const bool top = l == a.L - 1;
    bf16 *Wzr = (bf16*)shared, *Wh = Wzr + 2 * H * N, *U = Wh + H * N;  // transposed
    float* sums = (float*)(U + 3 * H * N);
    const float *W0 = a.W + (long(l) * H + at.c * N) * 3 * H, *U0 = a.U + (long(l + 1) * H + at.c * N) * 3 * H;
    unsigned *dhdone = at.mine, *dzrdone = at.mine + 32, *above = at.counters(l + 1) + 32;
    bool dead = false;
    pack<N, Q::THREADS>(Wzr, W0, 2 * H, N, 1, 3 * H, 0);
    pack<N, Q::THREADS>(Wh, W0 + 2 * H, H, N, 1, 3 * H, 0);
    if (!top) pack<N, Q::THREADS>(U, U0, 3 * H, N, 1, 3 * H, 0);
    syncblock();
    // Of step t: its gates and states, and the gradient from the layer above. The step before's are fetched and multiplied while others are
    // waited for, so that a layer follows the one above by two steps.
    float z[Q::EACH], r[Q::EACH], h[Q::EACH], s[Q::EACH], ds[Q::EACH], carry[Q::EACH] = {};
    float ofds[N / 8][4] = {}, ofdrs[N / 8][4] = {};
    auto fetch = [&](int t) {
        if (t < 0) return;
        at.each([&](int i, int, int, int b, int j) {
            const long row = at.wave(t) + b;
            z[i] = a.zr[row * 2 * H + j], r[i] = a.zr[row * 2 * H + H + j], h[i] = a.h[row * H + j], s[i] = a.s[row * H + j];
            ds[i] = top ? a.dtop[(long(t) * B + b) * H + j] : 0;
        });
    };
    auto fromabove = [&](int t) {
        if (top || t < 0) return;
        await(above, C * (a.T - t), a.count, dead);
        product<N / 8, N / 8>(ofds, at, a.dzr + at.step(l + 1, t) * 2 * H, 2 * H, 2 * H, U);
        product<N / 8, N / 8>(ofds, at, a.dh + at.step(l + 1, t) * H, H, H, U + 2 * H * N);
    };
    fetch(a.T - 1), fromabove(a.T - 1);
    for (int t = a.T - 1; t >= 0; t--) {
        const unsigned turn = C * (a.T - t);
        const bf16 *dzr = a.dzr + at.step(l, t) * 2 * H, *dh = a.dh + at.step(l, t) * H;
        leave<N>(ofds, sums, at);
        at.each([&](int i, int row, int n, int b, int j) {
            ds[i] += carry[i] + total<N, Q>(sums, row, n);
            if (!at.has(row)) return;
            a.dh[(at.step(l, t) + b) * H + j] = rounded(ds[i] * (1 - z[i]) * (1 - h[i] * h[i]));
            a.dzr[(at.step(l, t) + b) * 2 * H + j] = rounded(slope(z[i]) * ds[i] * (s[i] - h[i]));
        });
        syncblock();
        if (thread() == 0) arrive(dhdone);
        fromabove(t - 1);
        await(dhdone, turn, a.count, dead);
        product<N / 8, N / 8>(ofdrs, at, dh, H, H, Wh);
        leave<N>(ofdrs, sums, at);
        at.each([&](int i, int row, int n, int b, int j) {
            const float drs = total<N, Q>(sums, row, n);
            carry[i] = ds[i] * z[i] + drs * r[i];
            if (at.has(row)) a.dzr[(at.step(l, t) + b) * 2 * H + H + j] = rounded(slope(r[i]) * drs * s[i]);
        });
        syncblock();
        if (thread() == 0) arrive(dzrdone);
        fetch(t - 1);
        product<N / 8, N / 8>(ofds, at, dzr, 2 * H, H, Wzr);  // that of z is there since dhdone
        await(dzrdone, turn, a.count, dead);
        product<N / 8, N / 8>(ofds, at, dzr + H, 2 * H, H, Wzr + H * N);
    }
    leave<N>(ofds, sums, at);
    at.each([&](int i, int row, int n, int b, int j) {
        if (at.has(row)) a.ds0[(long(l) * B + b) * H + j] = carry[i] + total<N, Q>(sums, row, n);
    });
}

template <class Q>
bool fits(const Stack& a, int device) {
    return Q::whole && a.H % 32 == 0 && Q::blocks(a.L, a.B, a.H) <= most_blocks(device) && Q::bytes(a.H) <= most_shared(device);
}

// f(tile) for the smallest tile that fits, as then most blocks share the work; false: none does.
template <class F>
bool withtile(const Stack& a, int device, F f) {
    if (fits<Tile<16, 16>>(a, device)) f(Tile<16, 16>());
    else if (fits<Tile<16, 32>>(a, device)) f(Tile<16, 32>());
    else if (fits<Tile<32, 32>>(a, device)) f(Tile<32, 32>());
    else if (fits<Tile<64, 32>>(a, device)) f(Tile<64, 32>());
    else return false;
    return true;
}

const char* launch(bool down, const Stack& a, Stream stream) {
    const char* error = "no tile fits";
    const size_t counters = 64 * (1 + a.L * ((a.B + ROWS - 1) / ROWS)) * sizeof(unsigned);
    withtile(a, current(), [&](auto tile) {
        typedef decltype(tile) Q;
        error = start<Stack>(down ? backward<Q> : forward<Q>, a, Q::blocks(a.L, a.B, a.H), Q::THREADS, Q::bytes(a.H), counters, stream);
    });
    return error;
}

}  // namespace

// Whether a stack of such sizes runs on this card.
extern "C" int rngru_grustack_fits(int device, int L, int B, int H) {
    Stack a = {};
    a.L = L, a.B = B, a.H = H;
    return withtile(a, device, [](auto) {});
}

// The same as functions that XLA calls.
#include "xla/ffi/api/ffi.h"

namespace {
namespace ffi = xla::ffi;
typedef ffi::Buffer<ffi::F32> F32;
typedef ffi::Buffer<ffi::BF16> BF16;
typedef ffi::ResultBuffer<ffi::F32> F32Result;
typedef ffi::ResultBuffer<ffi::BF16> BF16Result;
typedef ffi::ResultBuffer<ffi::U32> Counters;

ffi::Error done(const char* error) { return error ? ffi::Error::Internal(error) : ffi::Error::Success(); }

bf16* of(const BF16& buffer) { return (bf16*)buffer.untyped_data(); }

Stack sizes(const F32& s0, const F32& steps, F32 W, F32 U, Counters count) {
    Stack a = {};
    a.L = s0.dimensions()[0], a.B = s0.dimensions()[1], a.H = s0.dimensions()[2], a.T = steps.dimensions()[0];
    a.W = W.typed_data(), a.U = U.typed_data(), a.count = count->typed_data();
    return a;
}

ffi::Error Forward(STREAM F32 first, F32 W, F32 U, F32 b, F32 s0, BF16 s0b, F32Result s, F32Result last, F32Result zr, F32Result h,
                   BF16Result S, BF16Result rs, Counters count) {
    Stack a = sizes(s0, first, W, U, count);
    a.first = first.typed_data(), a.b = b.typed_data(), a.s0 = s0.typed_data(), a.s0b = of(s0b);
    a.s = s->typed_data(), a.last = last->typed_data(), a.zr = zr->typed_data(), a.h = h->typed_data();
    a.S = of(*S), a.rs = of(*rs);
    return done(launch(false, a, stream));
}

ffi::Error Backward(STREAM F32 W, F32 U, F32 s, F32 zr, F32 h, F32 dtop, F32Result ds0, BF16Result dzr, BF16Result dh,
                    Counters count) {
    Stack a = sizes(*ds0, dtop, W, U, count);
    a.s = s.typed_data(), a.zr = zr.typed_data(), a.h = h.typed_data(), a.dtop = dtop.typed_data();
    a.ds0 = ds0->typed_data(), a.dzr = of(*dzr), a.dh = of(*dh);
    return done(launch(true, a, stream));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(rngru_grustack_forward, Forward,
                              BIND.Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<BF16>().Ret<F32>().Ret<F32>().Ret<F32>()
                                  .Ret<F32>().Ret<BF16>().Ret<BF16>().Ret<ffi::Buffer<ffi::U32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(rngru_grustack_backward, Backward,
                              BIND.Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>().Ret<BF16>().Ret<BF16>()
                                  .Ret<ffi::Buffer<ffi::U32>>());
