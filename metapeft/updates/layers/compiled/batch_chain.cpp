// A 3x3 convolution, less its mean, and 2x2 max-pooling, with the sum of squares that batch statistics take; and its
// gradients. By Winograd's transform, as chain.cpp, whose names and sums these are.
//
//     z = W * x - mean,  pooled = pool(z)
//
// x `(tasks * images, height, width, channels)`, W `(kernels, outputs, channels, 3, 3)`, mean `(tasks, outputs)`,
// z `(tasks * images, height + 1, width + 1, outputs)`.
#include "batch_grid.hpp"
#include "call.hpp"

namespace {

template <class T>
void forward(const Grid& s, T* memory, const T* x, const T* weight, const T* mean, T* z, T* pooled, uint8_t* code,
             double* squares) {
    constexpr int L = Lanes<T>::count;
    const Call<T> call(s, memory);
    if (s.shared()) call.transform_shared(weight, false);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T* kernel = call.transformed(weight, false, segment.task, room.kernel);
            double* sums = squares + number * s.outputs;
            std::fill_n(sums, s.outputs, 0.0);
            in_blocks(s, segment, [&](long start, long n) {
                take(s, x + segment.row * s.image(), start, n, room.patches);
                products<T>(n, s.outputs, {s.channels, room.patches, false, kernel}, room.outputs, false);
                for (long o = 0; o < s.outputs; o += L) {
                    const Vector<T> centre = load(mean + segment.task * s.outputs + o);
                    Vector<T> square = {};
                    for (long t = 0; t < n; ++t) {
                        const long row = segment.row + (start + t) / s.tiles;
                        const Tile tile(s, (start + t) % s.tiles);
                        const bool counts = s.counts(row);
                        Vector<T> values[4];
                        outputs_of(s, n, t, o, room.outputs, values);
                        for (int k = 0; k < 4; ++k) {
                            if (tile.places[k] < 0) continue;
                            values[k] -= centre;
                            if (counts) square += values[k] * values[k];
                            store(z + (row * s.area + tile.places[k]) * s.outputs + o, values[k]);
                        }
                        const long at = (row * s.pooled() + tile.window) * s.outputs + o;
                        if (tile.window >= 0) store(pooled + at, largest<T>(values, code + at));
                    }
                    for (int l = 0; l < L; ++l) sums[o + l] += double(square[l]);
                }
            });
        }
    }
}

// Gradients in x and W (NULL: not wanted) of outputs whose own are `output_gradients`; what of x, W and more is not
// needed for them may be NULL.
template <class T>
void gradients(const Grid& s, T* memory, const T* g, const uint8_t* code, const T* x, const T* z, const T* weight,
               const T* coefficients, const T* more, T* to_x, T* to_weight) {
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
            if (to_x) std::fill_n(to_x + segment.row * s.image(), segment.count * s.image(), T(0));
            in_blocks(s, segment, [&](long start, long n) {
                for (long t = 0; t < n; ++t) {
                    const long row = segment.row + (start + t) / s.tiles, values = row * s.pooled() * s.outputs;
                    const long grid = row * s.area * s.outputs;
                    const Tile tile(s, (start + t) % s.tiles);
                    const Slopes<T> by(s, row, coefficients);
                    for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                        Vector<T> outputs[4], points[POINTS];
                        output_gradients<T>(s, tile, o, by, z + grid, g + values, code + values,
                                            more ? more + grid : nullptr, outputs);
                        output_adjoint(outputs, points);
                        for (int f = 0; f < POINTS; ++f) store(room.outputs + (f * n + t) * s.outputs + o, points[f]);
                    }
                }
                if (to_weight) {
                    take(s, x + segment.row * s.image(), start, n, room.patches);
                    T* sum = call.weight_sum(segment);
                    products<T>(s.channels, s.outputs, {n, room.patches, true, room.outputs}, sum, true);
                }
                if (to_x) {
                    products<T>(n, s.channels, {s.outputs, room.outputs, false, turned}, room.others, false);
                    put(s, room.others, start, n, to_x + segment.row * s.image());
                }
            });
        }
        call.write(to_weight, nullptr, nullptr, nullptr);
    }
}

}  // namespace

#define EXPORT(T, type)                                                                                                \
    extern "C" int64_t batch_memory_##type(const Sizes* s) { return Call<T>(Grid(*s), nullptr).used; }                 \
    extern "C" void batch_forward_##type(const Sizes* s, T* memory, const T* x, const T* weight, const T* mean, T* z,  \
                                         T* pooled, uint8_t* code, double* squares) {                                  \
        forward(Grid(*s), memory, x, weight, mean, z, pooled, code, squares);                                          \
    }                                                                                                                  \
    extern "C" void batch_gradients_##type(const Sizes* s, T* memory, const T* g, const uint8_t* code, const T* x,     \
                                           const T* z, const T* weight, const T* coefficients, const T* more, T* to_x, \
                                           T* to_weight) {                                                             \
        gradients(Grid(*s), memory, g, code, x, z, weight, coefficients, more, to_x, to_weight);                       \
    }
EXPORT(float, float32)
EXPORT(double, float64)
