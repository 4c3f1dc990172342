// The kernels against plain loops in float64: every function of rngru.h, over random sizes that nothing divides, with 1 to 4 threads.
//
//   kernels [cases] [seed]      prints the largest error of each output and exits 1 where one is beyond its tolerance
//
// Needs nothing but the kernels, so that it runs where Python doesn't: under sanitizers, and on an emulated processor. Outputs lie
// one number off the vectors' boundary between fences; under AddressSanitizer they end where their memory does.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "../kernels/rngru.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

namespace {
typedef std::vector<double> Doubles;

double bfloat16(double v) {
    int exponent;
    const double mantissa = frexp(v, &exponent);
    return ldexp(nearbyint(mantissa * 256) / 256, exponent);
}
// What becomes of an operand of a product, and what may be off then, as a share of an output's norm: of bfloat16 more, since a sum
// that lies on the edge between two of them is rounded to the other one here and there, and most of int8, whose points lie furthest apart.
struct Precision {
    const char* name;
    int value;
    double tolerance;
    double (*operand)(double);

    Doubles operands(Doubles values) const {
        for (double& v : values) v = operand(v);
        return values;
    }
    // A matrix that generates text: of int8 each column on points of its own.
    Doubles weights(Doubles matrix, int64_t columns) const {
        if (value != RNGRU_INT8) return operands(matrix);
        for (size_t column = 0; column < (size_t)columns; ++column) {
            double most = 0;
            for (size_t i = column; i < matrix.size(); i += (size_t)columns) most = std::max(most, fabs(matrix[i]));
            for (size_t i = column; i < matrix.size(); i += (size_t)columns) matrix[i] = nearbyint(matrix[i] * 127 / most) * most / 127;
        }
        return matrix;
    }
    // What a layer passes up, multiplied by such: of int8 normalised vectors each has points of its own.
    Doubles passed(Doubles vector, bool layernorm) const {
        double most = 1;
        if (value == RNGRU_INT8 && layernorm) {
            most = 1e-30;
            for (double v : vector) most = std::max(most, fabs(v));
        }
        for (double& v : vector) v = most * operand(v / most);
        return vector;
    }
};
const Precision FLOAT32 = {"float32", RNGRU_FLOAT32, 1e-5, [](double v) { return v; }};
const Precision BFLOAT16 = {"bfloat16", RNGRU_BFLOAT16, 2e-3, bfloat16};
const Precision INT8 = {"int8", RNGRU_INT8, 1e-2, [](double v) { return nearbyint(v * 63) / 63; }};  // of states, which are 1 at the most

uint64_t random_state;
uint64_t random_bits() {  // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
double uniform() { return (double)(random_bits() >> 11) * 0x1p-53; }
int64_t below(int64_t n) { return (int64_t)(random_bits() % (uint64_t)n); }
int64_t up_to(int64_t most) {  // a size: often 1, or beside a multiple of a vector's or panel's width
    static const int64_t edges[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 129};
    const int64_t n = below(2) ? edges[below(sizeof edges / sizeof *edges)] : 1 + below(most);
    return n < most ? n : most;
}

// Numbers between fences.
template <class A>
class Array {
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t BEHIND = 0;
#else
    static constexpr size_t BEHIND = 40;
#endif
    static constexpr int FENCE = 77;
    std::vector<A> memory;
public:
    explicit Array(int64_t n = 0) : memory((size_t)n + 1 + BEHIND, (A)FENCE) {}
    int64_t size() const { return (int64_t)(memory.size() - 1 - BEHIND); }
    A* data() { return memory.data() + 1; }
    const A* data() const { return memory.data() + 1; }
    A& operator[](int64_t i) { return data()[i]; }
    A operator[](int64_t i) const { return data()[i]; }
    bool fenced() const {
        bool whole = memory[0] == (A)FENCE;
        for (size_t i = memory.size() - BEHIND; i < memory.size(); ++i) whole = whole && memory[i] == (A)FENCE;
        return whole;
    }
    Doubles doubles() const { return Doubles(data(), data() + size()); }
    bool operator==(const Array& other) const { return !memcmp(memory.data(), other.memory.data(), memory.size() * sizeof(A)); }
};
typedef Array<float> Floats;
typedef Array<int32_t> Ints;

Floats drawn(int64_t n, double scale = 1) {
    Floats a(n);
    for (int64_t i = 0; i < n; ++i) a[i] = (float)(scale * (2 * uniform() - 1));
    return a;
}
Ints drawn_below(int64_t n, int64_t end) {
    Ints a(n);
    for (int64_t i = 0; i < n; ++i) a[i] = (int32_t)below(end);
    return a;
}

// --- What comes out ----------------------------------------------------------------------------------------------

std::map<std::string, double> worst;
std::string situation;  // of the case at work
int failures = 0;

void fail(const std::string& what) {
    if (++failures <= 20) printf("FAILED: %s (%s)\n", what.c_str(), situation.c_str());
}
void within(const std::string& name, double error, double tolerance) {
    if (!(error <= worst[name])) worst[name] = error;
    if (!(error <= tolerance)) fail(name + " is off by " + std::to_string(error / tolerance) + " tolerances");
}
// Norm-wise, and numbers below `small` count as of that size: what rounding is to a sum depends on its addends, not on itself.
void compare(const std::string& name, const Floats& got, const Doubles& expected, double tolerance, double small = 0.05) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < got.size(); ++i) {
        const double e = expected[(size_t)i], difference = (double)got[i] - e;
        error += difference * difference;
        size += e * e;
    }
    within(name, sqrt(error) / (sqrt(size) + small * sqrt((double)got.size())), tolerance);
    if (!got.fenced()) fail(name + " is written beyond its end");
}
void same(const std::string& name, bool equal) {
    if (!equal) fail(name);
}

// --- A GRU layer -------------------------------------------------------------------------------------------------

struct Layer {
    const Precision& precision;
    int64_t T, B, K, H, N;
    int input;
    Floats X, E, a, s0, U, W, b;
    Ints x;

