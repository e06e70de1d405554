// The same step where the input has few channels, as images have, and each task its own weights: one product of the
// numbers under the kernel with the weights, then the pooling. No gradient goes to the input.
//
//     y = relu(pool(W_t * x) + shift)
//
// x `(tasks * images, height, width, channels)`, W `(tasks, outputs, channels, 3, 3)`, the rest as in chain.cpp.
#include <omp.h>

#include "tiles.hpp"

namespace {

// `(channels, 3, 3)` rows of outputs: the weights of a task with their outputs next to each other.
template <class T> void turn_weights(const Shape& s, const T* weight, T* to) {
    for (long i = 0; i < s.channels * 9; ++i)
        for (long o = 0; o < s.outputs; ++o) to[i * s.outputs + o] = weight[o * s.channels * 9 + i];
}

// The numbers under the kernel, `a[tile, k][channel, 3x3]`.
template <class T> void under_kernel(const Shape& s, const T* images, long start, long n, T* a) {
    for (long t = 0; t < n; ++t) {
        const T* image = images + (start + t) / s.tiles * s.image();
        long places[16];
        patch_places(s, (start + t) % s.tiles, places);
        for (long c = 0; c < s.channels; ++c) {
            T patch[16];
            for (int i = 0; i < 16; ++i) patch[i] = places[i] < 0 ? T(0) : image[places[i] + c];
            for (int k = 0; k < 4; ++k)
                for (int tap = 0; tap < 9; ++tap)
                    a[(k * s.channels + c) * 9 + tap] = patch[(k / 2 + tap / 3) * 4 + k % 2 + tap % 3];
        }
        a += 4 * s.channels * 9;
    }
}

template <class T> struct Room {
    T *weight, *taps, *outputs;
    Room(const Shape& s, Memory<T>& memory)
        : weight(memory.take(s.channels * 9 * s.outputs)), taps(memory.take(BLOCK * 4 * s.channels * 9)),
          outputs(memory.take(BLOCK * 4 * s.outputs)) {}
};

// What a call works in, with sums as in chain.cpp.
template <class T> struct Call {
    const Shape& s;
    T *weights, *shifts, *room_;
    long size, used;

    Call(const Shape& s, T* base) : s(s) {
        Memory<T> memory(base), one(nullptr);
        weights = memory.take(s.segments() * s.channels * 9 * s.outputs);
        shifts = memory.take(s.segments() * s.outputs);
        room_ = memory.take(0);
        Room<T> counted(s, one);
        size = one.used();
        used = memory.used() + s.threads * size;
    }
    Room<T> room() const {
        Memory<T> memory(room_ + omp_get_thread_num() * size);
        return Room<T>(s, memory);
    }
};

// `finish(task, place of the value, output, its four candidates)` after the product; for y and for a change of it.
template <class T, class Finish>
void convolved(const Shape& s, T* memory, const T* x, const T* weight, Finish finish) {
    const Call<T> call(s, memory);
    const long depth = s.channels * 9;
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            turn_weights(s, weight + segment.task * s.outputs * depth, room.weight);
            in_blocks(s, segment, [&](long start, long n) {
                under_kernel(s, x + segment.row * s.image(), start, n, room.taps);
                product<T>(4 * n, s.outputs, {depth, room.taps, depth, 1, room.weight, s.outputs}, {}, room.outputs,
                           s.outputs, false);
                for (long t = 0; t < n; ++t)
                    for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                        Vector<T> z[4];
                        for (int k = 0; k < 4; ++k) z[k] = load(room.outputs + (4 * t + k) * s.outputs + o);
                        finish(segment.task, (segment.row * s.tiles + start + t) * s.outputs + o, o, z);
                    }
            });
        }
    }
}

template <class T>
void gradients(const Shape& s, T* memory, const T* g, const uint8_t* code, const T* x, T* to_weight, T* to_shift) {
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
            in_blocks(s, segment, [&](long start, long n) {
                under_kernel(s, x + segment.row * s.image(), start, n, room.taps);
                const long at = (segment.row * s.tiles + start) * s.outputs;
                for (long t = 0; t < n; ++t)
                    for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                        Vector<T> z[4];
                        spread(g + at + t * s.outputs + o, code + at + t * s.outputs + o, z);
                        for (int k = 0; k < 4; ++k) store(room.outputs + (4 * t + k) * s.outputs + o, z[k]);
                    }
                product<T>(depth, s.outputs, {4 * n, room.taps, 1, depth, room.outputs, s.outputs}, {}, weight_sum,
                           s.outputs, true);
                if (to_shift) shift_gradient(s, n, g + at, code + at, shift_sum);
            });
        }
#pragma omp for schedule(static)
        for (long task = 0; task < s.tasks; ++task)
            for (long o = 0; o < s.outputs; ++o) {
                T shift = 0;
                for (long i = 0; i < depth; ++i) to_weight[(task * s.outputs + o) * depth + i] = 0;
                for (long piece = task * s.pieces; piece < (task + 1) * s.pieces; ++piece) {
                    shift += call.shifts[piece * s.outputs + o];
                    for (long i = 0; i < depth; ++i)
                        to_weight[(task * s.outputs + o) * depth + i] += call.weights[(piece * depth + i) * s.outputs + o];
                }
                if (to_shift) to_shift[task * s.outputs + o] = shift;
            }
    }
}

template <class T>
void forward(const Shape& s, T* memory, const T* x, const T* weight, const T* shift, T* y, uint8_t* code) {
    convolved(s, memory, x, weight, [=](long task, long place, long o, const Vector<T>* z) {
        pool(z, load(shift + task * s.outputs + o), y + place, code + place);
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

#define EXPORT(T, type)                                                                                                \
    extern "C" int64_t few_memory_##type(const Sizes* s) { return Call<T>(Shape(*s), nullptr).used; }                  \
    extern "C" void few_forward_##type(const Sizes* s, T* memory, const T* x, const T* weight, const T* shift, T* y,   \
                                       uint8_t* code) {                                                                \
        forward(Shape(*s), memory, x, weight, shift, y, code);                                                         \
    }                                                                                                                  \
    extern "C" void few_gradients_##type(const Sizes* s, T* memory, const T* g, const uint8_t* code, const T* x,       \
                                         T* to_weight, T* to_shift) {                                                  \
        gradients(Shape(*s), memory, g, code, x, to_weight, to_shift);                                                 \
    }                                                                                                                  \
    extern "C" void few_change_##type(const Sizes* s, T* memory, const T* weight_, const T* shift_,                    \
                                      const uint8_t* code, const T* x, T* to_y) {                                      \
        change(Shape(*s), memory, weight_, shift_, code, x, to_y);                                                     \
    }
EXPORT(float, float32)
EXPORT(double, float64)
