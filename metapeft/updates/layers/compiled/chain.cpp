// A 3x3 convolution with an update a task, a shift, ReLU and 2x2 max-pooling as one step, with its first and second
// derivatives. Nothing of the size of the convolution's output is ever held: a block of tiles stays in a core's cache
// from the patches of its input to the pooled values.
//
//     y = relu(pool(W * x + up (down * x)) + shift)
//
// Tensors are in rows of channels: x `(tasks * images, height, width, channels)`, y and its codes `(tasks * images,
// height / 2, width / 2, outputs)`; W `(kernels, outputs, channels, 3, 3)`, down `(tasks, terms, channels, 3, 3)`, up
// `(tasks, outputs, terms)`, shift `(tasks, outputs)`. `low` `(tasks * images, tiles, 4, rank)` are the values
// `down * x`. Where W is each task's own there is no low-rank update beside it.
#include "call.hpp"

namespace {

template <class T>
void forward(const Shape& s, T* memory, const T* x, const T* weight, const T* down, const T* up, const T* shift, T* y,
             uint8_t* code, T* low) {
    const Call<T> call(s, memory);
    if (s.shared()) call.transform_shared(weight, false);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T* kernel = call.transformed(weight, false, segment.task, room.kernel);
            room.update.read(s, segment.task, down, up);
            in_blocks(s, segment, [&](long start, long n) {
                const long at = segment.row * s.tiles + start;
                T* e = low + at * 4 * s.rank;
                take(s, x + segment.row * s.image(), start, n, room.patches);
                thin(s, n, room.patches, room.update.down, e, false);
                products<T>(n, s.outputs, {s.channels, room.patches, false, kernel}, room.outputs, false);
                for (long t = 0; t < n; ++t)
                    for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                        Vector<T> z[4];
                        outputs_of(s, n, t, o, room.outputs, z);
                        add_thin(s, t, o, e, room.update.up, z);
                        const long place = (at + t) * s.outputs + o;
                        pool(z, load(shift + segment.task * s.outputs + o), y + place, code + place);
                    }
            });
        }
    }
}

// Gradients from g, that of y; what is not asked for is NULL.
template <class T>
void backward(const Shape& s, T* memory, const T* g, const uint8_t* code, const T* x, const T* weight, const T* down,
              const T* up, const T* low, T* to_x, T* to_weight, T* to_down, T* to_up, T* to_shift) {
    const Call<T> call(s, memory);
    if (to_x && s.shared()) call.transform_shared(weight, true);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
        call.clear(to_weight);
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T* turned = to_x ? call.transformed(weight, true, segment.task, room.turned) : nullptr;
            room.update.read(s, segment.task, down, up);
            if (to_x) std::fill_n(to_x + segment.row * s.image(), segment.count * s.image(), T(0));
            in_blocks(s, segment, [&](long start, long n) {
                const long at = segment.row * s.tiles + start;
                const T* own_g = g + at * s.outputs;
                const uint8_t* own_code = code + at * s.outputs;
                if (to_x || to_weight) spread_outputs(s, n, own_g, own_code, room.outputs);
                thin_adjoint(s, n, own_g, own_code, room.update.up, room.terms);
                if (to_down || to_weight) take(s, x + segment.row * s.image(), start, n, room.patches);
                if (to_down) {
                    T* sum = call.downs + number * call.of_down();
                    products<T>(s.rank, s.channels, {n, room.terms, true, room.patches}, sum, true);
                    up_gradient(s, n, own_g, own_code, low + at * 4 * s.rank, call.ups + number * call.of_up());
                }
                if (to_weight) {
                    T* sum = call.weight_sum(segment);
                    products<T>(s.channels, s.outputs, {n, room.patches, true, room.outputs}, sum, true);
                }
                if (to_shift) shift_gradient(s, n, own_g, own_code, call.shifts + number * s.outputs);
                if (to_x) {
                    products<T>(n, s.channels, {s.outputs, room.outputs, false, turned}, room.others, false,
                                {s.rank, room.terms, false, room.update.down});
                    put(s, room.others, start, n, to_x + segment.row * s.image());
                }
            });
        }
        call.write(to_weight, to_down, to_up, to_shift);
    }
}