    Layer(const Precision& precision, int64_t T, int64_t B, int64_t K, int64_t H, int64_t N, int input, double scale)
        : precision(precision), T(T), B(B), K(K), H(H), N(N), input(input), s0(drawn(B * H)),
          W(drawn(3 * H * H, scale * sqrt(3. / (double)H))), b(drawn(3 * H, scale)) {
        const bool onehot = input == RNGRU_ONEHOT;
        U = drawn(K * 3 * H, onehot ? 1 : scale * sqrt(3. / (double)K));
        if (input == RNGRU_VECTORS) X = drawn(T * B * K);
        else x = drawn_below(T * B, onehot ? K : N);
        if (input == RNGRU_ENCODED) E = drawn(N * K), a = drawn(K);
    }

    // The vector that place (t, row) reads. It is an operand where it is given; x U of a character is computed in float32.
    Doubles vector(int64_t place) const {
        Doubles v((size_t)K);
        for (int64_t k = 0; k < K; ++k) {
            if (input == RNGRU_VECTORS) v[(size_t)k] = precision.operand(X[place * K + k]);
            if (input == RNGRU_ONEHOT) v[(size_t)k] = x[place] == k;
            if (input == RNGRU_ENCODED) v[(size_t)k] = tanh((double)E[x[place] * K + k] + (double)a[k]);
        }
        return v;
    }
    Doubles weights_of_inputs(Doubles U) const { return input == RNGRU_VECTORS ? precision.operands(U) : U; }
    rngru_layer call() const {
        rngru_layer l = {};
        l.precision = precision.value, l.T = T, l.B = B, l.K = K, l.H = H, l.N = N, l.input = input;
        l.X = X.data(), l.x = x.data(), l.E = E.data(), l.a = a.data();
        l.s0 = s0.data(), l.U = U.data(), l.W = W.data(), l.b = b.data();
        return l;
    }
};

double hard_sigmoid(double v) { return std::min(std::max(0.2 * v + 0.5, 0.), 1.); }

// State and gates behind one place, from the vector x that it reads and the state s before it. x, U and W are operands already.
void step(const Precision& precision, int64_t K, int64_t H, const double* x, const double* s, const Doubles& U, const Doubles& W,
          const Doubles& b, double* state, double* gates) {
    auto sums = [&](int gate, const double* state) {
        for (int64_t i = 0; i < H; ++i) gates[gate * H + i] = b[(size_t)(gate * H + i)];
        for (int64_t k = 0; k < K; ++k)
            for (int64_t i = 0; i < H && x[k] != 0; ++i) gates[gate * H + i] += x[k] * U[(size_t)(k * 3 * H + gate * H + i)];
        for (int64_t k = 0; k < H; ++k)
            for (int64_t i = 0; i < H; ++i)
                gates[gate * H + i] += precision.operand(state[k]) * W[(size_t)(k * 3 * H + gate * H + i)];
    };
    Doubles rs((size_t)H);
    sums(0, s);
    sums(1, s);
    for (int64_t i = 0; i < 2 * H; ++i) gates[i] = hard_sigmoid(gates[i]);
    for (int64_t i = 0; i < H; ++i) rs[(size_t)i] = gates[H + i] * s[i];
    sums(2, rs.data());
    for (int64_t i = 0; i < H; ++i) {
        const double h = gates[2 * H + i] = tanh(gates[2 * H + i]);
        state[i] = (1 - gates[i]) * h + gates[i] * s[i];
    }
}

struct States {
    Doubles S, G;
};
States forward(const Layer& l, const Doubles& s0, const Doubles& U_, const Doubles& W_, const Doubles& b) {
    const Doubles U = l.weights_of_inputs(U_), W = l.precision.operands(W_);
    States out = {Doubles((size_t)(l.T * l.B * l.H)), Doubles((size_t)(l.T * l.B * 3 * l.H))};
    for (int64_t place = 0; place < l.T * l.B; ++place) {
        const double* const s = place < l.B ? s0.data() + place * l.H : out.S.data() + (place - l.B) * l.H;
        step(l.precision, l.K, l.H, l.vector(place).data(), s, U, W, b, out.S.data() + place * l.H, out.G.data() + place * 3 * l.H);
    }
    return out;
}

