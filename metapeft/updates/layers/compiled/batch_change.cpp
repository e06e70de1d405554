// What a change of x and W does to the outputs of the step of batch_chain.cpp, where each task has its own W. x' and W'
// are the changes (NULL: none), z' that of z. With it a second derivative is the first one again, of the changes.
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

}  // namespace

#define EXPORT(T, type)                                                                                                \
    extern "C" void batch_change_##type(const Sizes* s, T* memory, const T* x_, const T* weight_, const T* x,          \
                                        const T* weight, const T* z, const uint8_t* code, T* z_, T* picked,            \
                                        double* sums) {                                                                \
        change(Grid(*s), memory, x_, weight_, x, weight, z, code, z_, picked, sums);                                   \
    }
EXPORT(float, float32)
EXPORT(double, float64)
