// The one pool of threads, the scratch memory, and the clock of the phases: what every call shares.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "simd.hpp"

namespace rngru {

// A call of the library, while this lives: calls take turns (a mutex), denormals are flushed.
class Call {
    FlushDenormals flush;
public:
    Call();
    ~Call();
};

// Threads worth using for so many FLOP: starting a job costs about a microsecond or two, 20 where the
// others have gone to sleep.
int threads_for(double flop);

void run_job(int n, void (*job)(void*, int thread, int n), void* what);

// Runs f(thread, n) on n threads, the caller being thread 0; returns when all are done.
template <class F>
void parallel(int n, F&& f) {
    run_job(n, [](void* what, int thread, int n) { (*(F*)what)(thread, n); }, (void*)&f);
}

// Hands out the parts of [0, total), of `most` at the most, to the threads that come first. Where a wait
// follows, the last parts get smaller, down to `least`, so that all end together; where other work follows
// (least = 0) they stay equal. Which thread computes a part never matters to the result.
class Parts {
    int64_t next = 0;
public:
    const int64_t total, most, least;
    Parts(int64_t total, int64_t most, int64_t least = 1) : total(total), most(most), least(least) {}
    bool take(int n, int64_t& from, int64_t& to);
};

// Memory that is kept from call to call and only grows. reserve() comes first, and says whether there is
// enough for the take()s that follow (each on a 64-byte boundary).
class Scratch {
    char* memory = nullptr;
    size_t size = 0, used = 0;
public:
    template <class A = float>
    static size_t bytes(int64_t n) {
        return ((size_t)n * sizeof(std::remove_reference_t<A>) + 63) / 64 * 64 + 64;
    }
    bool reserve(size_t bytes);
    template <class A = float>
    A* take(int64_t n) {
        A* p = (A*)(memory + used);
        used += bytes<A>(n);
        return p;
    }
    template <class A>
    void take(A*& p, int64_t n) {
        p = take<A>(n);
    }
};
extern Scratch scratch;

enum Phase { PACK, TABLE, INPUTS, FORWARD, BACKWARD, WEIGHTS, OUTPUT, UPDATE, DROPOUT, LAYERNORM, PHASES };

// Adds the time that it lives to a phase, where somebody asked for the profile.
class Timer {
    const Phase phase;
    double start;
public:
    explicit Timer(Phase);
    ~Timer();
};
}  // namespace rngru