struct Gradients {
    Doubles X, E, a, s0, U, W, b;
};
// By the chain rule, place by place from the last one, with the derivative of a gate that is exactly 0 or 1 taken as 0. The gradient
// before a gate's function is an operand wherever it goes.
Gradients backward(const Layer& l, const Doubles& S, const Doubles& G, const Doubles& dS) {
    const int64_t T = l.T, B = l.B, K = l.K, H = l.H;
    auto zeros = [](int64_t n) { return Doubles((size_t)n); };
    Gradients d = {zeros(T * B * K), zeros(l.N * K), zeros(K), zeros(B * H), zeros(K * 3 * H), zeros(H * 3 * H), zeros(3 * H)};
    const Doubles U = l.weights_of_inputs(l.U.doubles()), W = l.precision.operands(l.W.doubles()), s0 = l.s0.doubles();
    auto operand = l.precision.operand;
    Doubles back = zeros(B * H), gate = zeros(3 * H), drs = zeros(H), dx = zeros(K);
    for (int64_t place = T * B - 1; place >= 0; --place) {
        const double* const g = &G[(size_t)(place * 3 * H)];
        const double* const s = place < B ? &s0[(size_t)(place * H)] : &S[(size_t)((place - B) * H)];
        double* const ds = &back[(size_t)(place % B * H)];
        auto slope = [](double gate) { return gate == 0 || gate == 1 ? 0 : 0.2; };
        for (int64_t i = 0; i < H; ++i) {
            ds[i] += dS[(size_t)(place * H + i)];
            gate[(size_t)i] = operand(ds[i] * (s[i] - g[2 * H + i]) * slope(g[i]));
            gate[(size_t)(2 * H + i)] = operand(ds[i] * (1 - g[i]) * (1 - g[2 * H + i] * g[2 * H + i]));
        }
        for (int64_t k = 0; k < H; ++k) {
            drs[(size_t)k] = 0;
            for (int64_t i = 2 * H; i < 3 * H; ++i) drs[(size_t)k] += gate[(size_t)i] * W[(size_t)(k * 3 * H + i)];
            gate[(size_t)(H + k)] = operand(drs[(size_t)k] * s[k] * slope(g[H + k]));
        }
        for (int64_t k = 0; k < H; ++k) {
            double sum = ds[k] * g[k] + drs[(size_t)k] * g[H + k];
            for (int64_t i = 0; i < 2 * H; ++i) sum += gate[(size_t)i] * W[(size_t)(k * 3 * H + i)];
            ds[k] = sum;
            for (int64_t i = 0; i < 3 * H; ++i)
                d.W[(size_t)(k * 3 * H + i)] += operand(i < 2 * H ? s[k] : g[H + k] * s[k]) * gate[(size_t)i];
        }
        const Doubles x = l.vector(place);
        for (int64_t i = 0; i < 3 * H; ++i) d.b[(size_t)i] += gate[(size_t)i];
        for (int64_t k = 0; k < K; ++k) {
            dx[(size_t)k] = 0;
            for (int64_t i = 0; i < 3 * H; ++i) {
                dx[(size_t)k] += gate[(size_t)i] * U[(size_t)(k * 3 * H + i)];
                if (x[(size_t)k] != 0) d.U[(size_t)(k * 3 * H + i)] += x[(size_t)k] * gate[(size_t)i];
            }
            d.X[(size_t)(place * K + k)] = dx[(size_t)k];
            if (l.input != RNGRU_ENCODED) continue;
            const double da = dx[(size_t)k] * (1 - x[(size_t)k] * x[(size_t)k]);
            d.E[(size_t)(l.x[place] * K + k)] += da;
            d.a[(size_t)k] += da;
        }
    }
    d.s0 = back;
    return d;
}

const char* const INPUTS[] = {"vectors", "onehot", "encoded"};

void test_gru(const Precision& precision, int threads) {
    const int input = (int)below(3);
    const bool longer = below(5) == 0;  // than a block of the products over all places
    const int64_t T = longer ? 20 + below(30) : 1 + below(7), B = up_to(20), N = up_to(80);
    const int64_t K = up_to(longer ? 40 : 140), H = up_to(longer ? 70 : 140);
    const bool large = !longer && precision.value == RNGRU_FLOAT32 && below(4) == 0;
    // With large weights, over many steps, a rounding grows without bound.
    Layer l(precision, T, B, K, H, N, input, longer ? 0.5 : large ? 6 : 1);
    situation = std::string(precision.name) + ", " + INPUTS[input] + ", T " + std::to_string(T) + ", B " + std::to_string(B) + ", K " +
                std::to_string(K) + ", H " + std::to_string(H) + ", N " + std::to_string(N) + ", threads " + std::to_string(threads);
    const std::string name = std::string("gru ") + precision.name;
    rngru_layer call = l.call();
    Floats S(T * B * H), G(T * B * 3 * H);
    call.S = S.data(), call.G = G.data();
    same("gru forward gives 0", rngru_gru_forward(&call) == 0);
    const States expected = forward(l, l.s0.doubles(), l.U.doubles(), l.W.doubles(), l.b.doubles());
    compare(name + " forward S", S, expected.S, precision.tolerance);
    compare(name + " forward G", G, expected.G, precision.tolerance);
    Floats again_S(T * B * H), again_G(T * B * 3 * H);
    call.S = again_S.data(), call.G = again_G.data();
    rngru_set_threads(1);
    rngru_gru_forward(&call);
    same("gru forward: the same bits with any number of threads", again_S == S && again_G == G);

    S = drawn(T * B * H);  // any states and gates, some gates closed
    G = drawn(T * B * 3 * H);
    for (int64_t place = 0; place < T * B; ++place)
        for (int64_t i = 0; i < 2 * H; ++i) {
            float& gate = G[place * 3 * H + i];
            gate = below(4) ? fabsf(gate) : (float)below(2);
        }
    const Floats dS = drawn(T * B * H);
    const bool wants_dX = input == RNGRU_VECTORS && below(5) > 0;
    struct Written {
        Floats X, E, a, s0, U, W, b;
    } got[2];
    for (int i = 0; i < 2; ++i) {
        got[i] = {Floats(T * B * K), Floats(N * K), Floats(K), Floats(B * H), Floats(K * 3 * H), Floats(H * 3 * H), Floats(3 * H)};
        call.S = S.data(), call.G = G.data(), call.dS = dS.data();
        call.dX = wants_dX ? got[i].X.data() : nullptr;
        call.dE = got[i].E.data(), call.da = got[i].a.data();
        call.ds0 = got[i].s0.data(), call.dU = got[i].U.data(), call.dW = got[i].W.data(), call.db = got[i].b.data();
        rngru_set_threads(i ? 1 : threads);
        same("gru backward gives 0", rngru_gru_backward(&call) == 0);
    }
    const Gradients d = backward(l, S.doubles(), G.doubles(), dS.doubles());
    if (wants_dX) compare(name + " backward dX", got[0].X, d.X, precision.tolerance);
    if (input == RNGRU_ENCODED) {
        compare(name + " backward dE", got[0].E, d.E, precision.tolerance);
        // da is the sum of dE's rows, and may be small where these are large.
        double squares = 0;
        for (double v : d.E) squares += v * v;
        compare(name + " backward da", got[0].a, d.a, precision.tolerance, 0.05 + sqrt(squares / (double)K));
    }
    compare(name + " backward ds0", got[0].s0, d.s0, precision.tolerance);
    compare(name + " backward dU", got[0].U, d.U, precision.tolerance);
    compare(name + " backward dW", got[0].W, d.W, precision.tolerance);
    compare(name + " backward db", got[0].b, d.b, precision.tolerance);
    same("gru backward: the same bits with any number of threads",
         got[0].X == got[1].X && got[0].E == got[1].E && got[0].a == got[1].a && got[0].s0 == got[1].s0 && got[0].U == got[1].U &&
             got[0].W == got[1].W && got[0].b == got[1].b);
}

