// The same step where the input has few channels, as images have, and each task its own weights: the four outputs of a
// tile stay in registers from the convolution to the pooling. No gradient goes to the input.
//
//     y = relu(pool(W_t * x) + shift)
//
// x `(tasks * images, height, width, channels)`, W `(tasks, outputs, channels, 3, 3)`, the rest as in chain.cpp.
#include "few_channels.hpp"

namespace {

// `finish(place of the value, output, its four candidates)` for N vectors of outputs of a tile.
template <class T, int N, class Finish>
inline void tile_values(const Shape& s, const Room<T>& room, long tile, long output, long place, Finish finish) {
    constexpr int L = Lanes<T>::count;
    Vector<T> z[N][4] = {};
    const T* corner = room.corner(s, tile);
    for (long c = 0; c < s.channels; ++c)
        for (int u = 0; u < 3; ++u)
            for (int v = 0; v < 3; ++v) {
                const T* weight = room.weight + (c * 9 + u * 3 + v) * s.outputs + output;
                Vector<T> right[N];
                for (int n = 0; n < N; ++n) right[n] = load(weight + n * L);
                for (int k = 0; k < 4; ++k) {
                    const T x = corner[(k / 2 + u) * room.line + (k % 2 + v) * s.channels + c];
                    for (int n = 0; n < N; ++n) z[n][k] += x * right[n];
                }
            }
    for (int n = 0; n < N; ++n) finish(place + n * L, output + n * L, z[n]);
}

// `finish(task, place of the value, output, its four candidates)` everywhere; for y and for a change of it.
template <class T, class Finish>
void convolved(const Shape& s, T* memory, const T* x, const T* weight, Finish finish) {
    constexpr int N = VECTORS, L = Lanes<T>::count;
    const Call<T> call(s, memory);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            room.read_weight(s, weight + segment.task * s.outputs * s.channels * 9);
            const auto own = [&](long place, long o, Vector<T>* z) { finish(segment.task, place, o, z); };
            for (long row = segment.row; row < segment.row + segment.count; ++row) {
                room.read_image(s, x + row * s.image());
                for (long tile = 0; tile < s.tiles; ++tile) {
                    const long place = (row * s.tiles + tile) * s.outputs;
                    long o = 0;
                    for (; o + N * L <= s.outputs; o += N * L) tile_values<T, N>(s, room, tile, o, place + o, own);
                    for (; o < s.outputs; o += L) tile_values<T, 1>(s, room, tile, o, place + o, own);
                }
            }
        }
    }
}

// A channel's patch of 4x4 and what in it stands at places that lanes choose on their own.
template <class T> struct Patch {
    static constexpr int vectors = 16 / Lanes<T>::count;
    static constexpr bool fits = vectors == 1 || vectors == 2;
    Vector<T> values[vectors];
    explicit Patch(const T* numbers) {
        for (int i = 0; i < vectors; ++i) values[i] = load(numbers + i * Lanes<T>::count);
    }
    Vector<T> at(typename Lanes<T>::Mask places) const {
        if constexpr (vectors == 1) return __builtin_shuffle(values[0], places);
        else return __builtin_shuffle(values[0], values[1], places);
    }
};

// Gradients of the weights of one vector of outputs, `to_weight (channels, 9, outputs)`, and of the shift, over a row of
// tiles: a lane takes what stands under each tap at the output that was the largest.
template <class T, class E>
inline void row_gradients(const Shape& s, const T* patches, const E* g, const uint8_t* code, T* to_weight,
                          Vector<T>& to_shift) {
    using Mask = typename Lanes<T>::Mask;
    for (long c = 0; c < s.channels; ++c) {
        Vector<T> sums[9] = {}, shift = {};
        for (long tile = 0; tile < s.wide; ++tile) {
            const Mask which = codes<T>(code + tile * s.outputs), corner = which + (which & 2);
            const Vector<T> value = which == OFF ? Vector<T>{} : get(g + tile * s.outputs);
            const Patch<T> patch(patches + (tile * s.channels + c) * 16);
            shift += value;
            for (int tap = 0; tap < 9; ++tap)
                sums[tap] += patch.at(corner + (tap / 3 * 4 + tap % 3)) * value;
        }
        for (int tap = 0; tap < 9; ++tap) add<T>(to_weight + (c * 9 + tap) * s.outputs, sums[tap]);
        if (c == 0) to_shift += shift;
    }
}

// The same where a patch is more than two registers, all tiles of an image at once.
template <class T, class E>
inline void tap_gradients(const Shape& s, const Room<T>& room, const E* g, const uint8_t* code, long c, T* weight) {
    Vector<T> sums[9] = {};
    for (long tile = 0; tile < s.tiles; ++tile) {
        Vector<T> parts[4];
        spread(g + tile * s.outputs, code + tile * s.outputs, parts);
        const T* corner = room.corner(s, tile) + c;
        for (int tap = 0; tap < 9; ++tap)
            for (int k = 0; k < 4; ++k)
                sums[tap] += corner[(k / 2 + tap / 3) * room.line + (k % 2 + tap % 3) * s.channels] * parts[k];
    }
    for (int tap = 0; tap < 9; ++tap) add<T>(weight + tap * s.outputs, sums[tap]);
}

