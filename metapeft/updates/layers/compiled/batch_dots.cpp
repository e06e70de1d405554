// The same as batch_chain.cpp on numbers stored as bfloat16, by products of them with sums in float, in tiles where
// the processor has them; W and its gradient are in float, and shared by all tasks. Only for processors that have such
// products.
#include <omp.h>

#include "amx.hpp"

#if defined(__AVX512BF16__)
namespace {

constexpr long PLACES = 1600;  // of the images that a thread has in hand at once, about
constexpr long COUNT = 96;     // pairs of places whose products are summed up at once: they stay in a core's first cache
constexpr long TILE = 16;      // pairs of a register of tiles

// What a thread works in: images with a border, gradients of outputs likewise, pairs of both, what goes to x.
struct Bench {
    BFloat *images, *outputs, *even, *odd, *pairs, *found;
    float* sums;
    long line, most, places;
    Bench(const Grid& s, Memory<float>& memory) : line(s.line), most(std::max<long>(1, PLACES / s.area)) {
        places = (most * (s.height + 1) + 1) * line + 16;
        const auto take = [&](long count) { return reinterpret_cast<BFloat*>(memory.take((count + 1) / 2)); };
        images = take(places * s.channels);
        outputs = take((places + 2 * COUNT) * s.outputs);
        const long window = COUNT + line + 2 + TILE;
        even = take(2 * window * s.channels), odd = take(2 * window * s.channels);
        pairs = take(2 * COUNT * s.outputs);
        found = take(places * s.channels);
        sums = memory.take(9 * s.channels * s.outputs);
    }
    // Of images, without their border; what is left of others before does not stay behind them.
    void read(const Grid& s, const BFloat* from, long count) const {
        for (long i = 0; i < count; ++i) read(s, i, from + i * s.image());
        if (count < most) std::fill_n(images + (count * s.area + line) * s.channels, s.area * s.channels, BFloat{0});
    }
    void read(const Grid& s, long number, const BFloat* from) const {
        BFloat* to = images + (number * s.area + line + 1) * s.channels;
        for (long y = 0; y < s.height; ++y)
            std::copy_n(from + y * s.width * s.channels, s.width * s.channels, to + y * line * s.channels);
    }
};

struct Call {
    const Grid& s;
    BFloat *kernel, *turned;
    float* benches;
    long size, used;
    Call(const Grid& s, float* base) : s(s) {
        Memory<float> memory(base), one(nullptr);
        kernel = reinterpret_cast<BFloat*>(memory.take(9 * s.channels * s.outputs / 2));
        turned = reinterpret_cast<BFloat*>(memory.take(9 * s.channels * s.outputs / 2));
        benches = memory.take(0);
        Bench counted(s, one);
        size = one.used();
        used = memory.used() + s.threads * size;
    }
    Bench bench(long thread) const {
        Memory<float> memory(benches + thread * size);
        return Bench(s, memory);
    }
};

// Run `work(first image, images)` over a segment, as many at once as a bench has places for.
template <class Work> void in_groups(const Segment& segment, long most, Work work) {
    for (long first = segment.row; first < segment.row + segment.count; first += most)
        work(first, std::min(most, segment.row + segment.count - first));
}

// Squares and pooled values of an image's outputs.
void finish(const Grid& s, const BFloat* z, BFloat* pooled, uint8_t* code, double* squares) {
    for (long o = 0; o < s.outputs; o += 16) {
        Vector<float> square = {};
        for (long t = 0; t < s.tiles; ++t) {
            const Tile tile(s, t);
            Vector<float> values[4];
            for (int k = 0; k < 4; ++k) {
                if (tile.places[k] < 0) continue;
                values[k] = get(z + tile.places[k] * s.outputs + o);
                square += values[k] * values[k];
            }
            const long at = tile.window * s.outputs + o;
            if (tile.window >= 0) put_back(pooled + at, largest<float>(values, code + at));
        }
        for (int l = 0; l < 16; ++l) squares[o + l] += double(square[l]);
    }
}

// A convolution of the images in hand, by tiles or by vectors.
void convolve_all(const Grid& s, const BFloat* a, long channels, long places, const BFloat* b, long columns,
                  const float* less, BFloat* to) {
    const bool tiles = places >= 32 && tiles_fit(s);
    (tiles ? convolve_tiles : convolve)(a, channels, s.line, places, b, columns, less, to);
}

void forward(const Grid& s, float* memory, const BFloat* x, const float* weight, const float* mean, BFloat* z,
             BFloat* pooled, uint8_t* code, double* squares) {
    const Call call(s, memory);
    arrange(weight, s.outputs, s.channels, false, call.kernel);
#pragma omp parallel num_threads(s.threads)
    {
        const Bench bench = call.bench(omp_get_thread_num());
        std::fill_n(bench.images, bench.places * s.channels, BFloat{0});
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            std::fill_n(squares + number * s.outputs, s.outputs, 0.0);
            in_groups(segment, bench.most, [&](long first, long count) {
                bench.read(s, x + first * s.image(), count);
                convolve_all(s, bench.images, s.channels, count * s.area - s.line, call.kernel, s.outputs,
                             mean + segment.task * s.outputs, z + first * s.area * s.outputs);
                for (long row = first; row < first + count; ++row)
                    finish(s, z + row * s.area * s.outputs, pooled + row * s.pooled() * s.outputs,
                           code + row * s.pooled() * s.outputs, squares + number * s.outputs);
            });
        }
    }
}