// The loops above against each other: the gradient of sum(dS * S) is what central differences say.
void test_the_gradients_of_the_loops() {
    situation = "the loops in float64";
    const Layer l(FLOAT32, 3, 2, 4, 5, 1, RNGRU_VECTORS, 0.5);
    const Doubles dS = drawn(l.T * l.B * l.H).doubles();
    Doubles values[] = {l.s0.doubles(), l.U.doubles(), l.W.doubles(), l.b.doubles()};
    const States states = forward(l, values[0], values[1], values[2], values[3]);
    const Gradients d = backward(l, states.S, states.G, dS);
    const Doubles* gradients[] = {&d.s0, &d.U, &d.W, &d.b};
    for (int which = 0; which < 4; ++which)
        for (size_t i = 0; i < values[which].size(); ++i) {
            double costs[2];
            for (int side = 0; side < 2; ++side) {
                values[which][i] += side ? -2e-6 : 1e-6;
                const Doubles S = forward(l, values[0], values[1], values[2], values[3]).S;
                costs[side] = 0;
                for (size_t k = 0; k < S.size(); ++k) costs[side] += dS[k] * S[k];
            }
            values[which][i] += 1e-6;
            within("central differences", fabs((costs[0] - costs[1]) / 2e-6 - (*gradients[which])[i]), 1e-7);
        }
}

// --- The output layer --------------------------------------------------------------------------------------------

void test_softmax_loss(const Precision& precision, int threads, bool large) {
    const int64_t M = large ? 300 + below(300) : up_to(200), H = up_to(large ? 20 : 140), V = large ? 9000 + below(9000) : up_to(300);
    situation = "M " + std::to_string(M) + ", H " + std::to_string(H) + ", V " + std::to_string(V) + ", threads " + std::to_string(threads);
    const double scale = below(4) ? 1 : 20;
    const Floats S = drawn(M * H), W = drawn(H * V, scale * sqrt(3. / (double)H)), c = drawn(V, scale);
    const Ints y = drawn_below(M, V);
    double expected = 0;
    Doubles dS((size_t)(M * H)), dW((size_t)(H * V)), dc((size_t)V), p((size_t)V);
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t v = 0; v < V; ++v) p[(size_t)v] = c[v];
        for (int64_t i = 0; i < H; ++i)
            for (int64_t v = 0; v < V; ++v) p[(size_t)v] += (double)S[m * H + i] * (double)W[i * V + v];
        const double most = *std::max_element(p.begin(), p.end()), target = p[(size_t)y[m]];
        double sum = 0;
        for (double& q : p) sum += q = exp(q - most);
        expected += (most + log(sum) - target) / (double)M;
        for (double& q : p) q /= sum * (double)M;
        p[(size_t)y[m]] -= 1 / (double)M;
        for (int64_t v = 0; v < V; ++v) dc[(size_t)v] += p[(size_t)v];
        for (int64_t i = 0; i < H; ++i)
            for (int64_t v = 0; v < V; ++v) {
                dS[(size_t)(m * H + i)] += p[(size_t)v] * (double)W[i * V + v];
                dW[(size_t)(i * V + v)] += p[(size_t)v] * (double)S[m * H + i];
            }
    }
    double loss = -1, alone = -1, again = -1;
    Floats got[2][3];
    for (int i = 0; i < 2; ++i) {
        got[i][0] = Floats(M * H), got[i][1] = Floats(H * V), got[i][2] = Floats(V);
        rngru_set_threads(i ? 1 : threads);
        same("softmax_loss gives 0", rngru_softmax_loss(M, H, V, S.data(), W.data(), c.data(), y.data(), i ? &again : &loss,
                                                        got[i][0].data(), got[i][1].data(), got[i][2].data()) == 0);
    }
    rngru_softmax_loss(M, H, V, S.data(), W.data(), c.data(), y.data(), &alone, nullptr, nullptr, nullptr);
    within("softmax_loss", fabs(loss - expected) / (fabs(expected) + 0.1), precision.tolerance);
    compare("softmax_loss dS", got[0][0], dS, precision.tolerance, 1e-3);
    compare("softmax_loss dV", got[0][1], dW, precision.tolerance, 1e-3);
    compare("softmax_loss dc", got[0][2], dc, precision.tolerance, 1e-3);
    same("softmax_loss: the same bits with any number of threads, and without gradients",
         loss == again && loss == alone && got[0][0] == got[1][0] && got[0][1] == got[1][1] && got[0][2] == got[1][2]);
}

// --- The update --------------------------------------------------------------------------------------------------