// Gradients of `<x', to_x> + <W', to_weight> + <down', to_down> + <up', to_up> + <shift', to_shift>` of `backward`: in
// to_g what a change of x, W, down, up and shift by the primed does to y. x', W' and shift' may be NULL, down' and up'
// may not; W' is NULL where tasks share W or there is a low-rank update, and what is not asked for is NULL.
template <class T>
void second(const Shape& s, T* memory, const T* x_, const T* weight_, const T* down_, const T* up_, const T* shift_,
            const T* g, const uint8_t* code, const T* x, const T* weight, const T* down, const T* up, const T* low,
            T* to_g, T* to_x, T* to_weight, T* to_down, T* to_up) {
    const Call<T> call(s, memory);
    if (x_ && s.shared()) call.transform_shared(weight, false);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
        call.clear(to_weight);
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T* kernel = x_ ? call.transformed(weight, false, segment.task, room.kernel) : nullptr;
            const T* change = weight_ ? call.transformed(weight_, false, segment.task, room.change) : nullptr;
            const T* turned = weight_ && to_x ? call.transformed(weight_, true, segment.task, room.turned) : nullptr;
            const Update<T>&update = room.update, &update_ = room.change_of_update;
            room.update.read(s, segment.task, down, up);
            room.change_of_update.read(s, segment.task, down_, up_);
            if (to_x) std::fill_n(to_x + segment.row * s.image(), segment.count * s.image(), T(0));
            in_blocks(s, segment, [&](long start, long n) {
                const long at = segment.row * s.tiles + start;
                const T* own_g = g + at * s.outputs;
                const uint8_t* own_code = code + at * s.outputs;
                if (x_) {
                    take(s, x_ + segment.row * s.image(), start, n, room.others);
                    thin(s, n, room.others, update.down, room.low, false);
                }
                if (s.rank || weight_) take(s, x + segment.row * s.image(), start, n, room.patches);
                thin(s, n, room.patches, update_.down, room.low, x_ != nullptr);
                if (x_ || weight_)
                    products<T>(n, s.outputs, {x_ ? s.channels : 0, room.others, false, kernel}, room.outputs, false,
                                {weight_ ? s.channels : 0, room.patches, false, change});
                for (long t = 0; t < n; ++t)
                    for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                        Vector<T> z[4] = {};
                        if (x_ || weight_) outputs_of(s, n, t, o, room.outputs, z);
                        add_thin(s, t, o, room.low, update.up, z);
                        add_thin(s, t, o, low + at * 4 * s.rank, update_.up, z);
                        for (int k = 0; shift_ && k < 4; ++k) z[k] += load(shift_ + segment.task * s.outputs + o);
                        const long place = (at + t) * s.outputs + o;
                        store(to_g + place, pick<T>(z, code + place));
                    }
                if ((to_weight && x_) || turned) spread_outputs(s, n, own_g, own_code, room.outputs);
                if (to_weight && x_) {
                    T* sum = call.weight_sum(segment);
                    products<T>(s.channels, s.outputs, {n, room.others, true, room.outputs}, sum, true);
                }
                thin_adjoint(s, n, own_g, own_code, update.up, room.terms);
                thin_adjoint(s, n, own_g, own_code, update_.up, room.more_terms);
                if (to_down) {
                    T* sum = call.downs + number * call.of_down();
                    products<T>(s.rank, s.channels, {n, room.more_terms, true, room.patches}, sum, true,
                                {x_ ? n : 0, room.terms, true, room.others});
                    up_gradient(s, n, own_g, own_code, room.low, call.ups + number * call.of_up());
                }
                if (to_x && turned)
                    products<T>(n, s.channels, {s.outputs, room.outputs, false, turned}, room.others, false);
                else if (to_x)
                    products<T>(n, s.channels, {s.rank, room.terms, false, update_.down}, room.others, false,
                                {s.rank, room.more_terms, false, update.down});
                if (to_x) put(s, room.others, start, n, to_x + segment.row * s.image());
            });
        }
        call.write(to_weight, to_down, to_up, nullptr);
    }
}

}  // namespace

#define EXPORT(T, type)                                                                                                \
    extern "C" int64_t lanes_##type() { return Lanes<T>::count; }                                                      \
    extern "C" int64_t memory_##type(const Sizes* s) { return Call<T>(Shape(*s), nullptr).used; }                      \
    extern "C" void forward_##type(const Sizes* s, T* memory, const T* x, const T* weight, const T* down, const T* up, \
                                   const T* shift, T* y, uint8_t* code, T* low) {                                      \
        forward(Shape(*s), memory, x, weight, down, up, shift, y, code, low);                                          \
    }                                                                                                                  \
    extern "C" void backward_##type(const Sizes* s, T* memory, const T* g, const uint8_t* code, const T* x,            \
                                    const T* weight, const T* down, const T* up, const T* low, T* to_x, T* to_weight,  \
                                    T* to_down, T* to_up, T* to_shift) {                                               \
        backward(Shape(*s), memory, g, code, x, weight, down, up, low, to_x, to_weight, to_down, to_up, to_shift);     \
    }                                                                                                                  \
    extern "C" void second_##type(const Sizes* s, T* memory, const T* x_, const T* weight_, const T* down_,            \
                                  const T* up_, const T* shift_, const T* g, const uint8_t* code, const T* x,          \
                                  const T* weight, const T* down, const T* up, const T* low, T* to_g, T* to_x,         \
                                  T* to_weight, T* to_down, T* to_up) {                                                \
        second(Shape(*s), memory, x_, weight_, down_, up_, shift_, g, code, x, weight, down, up, low, to_g, to_x,      \
               to_weight, to_down, to_up);                                                                             \
    }
EXPORT(float, float32)
EXPORT(double, float64)
