// First and second moments of what stands under a 3x3 kernel, over the places of a task's images that count: a convolution's mean
// and variance follow from them for any weights, and the gradients through those, without its outputs.
#include "few_channels.hpp"

namespace {

constexpr long LINES = 4;  // of an image whose products are summed up in T

// `sums[segment]`, a matrix of `9 channels + 1` rows and columns, taps before channels and a 1 after them: of its
// products what lies on the diagonal and to its right in steps of a vector.
template <class T> void moments(const Shape& s, T* memory, const T* x, double* sums) {
    constexpr int L = Lanes<T>::count;
    const long taps = 9 * s.channels, own = taps + 1, filled = (own + L - 1) / L * L;
    const Call<T> call(s, memory);
#pragma omp parallel num_threads(s.threads)
    {
        Room<T> room = call.room();
        T *patches = memory + call.used + omp_get_thread_num() * (s.width + 2 + filled) * filled,
          *products = patches + (s.width + 2) * filled;
#pragma omp for schedule(static)
        for (long number = 0; number < s.segments(); ++number) {
            const Segment segment(s, number);
            double* to = sums + number * own * own;
            std::fill_n(to, own * own, 0.0);
            for (long row = segment.row; row < segment.row + segment.count; ++row) {
                if (row % s.images >= s.reference) continue;
                room.read_image(s, x + row * s.image());
                for (long y = 0; y < s.height; ++y) {
                    for (long i = 0; i < s.width; ++i) {  // whole vectors: what is too much, the next ones cover
                        for (long u = 0; u < 3; ++u)
                            for (long c = 0; c < 3 * s.channels; c += L)
                                store(patches + i * filled + u * 3 * s.channels + c,
                                      load(room.image + (y + u) * room.line + i * s.channels + c));
                        patches[i * filled + taps] = 1;
                    }
                    for (long at = 0; at < filled; at += L)
                        product<T>(std::min(own - at, long(L)), filled - at,
                                   {s.width, patches + at, 1, filled, patches + at, filled}, {},
                                   products + at * filled + at, filled, y % LINES > 0);
                    if (y % LINES < LINES - 1 && y < s.height - 1) continue;
                    for (long i = 0; i < own; ++i)
                        for (long j = i; j < own; ++j) to[i * own + j] += double(products[i * filled + j]);
                }
            }
            for (long i = 0; i < own; ++i)
                for (long j = 0; j < i; ++j) to[i * own + j] = to[j * own + i];
        }
    }
}

template <class T> int64_t needed(const Shape& s) {
    const long filled = 9 * s.channels + Lanes<T>::count;
    return Call<T>(s, nullptr).used + s.threads * (s.width + 2 + filled) * filled;
}

}  // namespace

#define EXPORT(T, type)                                                                                                \
    extern "C" int64_t few_moments_memory_##type(const Sizes* s) { return needed<T>(Shape(*s)); }                      \
    extern "C" void few_moments_##type(const Sizes* s, T* memory, const T* x, double* sums) {                          \
        moments(Shape(*s), memory, x, sums);                                                                           \
    }
EXPORT(float, float32)
EXPORT(double, float64)