void test_update(int threads) {
    const int64_t count = 1 + below(3);
    rngru_optimizer u = {};
    u.optimizer = (int)below(4), u.clipping = (int)below(2), u.count = count;
    const bool has_m = u.optimizer != RNGRU_SGD, has_g = u.optimizer != RNGRU_RMSPROP, averaged = below(2);
    u.learnrate = 0.01 + 0.05 * uniform(), u.decay = 0.9, u.beta1 = 0.9, u.beta2 = 0.99, u.momentum = 0.8, u.weight_decay = 0.3, u.clip = 2;
    u.regcost = below(2) ? 0.1 : 0, u.ema = below(2) ? 0.99 : 0.2, u.updates = (double)below(40), u.cacheupdates = (double)below(40);
    situation = "optimizer " + std::to_string(u.optimizer) + ", clipping " + std::to_string(u.clipping) + ", averaged " +
                std::to_string(averaged) + ", threads " + std::to_string(threads);
    std::vector<Floats> p, m, g, e, d;
    std::vector<int64_t> n;
    const Floats w = drawn(count);
    const double scale = below(3) ? 4 : 0.01;
    int64_t elements = 0;
    for (int64_t i = 0; i < count; ++i) {
        n.push_back(below(3) ? up_to(200) : 4090 + below(10000));
        elements += n.back();
        p.push_back(drawn(n.back())), m.push_back(drawn(n.back())), g.push_back(drawn(n.back())), e.push_back(drawn(n.back()));
        d.push_back(drawn(n.back(), scale));
        for (int64_t k = 0; k < n.back(); ++k) m.back()[k] = fabsf(m.back()[k]);
    }
    double squares = 0;
    int64_t outside = 0;
    std::vector<Doubles> slopes;
    for (size_t i = 0; i < n.size(); ++i) {
        slopes.push_back(d[i].doubles());
        for (size_t k = 0; k < slopes[i].size(); ++k) {
            double& slope = slopes[i][k];
            slope += u.regcost * (double)w[(int64_t)i] * (double)p[i][(int64_t)k];
            squares += slope * slope;
            outside += fabs(slope) > u.clip;
        }
    }
    const double norm = sqrt(squares), t = u.cacheupdates + 1, follow = 1 - std::min(u.ema, (1 + u.updates) / (10 + u.updates));
    const double share = u.clipping == RNGRU_VALUE ? (double)outside / (double)elements : norm > u.clip;
    struct Expected {
        Doubles p, m, g, e;
    };
    std::vector<Expected> expected;
    for (size_t i = 0; i < n.size(); ++i) {
        Expected x = {p[i].doubles(), m[i].doubles(), g[i].doubles(), e[i].doubles()};
        for (size_t k = 0; k < x.p.size(); ++k) {
            double slope = slopes[i][k];
            if (u.clipping == RNGRU_VALUE) slope = std::min(std::max(slope, -u.clip), u.clip);
            else if (norm > u.clip) slope *= u.clip / norm;
            if (u.optimizer == RNGRU_RMSPROP) {
                x.m[k] = u.decay * x.m[k] + (1 - u.decay) * slope * slope;
                x.p[k] -= u.learnrate * slope / sqrt(x.m[k] + 1e-6);
            } else if (u.optimizer == RNGRU_SGD) {
                x.g[k] = u.momentum * x.g[k] + slope;
                x.p[k] -= u.learnrate * x.g[k];
            } else {
                x.g[k] = u.beta1 * x.g[k] + (1 - u.beta1) * slope;
                x.m[k] = u.beta2 * x.m[k] + (1 - u.beta2) * slope * slope;
                if (u.optimizer == RNGRU_ADAMW) x.p[k] *= 1 - u.learnrate * u.weight_decay * (double)w[(int64_t)i];
                x.p[k] -= u.learnrate * (x.g[k] / (1 - pow(u.beta1, t))) / (sqrt(x.m[k] / (1 - pow(u.beta2, t))) + 1e-8);
            }
            x.e[k] += follow * (x.p[k] - x.e[k]);
        }
        expected.push_back(x);
    }
    std::vector<float*> ps, ms, gs, es;
    std::vector<const float*> ds;
    for (size_t i = 0; i < n.size(); ++i) {
        ps.push_back(p[i].data()), ms.push_back(m[i].data()), gs.push_back(g[i].data()), es.push_back(e[i].data());
        ds.push_back(d[i].data());
    }
    u.n = n.data(), u.w = w.data(), u.p = ps.data(), u.d = ds.data();
    u.m = has_m ? ms.data() : nullptr, u.g = has_g ? gs.data() : nullptr, u.e = averaged ? es.data() : nullptr;
    rngru_set_threads(threads);
    same("update gives 0", rngru_update(&u) == 0);
    for (size_t i = 0; i < n.size(); ++i) {
        compare("update p", p[i], expected[i].p, 1e-5);
        if (has_m) compare("update m", m[i], expected[i].m, 1e-5);
        if (has_g) compare("update g", g[i], expected[i].g, 1e-5);
        if (averaged) compare("update e", e[i], expected[i].e, 1e-5);
    }
    within("update norm", fabs(u.norm - norm) / norm, 1e-6);
    within("update share", fabs(u.share - share), 1e-4);
}

// --- Dropout -----------------------------------------------------------------------------------------------------

// Four words of Philox4x32-10.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    std::copy(counter, counter + 4, words);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * words[0], p1 = (uint64_t)0xCD9E8D57u * words[2];
        const uint32_t next[] = {(uint32_t)(p1 >> 32) ^ words[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ words[3] ^ k1, (uint32_t)p0};
        std::copy(next, next + 4, words);
    }
}

void test_dropout(int threads) {
    const int64_t n = below(4) ? up_to(2000) : 20000 + below(50000);
    situation = "n " + std::to_string(n) + ", threads " + std::to_string(threads);
    const uint64_t seed = random_bits(), updates = below(2) ? random_bits() : (uint64_t)below(100);
    const uint32_t layer = (uint32_t)below(5), threshold = below(8) ? (uint32_t)random_bits() : 0;
    const Floats S = drawn(n);
    Floats out(n), in_place = S;
    rngru_set_threads(threads);
    same("dropout gives 0", rngru_dropout(n, S.data(), out.data(), threshold, 1.25f, seed, updates, layer) == 0);
    same("dropout gives 0", rngru_dropout(n, in_place.data(), in_place.data(), threshold, 1.25f, seed, updates, layer) == 0);
    same("dropout in place", in_place == out && out.fenced());
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t counter[4] = {(uint32_t)(i / 4), layer, (uint32_t)updates, (uint32_t)(updates >> 32)};
        uint32_t words[4];
        philox(counter, key, words);
        wrong += out[i] != (words[i % 4] >= threshold ? S[i] * 1.25f : 0);
    }
    within("dropout, wrong elements", (double)wrong, 0);
}

