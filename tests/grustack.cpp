// The GPU's kernel of kernels/grustack.cu on threads of the processor, one std::thread for each of a GPU's, as functions that XLA calls.
//
//     g++ -std=c++20 -O1 -shared -fPIC -pthread -w -I "$(python -c 'import jax; print(jax.ffi.include_dir())')" tests/grustack.cpp
#define EMULATED

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

struct bf16 {
    uint16_t bits;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct float2 {
    float x, y;
};
typedef void* Stream;
static const Stream stream = nullptr;

#define KERNEL(threads)
#define DEVICE inline
#define SHARED unsigned char* shared = here->shared.data()
#define BIND xla::ffi::Ffi::Bind()
#define STREAM
static const int WARPS = 2;

struct Warp {
    std::barrier<> all{32};
    uint32_t a[32][4], b[32][2];
};
struct Block {
    std::barrier<> all;
    std::vector<unsigned char> shared;
    std::vector<std::unique_ptr<Warp>> warps;
    Block(int threads, size_t bytes) : all(threads), shared(bytes) {
        for (int i = 0; i < threads / 32; i++) warps.push_back(std::make_unique<Warp>());
    }
};
static thread_local Block* here;
static thread_local int thread_, block_;

static int thread() { return thread_; }
static int block() { return block_; }
static void syncblock() { here->all.arrive_and_wait(); }
static bf16 rounded(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
static float half(uint32_t pair, int i) {
    const uint32_t bits = i ? pair & 0xffff0000u : pair << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
static uint4 load(const void* p) {
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
static void arrive(unsigned* count) { std::atomic_ref<unsigned>(*count).fetch_add(1, std::memory_order_acq_rel); }
static unsigned arrived(unsigned* count) {
    std::this_thread::yield();
    return std::atomic_ref<unsigned>(*count).load(std::memory_order_acquire);
}
static void multiply(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    Warp& w = *here->warps[thread() / 32];
    const int lane = thread() % 32;
    const uint32_t a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
    memcpy(w.a[lane], a, sizeof a), memcpy(w.b[lane], b, sizeof b);
    w.all.arrive_and_wait();
    for (int i = 0; i < 4; i++) {  // row lane / 4, and 8 further down; columns 2 (lane % 4) and the next
        const int row = i / 2, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; k++)
            c[i] += half(w.a[lane / 4 * 4 + k % 8 / 2][row + 2 * (k / 8)], k % 2) * half(w.b[column * 4 + k % 8 / 2][k / 8], k % 2);
    }
    w.all.arrive_and_wait();
}

static int current() { return 0; }
static int most_blocks(int device) { return device < 0 ? 0 : 40; }
static size_t most_shared(int device) { return 64 << 10; }

template <class Arguments>
const char* start(void (*kernel)(Arguments), Arguments a, int blocks, int threads, size_t bytes, size_t counters, Stream) {
    memset(a.count, 0, counters);
    std::vector<std::unique_ptr<Block>> all;
    std::vector<std::thread> running;
    std::barrier<> begun(blocks * threads);  // all at once, as on a card
    for (int i = 0; i < blocks; i++) all.push_back(std::make_unique<Block>(threads, bytes));
    for (int i = 0; i < blocks * threads; i++)
        running.emplace_back([&, i] {
            here = all[i / threads].get(), block_ = i / threads, thread_ = i % threads;
            begun.arrive_and_wait();
            kernel(a);
        });
    for (auto& one : running) one.join();
    return nullptr;
}

#include "../kernels/grustack.cu"