void spread_image(const Grid& s, const Slopes<float>& by, const BFloat* z, const BFloat* g, const uint8_t* code,
                  BFloat* to) {
    for (long t = 0; t < s.tiles; ++t) {
        const Tile tile(s, t);
        for (long o = 0; o < s.outputs; o += 16) {
            Vector<float> values[4];
            output_gradients<BFloat>(s, tile, o, by, z, g, code, nullptr, values);
            for (int k = 0; k < 4; ++k)
                if (tile.places[k] >= 0) put_back(to + tile.places[k] * s.outputs + o, values[k]);
        }
    }
}

void to_kernel(const Grid& s, const Bench& bench, const BFloat* outputs, long places) {
    const bool tiles = tiles_fit(s);
    for (long begin = 0; begin < places; begin += 2 * COUNT) {
        const long count = std::min(COUNT, (places - begin + 1) / 2), window = count + s.line + 1;
        const long left = std::min(window, (bench.places - 1 - begin) / 2);  // beyond are places that no output has
        const BFloat* images = bench.images + begin * s.channels;
        pair_up(outputs + begin * s.outputs, count, s.outputs, bench.pairs);
        if (tiles) {
            const long whole = (count + TILE - 1) / TILE * TILE, turned = (whole + s.line + TILE) / TILE * TILE;
            std::fill_n(bench.pairs + 2 * count * s.outputs, 2 * (whole - count) * s.outputs, BFloat{0});
            pair_up(images, left, s.channels, bench.odd);
            std::fill_n(bench.odd + 2 * left * s.channels, 2 * (turned - left) * s.channels, BFloat{0});
            turn_pairs(bench.odd, turned, s.channels, bench.even);
            kernel_products_tiles(bench.even, 2 * turned, s.channels, s.line, bench.pairs, s.outputs, whole, bench.sums);
            continue;
        }
        pair_up(images, left, s.channels, bench.even);
        pair_up(images + s.channels, left, s.channels, bench.odd);
        const BFloat* both[2] = {bench.even, bench.odd};
        kernel_products(both, s.channels, s.line, bench.pairs, s.outputs, count, bench.sums);
    }
}

void gradients(const Grid& s, float* memory, const BFloat* g, const uint8_t* code, const BFloat* x, const BFloat* z,
               const float* weight, const float* coefficients, BFloat* to_x, float* to_weight) {
    const Call call(s, memory);
    if (to_x) arrange(weight, s.outputs, s.channels, true, call.turned);
#pragma omp parallel num_threads(s.threads)
    {
        const Bench bench = call.bench(omp_get_thread_num());
        const long sums = 9 * s.channels * s.outputs;
        std::fill_n(bench.images, bench.places * s.channels, BFloat{0});
        std::fill_n(bench.outputs, (bench.places + 2 * COUNT) * s.outputs, BFloat{0});
        std::fill_n(bench.even, bench.pairs - bench.even, BFloat{0});
        std::fill_n(bench.sums, sums, 0.0f);
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            in_groups(segment, bench.most, [&](long first, long count) {
                BFloat* own = bench.outputs + (s.line + 1) * s.outputs;
                for (long i = 0; i < count; ++i) {
                    const long row = first + i, values = row * s.pooled() * s.outputs;
                    const Slopes<float> by(s, row, coefficients);
                    spread_image(s, by, z + row * s.area * s.outputs, g + values, code + values,
                                 own + i * s.area * s.outputs);
                }
                const long places = count * s.area - s.line;
                if (to_weight) {
                    bench.read(s, x + first * s.image(), count);
                    to_kernel(s, bench, own, places);
                }
                if (!to_x) return;
                convolve_all(s, bench.outputs, s.outputs, places, call.turned, s.channels, nullptr, bench.found);
                for (long line = 0; line < count * s.height; ++line) {
                    const long i = line / s.height, y = line % s.height;
                    std::copy_n(bench.found + (i * s.area + y * s.line) * s.channels, s.width * s.channels,
                                to_x + (first + i) * s.image() + y * s.width * s.channels);
                }
            });
        }
        if (to_weight) {
#pragma omp for schedule(static)
            for (long o = 0; o < s.outputs; ++o)
                for (long i = 0; i < 9 * s.channels; ++i) {
                    float sum = 0;
                    for (long thread = 0; thread < s.threads; ++thread)
                        sum += call.bench(thread).sums[i * s.outputs + o];
                    to_weight[(o * s.channels + i % s.channels) * 9 + i / s.channels] = sum;
                }
        }
    }
}

}  // namespace

extern "C" int64_t batch_memory_bfloat16(const Sizes* s) { return Call(Grid(*s), nullptr).used; }
extern "C" void batch_forward_bfloat16(const Sizes* s, float* memory, const BFloat* x, const float* weight,
                                       const float* mean, BFloat* z, BFloat* pooled, uint8_t* code, double* squares) {
    forward(Grid(*s), memory, x, weight, mean, z, pooled, code, squares);
}
extern "C" void batch_gradients_bfloat16(const Sizes* s, float* memory, const BFloat* g, const uint8_t* code,
                                         const BFloat* x, const BFloat* z, const float* weight,
                                         const float* coefficients, const BFloat*, BFloat* to_x, float* to_weight) {
    gradients(Grid(*s), memory, g, code, x, z, weight, coefficients, to_x, to_weight);
}
#endif