// The known answers of Random123, the authors' own library.
void test_the_words_of_the_loop() {
    situation = "the loop of Philox";
    const uint32_t counters[2][4] = {{0, 0, 0, 0}, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
    const uint32_t keys[2][2] = {{0, 0}, {0xa4093822, 0x299f31d0}};
    const uint32_t answers[2][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 2; ++i) {
        uint32_t words[4];
        philox(counters[i], keys[i], words);
        same("Philox", std::equal(words, words + 4, answers[i]));
    }
}

// --- Layer normalisation ------------------------------------------------------------------------------------------

void normalise(const double* s, int64_t H, double* n) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < H; ++i) mean += s[i] / (double)H;
    for (int64_t i = 0; i < H; ++i) variance += (s[i] - mean) * (s[i] - mean) / (double)H;
    for (int64_t i = 0; i < H; ++i) n[i] = (s[i] - mean) / sqrt(variance + 1e-5);
}

// The gradient by the chain rule through every mean: N_i = c_i q with c_i = s_i - mean, q = (mean of c^2 + 1e-5)^-1/2.
void test_layer_norm(int threads) {
    const int64_t M = below(3) ? up_to(60) : 1000 + below(1000), H = up_to(300);
    situation = "M " + std::to_string(M) + ", H " + std::to_string(H) + ", threads " + std::to_string(threads);
    const Floats S = drawn(M * H), dN = drawn(M * H);
    Floats N(M * H), dS(M * H), N_in_place = S, dS_in_place = dN;
    rngru_set_threads(threads);
    same("layer_norm gives 0", rngru_layer_norm(M, H, S.data(), N.data()) == 0);
    same("layer_norm gives 0", rngru_layer_norm_gradient(M, H, S.data(), dN.data(), dS.data()) == 0);
    rngru_layer_norm(M, H, N_in_place.data(), N_in_place.data());
    rngru_layer_norm_gradient(M, H, S.data(), dS_in_place.data(), dS_in_place.data());
    same("layer_norm in place", N_in_place == N && dS_in_place == dS);
    const Doubles s = S.doubles();
    Doubles expected((size_t)(M * H)), gradient((size_t)(M * H));
    for (int64_t row = 0; row < M * H; row += H) {
        normalise(&s[(size_t)row], H, &expected[(size_t)row]);
        double mean = 0, variance = 0, dq = 0, sum = 0;
        for (int64_t i = row; i < row + H; ++i) mean += s[(size_t)i] / (double)H;
        for (int64_t i = row; i < row + H; ++i) variance += pow(s[(size_t)i] - mean, 2) / (double)H;
        const double q = 1 / sqrt(variance + 1e-5);
        for (int64_t i = row; i < row + H; ++i) dq += (double)dN[i] * (s[(size_t)i] - mean);
        for (int64_t i = row; i < row + H; ++i) {  // dc, whose mean is that of s's gradient
            gradient[(size_t)i] = (double)dN[i] * q - dq * pow(q, 3) * (s[(size_t)i] - mean) / (double)H;
            sum += gradient[(size_t)i];
        }
        for (int64_t i = row; i < row + H; ++i) gradient[(size_t)i] -= sum / (double)H;
    }
    compare("layer_norm N", N, expected, 3e-5);  // numbers that are nearly equal lose digits
    compare("layer_norm_gradient dS", dS, gradient, 3e-5);
}

// --- Drawing characters ------------------------------------------------------------------------------------------

// By how much the kernel's choice of `char_` misses what the logits (float64) and the uniform say; 0 where it is right, or where a
// rounding of the logits may decide which characters top_k, top_p and min_p leave.
double misses(const rngru_sampler& m, const Doubles& logits, double uniform, int32_t char_) {
    std::vector<int32_t> ranking;
    for (int32_t v = 0; v < m.N; ++v)
        if (m.allowed[v]) ranking.push_back(v);
    std::stable_sort(ranking.begin(), ranking.end(), [&](int32_t a, int32_t b) { return logits[(size_t)a] > logits[(size_t)b]; });
    const double most = logits[(size_t)ranking[0]];
    if (!m.allowed[char_]) return 1;
    if (m.temp == 0) return most - logits[(size_t)char_];
    Doubles shares((size_t)m.N);
    for (int32_t v : ranking) shares[(size_t)v] = exp((logits[(size_t)v] - most) / m.temp);
    constexpr double CLOSE = 1e-4;
    bool close = false;
    if (m.top_k < (int64_t)ranking.size()) {
        const double last = shares[(size_t)ranking[(size_t)m.top_k - 1]], first_out = shares[(size_t)ranking[(size_t)m.top_k]];
        close = close || last - first_out <= CLOSE * last;
        ranking.resize((size_t)m.top_k);
    }
    double all = 0, reached = 0;
    for (int32_t v : ranking) all += shares[(size_t)v];
    size_t kept = 0;
    for (; kept < ranking.size() && (m.top_p == 1 || reached < m.top_p * all); ++kept) {
        reached += shares[(size_t)ranking[kept]];
        close = close || (m.top_p < 1 && fabs(reached - m.top_p * all) <= CLOSE * all);
    }
    ranking.resize(kept);
    double sum = 0;
    std::vector<int32_t> left;
    for (int32_t v : ranking) {
        close = close || (m.min_p > 0 && fabs(shares[(size_t)v] - m.min_p) <= CLOSE * m.min_p);
        if (shares[(size_t)v] >= m.min_p) left.push_back(v), sum += shares[(size_t)v];
    }
    if (close) return 0;
    if (std::find(left.begin(), left.end(), char_) == left.end()) return 1;
    double from = 0;
    for (int32_t v : left)
        if (v < char_) from += shares[(size_t)v] / sum;
    const double to = from + shares[(size_t)char_] / sum;
    return std::max({from - uniform, uniform - to, 0.});
}

