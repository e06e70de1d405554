// Second derivatives of the step of batch_chain.cpp, where each task has its own W: what a change of x and W does to the
// outputs, and the gradients in x and W of the gradients. x' and W' are the changes (NULL: none), z' that of z.
#include "batch_grid.hpp"
#include "call.hpp"

namespace {

// `z' = W * x' + W' * x`, what stands in it where the code says, and `sums[segment]` of z' and of `z z'`, of the images
// that count.
template <class T>
void change(const Grid& s, T* memory, const T* x_, const T* weight_, const T* x, const T* weight, const T* z,
            const uint8_t* code, T* z_, T* picked, double* sums) {
    constexpr int L = Lanes<T>::count;
    const Call<T> call(s, memory);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T* kernel = x_ ? call.transformed(weight, false, segment.task, room.kernel) : nullptr;
            const T* other = weight_ ? call.transformed(weight_, false, segment.task, room.change) : nullptr;
            double* own = sums + number * 2 * s.outputs;
            std::fill_n(own, 2 * s.outputs, 0.0);
            in_blocks(s, segment, [&](long start, long n) {
                if (x_) take(s, x_ + segment.row * s.image(), start, n, room.others);
                if (weight_) take(s, x + segment.row * s.image(), start, n, room.patches);
                products<T>(n, s.outputs, {x_ ? s.channels : 0, room.others, false, kernel}, room.outputs, false,
                            {weight_ ? s.channels : 0, room.patches, false, other});
                for (long o = 0; o < s.outputs; o += L) {
                    Vector<T> plain = {}, times = {};
                    for (long t = 0; t < n; ++t) {
                        const long row = segment.row + (start + t) / s.tiles;
                        const Tile tile(s, (start + t) % s.tiles);
                        const bool counts = s.counts(row);
                        Vector<T> values[4];
                        outputs_of(s, n, t, o, room.outputs, values);
                        for (int k = 0; k < 4; ++k) {
                            if (tile.places[k] < 0) continue;
                            const long at = (row * s.area + tile.places[k]) * s.outputs + o;
                            store(z_ + at, values[k]);
                            if (!counts) continue;
                            plain += values[k];
                            times += values[k] * load(z + at);
                        }
                        const long at = (row * s.pooled() + tile.window) * s.outputs + o;
                        if (tile.window >= 0) store(picked + at, pick<T>(values, code + at));
                    }
                    for (int l = 0; l < L; ++l) {
                        own[o + l] += double(plain[l]);
                        own[s.outputs + o + l] += double(times[l]);
                    }
                }
            });
        }
    }
}

// Gradients in x and W (NULL: not wanted) of `<dz, z'>`, where dz is what `output_gradients` makes of g and z, and what
// it makes of z' is its derivative in z: `to_x = W'^T dz + W^T dz'` and `to_W = x' dz + x dz'`.
template <class T>
void again(const Grid& s, T* memory, const T* x_, const T* weight_, const T* g, const uint8_t* code, const T* x,
           const T* weight, const T* z, const T* z_, const T* coefficients, const T* coefficients_, T* to_x,
           T* to_weight) {
    const Call<T> call(s, memory);
    const long size = POINTS * BLOCK * s.outputs;
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
        T* changes = memory + call.used + omp_get_thread_num() * size;
        call.clear(to_weight);
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            const T *turned = nullptr, *other = nullptr;
            if (to_x) {
                turned = call.transformed(weight, true, segment.task, room.turned);
                if (weight_) other = call.transformed(weight_, true, segment.task, room.change);
                std::fill_n(to_x + segment.row * s.image(), segment.count * s.image(), T(0));
            }
            in_blocks(s, segment, [&](long start, long n) {
                transformed_gradients(s, segment, start, n, coefficients, z, g, code, room.outputs);
                transformed_gradients<T>(s, segment, start, n, coefficients_, z_, nullptr, nullptr, changes);
                if (to_weight) {
                    T* sum = call.weight_sum(segment);
                    take(s, x + segment.row * s.image(), start, n, room.patches);
                    products<T>(s.channels, s.outputs, {n, room.patches, true, changes}, sum, true);
                    if (x_) {
                        take(s, x_ + segment.row * s.image(), start, n, room.patches);
                        products<T>(s.channels, s.outputs, {n, room.patches, true, room.outputs}, sum, true);
                    }
                }
                if (to_x) {
                    products<T>(n, s.channels, {s.outputs, changes, false, turned}, room.others, false,
                                {other ? s.outputs : 0, room.outputs, false, other});
                    put(s, room.others, start, n, to_x + segment.row * s.image());
                }
            });
        }
        call.write(to_weight, nullptr, nullptr, nullptr);
    }
}

}  // namespace

#define EXPORT(T, type)                                                                                                \
    extern "C" int64_t batch_again_memory_##type(const Sizes* s) {                                                     \
        const Grid grid(*s);                                                                                           \
        return Call<T>(grid, nullptr).used + grid.threads * POINTS * BLOCK * grid.outputs;                             \
    }                                                                                                                  \
    extern "C" void batch_change_##type(const Sizes* s, T* memory, const T* x_, const T* weight_, const T* x,          \
                                        const T* weight, const T* z, const uint8_t* code, T* z_, T* picked,            \
                                        double* sums) {                                                                \
        change(Grid(*s), memory, x_, weight_, x, weight, z, code, z_, picked, sums);                                   \
    }                                                                                                                  \
    extern "C" void batch_again_##type(const Sizes* s, T* memory, const T* x_, const T* weight_, const T* g,           \
                                       const uint8_t* code, const T* x, const T* weight, const T* z, const T* z_,      \
                                       const T* coefficients, const T* coefficients_, T* to_x, T* to_weight) {         \
        again(Grid(*s), memory, x_, weight_, g, code, x, weight, z, z_, coefficients, coefficients_, to_x, to_weight); \
    }
EXPORT(float, float32)
EXPORT(double, float64)
