// The pool: threads that wait for work, spinning for a moment and then asleep; scratch memory; the clock.
//
// A training step is some twenty jobs, microseconds to tens of milliseconds each. A thread that sleeps takes
// 20 to 50 microseconds to wake, so it spins for longer than Python takes between two kernels; a shell that waits at its
// prompt burns nothing. Nothing here is ever destroyed: the process may exit with the threads asleep.
#include "pool.hpp"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "amx.hpp"
#include "rngru.h"

namespace rngru {
namespace {

constexpr double SPIN = 300e-6;  // seconds before a waiting thread sleeps
constexpr int MOST = 256;        // threads, the caller's included

// The state below is atomic where a thread reads it outside the mutexes; the order of "raise the flag, then
// look at the other's" is what sequential consistency is needed for: none sleeps through its signal.
struct alignas(64) Seat {
    int go, asleep;
    pthread_cond_t wake;
};
Seat seats[MOST];  // seats[0] is the caller's: `go` counts the threads of the job still at work

pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER;  // held through each call of the library
pthread_mutex_t bed = PTHREAD_MUTEX_INITIALIZER;    // held to fall asleep and to wake somebody
pthread_once_t prepared = PTHREAD_ONCE_INIT;

int wanted = 0;   // threads that a call may use; 0: not chosen yet
int started = 0;  // threads of the pool
void (*job)(void*, int, int);
void* job_data;
int job_threads;

int get(const int& flag) { return __atomic_load_n(&flag, __ATOMIC_SEQ_CST); }
void set(int& flag, int value) { __atomic_store_n(&flag, value, __ATOMIC_SEQ_CST); }

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Waits until the seat's `go` is 0 (the caller) or is not 0 (a thread of the pool).
void wait(Seat& seat, bool until) {
    const double end = now() + SPIN;
    do
        for (int i = 0; i < 32; ++i, pause())
            if ((get(seat.go) != 0) == until) return;
    while (now() < end);
    pthread_mutex_lock(&bed);
    set(seat.asleep, 1);
    while ((get(seat.go) != 0) != until) pthread_cond_wait(&seat.wake, &bed);
    set(seat.asleep, 0);
    pthread_mutex_unlock(&bed);
}

void wake(Seat& seat) {
    if (!get(seat.asleep)) return;
    pthread_mutex_lock(&bed);
    pthread_cond_signal(&seat.wake);
    pthread_mutex_unlock(&bed);
}

void* work(void* number) {
    const int thread = (int)(intptr_t)number;
    FlushDenormals flush;
    for (Seat& seat = seats[thread];;) {
        wait(seat, true);
        set(seat.go, 0);
        job(job_data, thread, job_threads);
        release_tiles();
        if (__atomic_sub_fetch(&seats[0].go, 1, __ATOMIC_SEQ_CST) == 0) wake(seats[0]);
    }
}

// Starts threads until the pool has n, or as many as the system gives; returns how many it has.
int start(int n) {
    if (started >= n) return started;
    sigset_t all, before;  // signals (Ctrl-C) belong to the threads that the program knows
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t id;
    while (started < n && pthread_create(&id, &detached, work, (void*)(intptr_t)(started + 1)) == 0) ++started;
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
}

// A fork copies only the thread that forks. It waits for the call in progress; the child starts its own pool
// when it needs one.
void before_fork() { pthread_mutex_lock(&calls); }
void after_fork() { pthread_mutex_unlock(&calls); }
void reset() {
    started = 0;
    pthread_mutex_init(&bed, nullptr);
    for (Seat& seat : seats) {
        seat.go = seat.asleep = 0;
        pthread_cond_init(&seat.wake, nullptr);
    }
}
void after_fork_in_child() {
    reset();
    pthread_mutex_init(&calls, nullptr);
}
void prepare() {
    reset();
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

bool profiling = false;
double seconds[PHASES];
const char* const phase_names[PHASES] = {"pack weights", "table", "inputs x U", "forward steps", "backward steps",
                                         "dX, dU, dW", "output layer", "update", "dropout", "layer norm"};
}  // namespace

Call::Call() {
    pthread_once(&prepared, prepare);
    pthread_mutex_lock(&calls);
    if (wanted == 0) wanted = rngru_threads_available();
}
Call::~Call() { pthread_mutex_unlock(&calls); }

int threads_for(double flop) { return flop < 400e3 ? 1 : wanted; }

void run_job(int n, void (*run)(void*, int, int), void* data) {
    if (n > 1 && start(n - 1) < n - 1) n = started + 1;
    if (n > 1) {
        job = run;
        job_data = data;
        job_threads = n;
        set(seats[0].go, n - 1);
        for (int i = 1; i < n; ++i) {
            set(seats[i].go, 1);
            wake(seats[i]);
        }
    }
    run(data, 0, n);
    release_tiles();
    if (n > 1) wait(seats[0], false);
}

bool Parts::take(int n, int64_t& from, int64_t& to) {
    from = __atomic_load_n(&next, __ATOMIC_RELAXED);
    do {
        if (from >= total) return false;
        const int64_t left = total - from, equal = (left + most - 1) / most;  // parts, were all of the same size
        int64_t size = (left + equal - 1) / equal;
        if (n > 1 && least > 0 && size > left / (2 * n)) size = left / (2 * n) > least ? left / (2 * n) : least;
        to = from + size < total ? from + size : total;
    } while (!__atomic_compare_exchange_n(&next, &from, to, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

bool Scratch::reserve(size_t bytes) {
    used = 0;
    if (bytes <= size) return true;
    free(memory);
    memory = nullptr;
    size = 0;
    constexpr size_t huge = 2 << 20;  // huge pages: a panel's rows lie in as many pages as it has columns of tiles
    bytes = (bytes + huge - 1) / huge * huge;
    void* p = nullptr;
    if (posix_memalign(&p, huge, bytes) != 0) return false;
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    memory = (char*)p;
    size = bytes;
    return true;
}
Scratch scratch;

Timer::Timer(Phase phase) : phase(phase), start(profiling ? now() : 0) {}
Timer::~Timer() {
    if (profiling) seconds[phase] += now() - start;
}
}  // namespace rngru

using namespace rngru;

int rngru_set_threads(int n) {
    Call call;
    wanted = n < 1 ? rngru_threads_available() : n < MOST ? n : MOST;
    return wanted;
}

int rngru_get_threads(void) {
    Call call;
    return wanted;
}

const char* rngru_isa(void) { return ISA; }
int rngru_accelerates(int precision) {
    if (precision != RNGRU_BFLOAT16) return 0;
#if defined(RNGRU_TILES)
    return tiles_permitted();
#elif defined(RNGRU_BF16)
    return !__builtin_cpu_is("intel");  // there a product of pairs takes the time of the two of floats that it replaces
#else
    return 0;
#endif
}

void rngru_profile(int on) {
    Call call;
    profiling = on;
    for (double& s : seconds)
        if (on) s = 0;
}

int rngru_profile_read(const char** names, double* times) {
    Call call;
    for (int i = 0; i < PHASES; ++i) {
        if (names) names[i] = phase_names[i];
        if (times) times[i] = seconds[i];
    }
    return PHASES;
}