void test_sample(const Precision& precision, int threads) {
    const int64_t L = 1 + below(3), H = up_to(100), N = up_to(120), n = up_to(20), steps = 1 + below(5);
    const bool encoded = below(2), layernorm = below(3) == 0;
    const double tolerance = precision.tolerance * (layernorm ? 10 : 1);
    const std::string name = std::string("sample ") + precision.name;
    const int64_t K = encoded ? H : N;
    std::vector<Layer> layers;
    for (int64_t i = 0; i < L; ++i)
        layers.emplace_back(precision, 1, n, i ? H : K, H, N, i ? RNGRU_VECTORS : encoded ? RNGRU_ENCODED : RNGRU_ONEHOT, 1);
    const Floats Wv = drawn(H * N, 4 * sqrt(3. / (double)H)), c = drawn(N, 2);
    Array<uint8_t> allowed(N);
    for (int64_t v = 0; v < N; ++v) allowed[v] = below(5) > 0;
    allowed[below(N)] = 1;
    Array<double> uniforms(n * steps);
    for (int64_t i = 0; i < n * steps; ++i) uniforms[i] = uniform();
    rngru_sampler m = {};
    m.precision = precision.value;
    m.L = L, m.H = H, m.K = K, m.N = N, m.n = n, m.steps = steps, m.input = encoded ? RNGRU_ENCODED : RNGRU_ONEHOT;
    m.layernorm = layernorm;
    m.temp = below(4) ? 0.3 + uniform() : 0, m.top_k = N, m.top_p = 1;
    if (precision.value == RNGRU_FLOAT32) {  // a sum that is rounded another way could decide what they leave
        m.top_k = below(2) ? N : 1 + below(N);
        m.top_p = below(2) ? 1 : 0.2 + 0.8 * uniform(), m.min_p = below(2) ? 0 : 0.3 * uniform();
    }
    situation = std::string(precision.name) + ", L " + std::to_string(L) + ", H " + std::to_string(H) + ", N " + std::to_string(N) +
                ", n " + std::to_string(n) + ", steps " + std::to_string(steps) + (encoded ? ", encoded" : ", onehot") +
                (layernorm ? ", layernorm" : "") + ", threads " + std::to_string(threads);
    std::vector<const float*> U, W, b;
    std::vector<Doubles> Us, Ws;
    for (const Layer& l : layers) {
        U.push_back(l.U.data()), W.push_back(l.W.data()), b.push_back(l.b.data());
        Us.push_back(l.input == RNGRU_VECTORS ? precision.weights(l.U.doubles(), 3 * H) : l.U.doubles());
        Ws.push_back(precision.weights(l.W.doubles(), 3 * H));
    }
    const Doubles weights_out = precision.weights(Wv.doubles(), N);
    m.E = layers[0].E.data(), m.a = layers[0].a.data(), m.U = U.data(), m.W = W.data(), m.b = b.data();
    m.Wv = Wv.data(), m.c = c.data(), m.allowed = allowed.data(), m.uniforms = uniforms.data();
    Floats kept(rngru_sample_kept(&m));
    for (int64_t i = 0; i < kept.size(); ++i) kept[i] = 0;
    m.kept = kept.data();
    const Floats before = drawn(L * n * H);
    const Ints first = drawn_below(n, N);
    Ints out(n * steps);
    for (int round = 0; round < 3; ++round) {  // the second one with the weights that the first one has packed; the third one reads
        const bool reads = round == 2;
        Floats states = before, S(reads ? L * steps * n * H : 0);
        Ints chars = first;
        const Ints given = out;
        m.states = states.data(), m.chars = chars.data(), m.out = out.data(), m.S = reads ? S.data() : nullptr;
        rngru_set_threads(threads);
        same("sample gives 0", rngru_sample(&m) == 0);
        same("sample writes no further", chars.fenced() && out.fenced() && kept.fenced() && S.fenced());
        same("sample reads what is given", !reads || out == given);
        for (int64_t i = 0; i < n * steps; ++i)
            if (out[i] < 0 || out[i] >= N) return fail("sample draws no character");
        Doubles expected = before.doubles(), gates((size_t)(3 * H)), logits((size_t)N), all((size_t)S.size());
        for (int64_t text = 0; text < n; ++text)
            for (int64_t t = 0; t < steps; ++t) {
                const int32_t read = t ? out[text * steps + t - 1] : first[text];
                Doubles x((size_t)K);
                for (int64_t k = 0; k < K; ++k)
                    x[(size_t)k] = encoded ? tanh((double)layers[0].E[read * K + k] + (double)layers[0].a[k]) : read == k;
                for (int64_t i = 0; i < L; ++i) {
                    const Layer& l = layers[(size_t)i];
                    double* const state = &expected[(size_t)((i * n + text) * H)];
                    const Doubles s(state, state + H);
                    step(precision, l.K, H, x.data(), s.data(), Us[(size_t)i], Ws[(size_t)i], l.b.doubles(), state, gates.data());
                    x.assign(state, state + H);
                    if (reads) std::copy(state, state + H, &all[(size_t)(((i * steps + t) * n + text) * H)]);
                    if (layernorm) normalise(state, H, x.data());
                    x = precision.passed(x, layernorm);
                }
                for (int64_t v = 0; v < N && !reads; ++v) {
                    logits[(size_t)v] = c[v];
                    for (int64_t i = 0; i < H; ++i) logits[(size_t)v] += x[(size_t)i] * weights_out[(size_t)(i * N + v)];
                }
                if (reads) continue;
                within(name + ", beside the uniform", misses(m, logits, uniforms[text * steps + t], out[text * steps + t]),
                       std::min(10 * tolerance, 0.2));
            }
        compare(name + " states", states, expected, tolerance);
        if (reads) compare(name + " S", S, all, tolerance);
        for (int64_t text = 0; text < n; ++text) same("sample leaves the last characters", chars[text] == out[text * steps + steps - 1]);
    }
    if (!m.temp) return;  // the most likely of numbers and others is not looked for
    Floats states = before;
    Ints chars = first;
    Floats c_of_none = c;
    c_of_none[std::find(allowed.data(), allowed.data() + N, 1) - allowed.data()] = NAN;
    m.states = states.data(), m.chars = chars.data(), m.S = nullptr, m.c = c_of_none.data();
    same("sample says that logits are no numbers", rngru_sample(&m) == 2);
}

