// Sums a piece of a task, in double, and what is done with pooled values: the parts of chains on batch statistics that
// know of no convolution. Numbers are stored as E.
#include <omp.h>

#include "batch_grid.hpp"

namespace {

template <class T> inline void gather(double* sums, Vector<T> v) {
    for (int l = 0; l < Lanes<T>::count; ++l) sums[l] += double(v[l]);
}

// `sums[segment][tap][channel]` of what stands under each tap of the kernel, over the outputs of images that count.
template <class E> void taps(const Grid& s, const E* x, double* sums) {
    using T = typename Computed<E>::type;
    constexpr int L = Lanes<T>::count;
    const long row_step = s.width * s.channels;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long number = 0; number < s.segments(); ++number) {
        const Segment segment(s, number);
        double* own = sums + number * 9 * s.channels;
        std::fill_n(own, 9 * s.channels, 0.0);
        for (long row = segment.row; row < segment.row + segment.count; ++row)
            for (long c = 0; s.counts(row) && c < s.channels; c += L) {
                const E* image = x + row * s.image() + c;
                Vector<T> rows[3] = {}, left[3] = {}, right[3] = {};  // all rows, the first, the last
                for (long y = 0; y < s.height; ++y) {
                    const E* line = image + y * row_step;
                    Vector<T> sum[2] = {};
                    for (long i = 0; i < s.width; ++i) sum[i % 2] += get(line + i * s.channels);
                    const Vector<T> whole[3] = {sum[0] + sum[1], get(line), get(line + row_step - s.channels)};
                    Vector<T>* parts[3] = {rows, left, right};
                    for (int i = 0; i < 3; ++i) {
                        parts[i][0] += whole[i];
                        if (y == 0) parts[i][1] = whole[i];
                        if (y == s.height - 1) parts[i][2] = whole[i];
                    }
                }
                const auto without = [](const Vector<T>* v, int u) { return u == 1 ? v[0] : v[0] - v[u == 0 ? 2 : 1]; };
                for (int u = 0; u < 3; ++u)
                    for (int v = 0; v < 3; ++v) {
                        const Vector<T> beside = v == 1 ? Vector<T>{} : without(v == 0 ? right : left, u);
                        gather<T>(own + (u * 3 + v) * s.channels + c, without(rows, u) - beside);
                    }
            }
    }
}

// `y = relu(scale * y + shift)` in place of another or the same; the code of what is 0 becomes OFF.
template <class E, class T>
void activate(const Grid& s, const E* pooled, const T* scale, const T* shift, E* y, uint8_t* code) {
    using Codes = typename Lanes<T>::Codes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long row = 0; row < s.tasks * s.images; ++row) {
        const T *a = scale + row / s.images * s.outputs, *b = shift + row / s.images * s.outputs;
        const long first = row * s.pooled() * s.outputs;
        for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
            const Vector<T> by = load(a + o), more = load(b + o);
            for (long at = first + o; at < first + s.pooled() * s.outputs; at += s.outputs) {
                const Vector<T> value = get(pooled + at) * by + more;
                const auto off = value <= T(0);
                put_back(y + at, off ? Vector<T>{} : value);
                const auto which = off ? typename Lanes<T>::Mask{} + OFF : codes<T>(code + at);
                *reinterpret_cast<Codes*>(code + at) = __builtin_convertvector(which, Codes);
            }
        }
    }
}

// `sums[segment][0 or 1][output]` of g and of g times the output it came from, over what is on.
template <class E> void on_sums(const Grid& s, const E* g, const uint8_t* code, const E* z, double* sums) {
    using T = typename Computed<E>::type;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long number = 0; number < s.segments(); ++number) {
        const Segment segment(s, number);
        double* own = sums + number * 2 * s.outputs;
        std::fill_n(own, 2 * s.outputs, 0.0);
        const long lines = segment.count * s.pooled_high;
        for (long line = 0; line < lines; ++line) {  // of windows: what is read stays in the first cache
            const long row = segment.row + line / s.pooled_high, y = line % s.pooled_high;
            const long first = (row * s.pooled() + y * s.pooled_wide) * s.outputs;
            const E* outputs = z + (row * s.area + 2 * y * s.line) * s.outputs;
            for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                Vector<T> plain = {}, times = {};
                for (long i = 0; i < s.pooled_wide; ++i) {
                    const long at = first + i * s.outputs + o;
                    const auto which = codes<T>(code + at);
                    const Vector<T> value = which == OFF ? Vector<T>{} : get(g + at);
                    const E* from = outputs + 2 * i * s.outputs + o;
                    Vector<T> output = get(from);
                    for (int k = 1; k < 4; ++k)
                        output = which == k ? get(from + (k / 2 * s.line + k % 2) * s.outputs) : output;
                    plain += value;
                    times += value * output;
                }
                gather<T>(own + o, plain);
                gather<T>(own + s.outputs + o, times);
            }
        }
    }
}

}  // namespace

#define EXPORT(E, T, type)                                                                                             \
    extern "C" void batch_taps_##type(const Sizes* s, const E* x, double* sums) { taps(Grid(*s), x, sums); }           \
    extern "C" void batch_activate_##type(const Sizes* s, const E* pooled, const T* scale, const T* shift, E* y,       \
                                          uint8_t* code) {                                                             \
        activate(Grid(*s), pooled, scale, shift, y, code);                                                             \
    }                                                                                                                  \
    extern "C" void batch_on_sums_##type(const Sizes* s, const E* g, const uint8_t* code, const E* z,                  \
                                         double* sums) {                                                               \
        on_sums(Grid(*s), g, code, z, sums);                                                                           \
    }
EXPORT(float, float, float32)
EXPORT(double, double, float64)
#if defined(__AVX512BF16__)
EXPORT(BFloat, float, bfloat16)
#endif