template <class T, class E>
void image_gradients(const Shape& s, const Room<T>& room, const E* g, const uint8_t* code, T* weight, T* shift) {
    constexpr int L = Lanes<T>::count;
    if constexpr (Patch<T>::fits) {
        for (long first = 0; first < s.tiles; first += s.wide) {
            for (long i = 0; i < s.wide * s.channels; ++i)
                room.read_patch(s, first + i / s.channels, i % s.channels, room.patches + i * 16);
            for (long i = 0; first + s.wide < s.tiles && i < s.wide * s.outputs; i += 64 / sizeof(E))
                __builtin_prefetch(g + (first + s.wide) * s.outputs + i);  // of the next row, in the order of memory
            for (long o = 0; o < s.outputs; o += L) {
                Vector<T> sum = {};
                row_gradients(s, room.patches, g + first * s.outputs + o, code + first * s.outputs + o, weight + o, sum);
                add<T>(shift + o, sum);
            }
        }
    } else {
        for (long o = 0; o < s.outputs; o += L)
            for (long c = 0; c < s.channels; ++c)
                tap_gradients(s, room, g + o, code + o, c, weight + c * 9 * s.outputs + o);
        shift_gradient(s, s.tiles, g, code, shift);
    }
}

template <class T, class E>
void gradients(const Shape& s, T* memory, const E* g, const uint8_t* code, const T* x, T* to_weight, T* to_shift) {
    const Call<T> call(s, memory);
    const long depth = s.channels * 9;
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            T* weight_sum = call.weights + number * depth * s.outputs;
            T* shift_sum = call.shifts + number * s.outputs;
            std::fill_n(weight_sum, depth * s.outputs, T(0));
            std::fill_n(shift_sum, s.outputs, T(0));
            for (long row = segment.row; row < segment.row + segment.count; ++row) {
                const long at = row * s.tiles * s.outputs;
                room.read_image(s, x + row * s.image());
                image_gradients(s, room, g + at, code + at, weight_sum, shift_sum);
            }
        }
#pragma omp for schedule(static)
        for (long task = 0; task < s.tasks; ++task)
            for (long o = 0; o < s.outputs; ++o) {
                T shift = 0;
                T* weight = to_weight + (task * s.outputs + o) * depth;
                std::fill_n(weight, depth, T(0));
                for (long piece = task * s.pieces; piece < (task + 1) * s.pieces; ++piece) {
                    shift += call.shifts[piece * s.outputs + o];
                    for (long i = 0; i < depth; ++i) weight[i] += call.weights[(piece * depth + i) * s.outputs + o];
                }
                if (to_shift) to_shift[task * s.outputs + o] = shift;
            }
    }
}

template <class T, class E>
void forward(const Shape& s, T* memory, const T* x, const T* weight, const T* shift, E* y, uint8_t* code) {
    convolved(s, memory, x, weight, [=](long task, long place, long o, const Vector<T>* z) {
        pool<E>(z, load(shift + task * s.outputs + o), y + place, code + place);
    });
}

// What a change of the weights and of the shift (NULL: none) does to y.
template <class T>
void change(const Shape& s, T* memory, const T* weight_, const T* shift_, const uint8_t* code, const T* x, T* to_y) {
    convolved(s, memory, x, weight_, [=](long task, long place, long o, Vector<T>* z) {
        for (int k = 0; shift_ && k < 4; ++k) z[k] += load(shift_ + task * s.outputs + o);
        store(to_y + place, pick<T>(z, code + place));
    });
}

}  // namespace

// y and g are stored as E.
#define EXPORT(T, E, type)                                                                                             \
    extern "C" void few_forward_##type(const Sizes* s, T* memory, const T* x, const T* weight, const T* shift, E* y,   \
                                       uint8_t* code) {                                                                \
        forward(Shape(*s), memory, x, weight, shift, y, code);                                                         \
    }                                                                                                                  \
    extern "C" void few_gradients_##type(const Sizes* s, T* memory, const E* g, const uint8_t* code, const T* x,       \
                                         T* to_weight, T* to_shift) {                                                  \
        gradients(Shape(*s), memory, g, code, x, to_weight, to_shift);                                                 \
    }                                                                                                                  \
    extern "C" int64_t few_memory_##type(const Sizes* s) { return Call<T>(Shape(*s), nullptr).used; }
EXPORT(float, float, float32)
EXPORT(double, double, float64)
#if defined(__AVX512BF16__)
EXPORT(float, BFloat, bfloat16)
#endif

#define EXPORT_CHANGE(T, type)                                                                                         \
    extern "C" void few_change_##type(const Sizes* s, T* memory, const T* weight_, const T* shift_,                    \
                                      const uint8_t* code, const T* x, T* to_y) {                                      \
        change(Shape(*s), memory, weight_, shift_, code, x, to_y);                                                     \
    }
EXPORT_CHANGE(float, float32)
EXPORT_CHANGE(double, float64)