// Networks large enough for several threads; with layernorm also where these may wait least for each other.
void test_sample_with_threads(const Precision& precision, bool layernorm, int64_t n) {
    const int64_t L = 2, H = 300 + below(200), N = 20 + below(40), steps = 8;
    situation = std::string(precision.name) + ", H " + std::to_string(H) + ", N " + std::to_string(N) + ", n " + std::to_string(n) +
                (layernorm ? ", layernorm" : "") + ", several threads";
    const Floats U = drawn(N * 3 * H), U1 = drawn(H * 3 * H, 0.1), W = drawn(H * 3 * H, 0.1), b = drawn(3 * H);
    const Floats Wv = drawn(H * N), c = drawn(N);
    const float *const Us[] = {U.data(), U1.data()}, *const Ws[] = {W.data(), W.data()}, *const bs[] = {b.data(), b.data()};
    Array<uint8_t> allowed(N);
    for (int64_t v = 0; v < N; ++v) allowed[v] = 1;
    Array<double> uniforms(n * steps);
    for (int64_t i = 0; i < n * steps; ++i) uniforms[i] = uniform();
    rngru_sampler m = {};
    m.L = L, m.H = H, m.K = N, m.N = N, m.n = n, m.steps = steps, m.input = RNGRU_ONEHOT, m.precision = precision.value;
    m.layernorm = layernorm, m.temp = 1, m.top_k = N, m.top_p = 1;
    m.U = Us, m.W = Ws, m.b = bs, m.Wv = Wv.data(), m.c = c.data(), m.allowed = allowed.data(), m.uniforms = uniforms.data();
    Floats kept(rngru_sample_kept(&m));
    for (int64_t i = 0; i < kept.size(); ++i) kept[i] = 0;
    m.kept = kept.data();
    const Floats before = drawn(L * n * H);
    Floats states[4], read, S(L * steps * n * H);
    Ints out[4];
    for (int i = 0; i < 4; ++i) {
        states[i] = before, out[i] = Ints(n * steps);
        Ints chars = drawn_below(n, 1);
        m.states = states[i].data(), m.chars = chars.data(), m.out = out[i].data();
        rngru_set_threads(i < 3 ? 1 + i : 2);
        same("sample gives 0", rngru_sample(&m) == 0);
        same("sample: the same bits with any number of threads", states[i] == states[0] && out[i] == out[0]);
        read = before, chars = drawn_below(n, 1);
        m.states = read.data(), m.chars = chars.data(), m.S = S.data();
        same("sample gives 0", rngru_sample(&m) == 0);
        same("sample: the same bits read as drawn", read == states[0]);
        m.S = nullptr;
    }
    situation += ", a NaN";
    Floats none = W;
    none[H * 3 * H - 1] = NAN;
    const float* const with_none[] = {W.data(), none.data()};
    Ints chars = drawn_below(n, 1);
    m.W = with_none, m.chars = chars.data();
    rngru_set_threads(3);
    same("sample says that logits are no numbers", rngru_sample(&m) == 2);
    m.S = S.data();
    const bool said = rngru_sample(&m) == 2, isnone = std::any_of(S.data(), S.data() + S.size(), [](float s) { return isnan(s); });
    same("sample says that states of int8 are no numbers, others are none", precision.value == RNGRU_INT8 ? said : isnone);
}

// Calls from two threads at once take turns.
void test_two_callers() {
    situation = "two callers at once";
    rngru_set_threads(3);
    rngru_profile(1);
    const Layer l(FLOAT32, 20, 16, 64, 64, 1, RNGRU_VECTORS, 1);
    Floats S[2], G[2];
    std::vector<std::thread> callers;
    for (int i = 0; i < 2; ++i)
        callers.emplace_back([&, i] {
            rngru_layer call = l.call();
            S[i] = Floats(l.T * l.B * l.H), G[i] = Floats(l.T * l.B * 3 * l.H);
            call.S = S[i].data(), call.G = G[i].data();
            for (int k = 0; k < 20; ++k) rngru_gru_forward(&call);
        });
    for (std::thread& caller : callers) caller.join();
    same("two callers get the same", S[0] == S[1] && G[0] == G[1]);
    compare("gru float32 forward S", S[0], forward(l, l.s0.doubles(), l.U.doubles(), l.W.doubles(), l.b.doubles()).S, FLOAT32.tolerance);
    rngru_profile(0);
}
}  // namespace

int main(int count, char** arguments) {
    const int cases = count > 1 ? atoi(arguments[1]) : 40;
    random_state = count > 2 ? strtoull(arguments[2], nullptr, 10) : 1;
    test_the_gradients_of_the_loops();
    test_the_words_of_the_loop();
    test_two_callers();
    for (const Precision* precision : {&FLOAT32, &BFLOAT16, &INT8})
        for (int i = 0; i < 4; ++i) test_sample_with_threads(*precision, i % 2, i < 2 ? 1 : 5);
    for (int i = 0; i < cases; ++i) {
        const int threads = 1 + i % 4;
        for (const Precision* precision : {&FLOAT32, &BFLOAT16}) {
            rngru_set_threads(threads);
            test_gru(*precision, threads);
        }
        test_softmax_loss(FLOAT32, threads, i % 40 == 7);
        test_update(threads);
        test_dropout(threads);
        test_layer_norm(threads);
        for (const Precision* precision : {&FLOAT32, &BFLOAT16, &INT8}) test_sample(*precision, threads);
    }
    for (const auto& each : worst) printf("%-32s %.2g\n", each.first.c_str(), each.second);
    printf("%s kernels, %d cases: %s\n", rngru_isa(), cases, failures ? "FAILED" : "all right");
    return failures > 0;
}
