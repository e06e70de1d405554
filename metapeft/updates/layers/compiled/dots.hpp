// Products of bfloat16 with sums in float, two terms an instruction: a 3x3 convolution of images with a border, and the
// gradient of its kernel. Images lie one after the other in lines of `line` places with a line of zeros before each, so
// that a tap is a constant distance and rows need no ends; what comes out at a border is for nobody.
#pragma once

#include "batch_grid.hpp"

#if defined(__AVX512BF16__)

using Pairs = __m512bh;
inline Pairs pairs(const BFloat* p) { return Pairs(_mm512_loadu_si512(p)); }
inline Pairs everywhere(const BFloat* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return Pairs(_mm512_set1_epi32(pair));
}

// `to[m][n] = sum_k a[m][k] b[k][n] - less[n]` for M places: `depth` pairs of a place stand together for each of three
// rows of the kernel, `step` apart; b `(3 depth, columns, 2)`.
template <int M, int N>
inline void place_products(const BFloat* a, long a_row, long step, long depth, const BFloat* b, long columns,
                           const float* less, BFloat* to) {
    __m512 sums[M][N];
    for (int n = 0; n < N; ++n) {
        __m512 from = _mm512_setzero_ps();
        if (less) from = _mm512_sub_ps(from, _mm512_loadu_ps(less + 16 * n));
        for (int m = 0; m < M; ++m) sums[m][n] = from;
    }
    for (int u = 0; u < 3; ++u, a += step)
        for (long k = 0; k < depth; ++k, b += 2 * columns) {
            Pairs right[N];
            for (int n = 0; n < N; ++n) right[n] = pairs(b + 32 * n);
            for (int m = 0; m < M; ++m) {
                const Pairs left = everywhere(a + m * a_row + 2 * k);
                for (int n = 0; n < N; ++n) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], left, right[n]);
            }
        }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) put_back(to + m * columns + 16 * n, Vector<float>(sums[m][n]));
}

// Of `places` in a row, for N vectors of outputs. The last block overlaps the one before.
template <int M, int N>
void columns_of(const BFloat* a, long channels, long line, long places, const BFloat* b, long columns,
                const float* less, BFloat* to) {
    const auto block = [&](long q, auto size) {
        place_products<decltype(size)::value, N>(a + q * channels, channels, line * channels, 3 * channels / 2, b,
                                                 columns, less, to + q * columns);
    };
    long q = 0;
    for (; q + M <= places; q += M) block(q, std::integral_constant<int, M>());
    if (q < places && places >= M) block(places - M, std::integral_constant<int, M>());
    else
        for (; q < places; ++q) block(q, std::integral_constant<int, 1>());
}

// A convolution: to `(places, columns)` from a `(places and two lines more, channels)`.
inline void convolve(const BFloat* a, long channels, long line, long places, const BFloat* b, long columns,
                     const float* less, BFloat* to) {
    long o = 0;
    const auto from = [&] { return less ? less + o : nullptr; };
    for (; o + 64 <= columns; o += 64) columns_of<6, 4>(a, channels, line, places, b + 2 * o, columns, from(), to + o);
    for (; o + 32 <= columns; o += 32) columns_of<12, 2>(a, channels, line, places, b + 2 * o, columns, from(), to + o);
    for (; o < columns; o += 16) columns_of<14, 1>(a, channels, line, places, b + 2 * o, columns, from(), to + o);
}

// The kernel `w (outputs, channels, 3, 3)` as such a b: `(9 channels / 2, outputs, 2)`; or the one that takes gradients
// of outputs back, `(9 outputs / 2, channels, 2)`, its taps turned around.
inline void arrange(const float* w, long outputs, long channels, bool turned, BFloat* b) {
    const long rows = turned ? outputs : channels, columns = turned ? channels : outputs;
    for (long tap = 0; tap < 9; ++tap)
        for (long r = 0; r < rows; ++r)
            for (long column = 0; column < columns; ++column) {
                const long o = turned ? r : column, c = turned ? column : r;
                const float value = w[(o * channels + c) * 9 + (turned ? 8 - tap : tap)];
                uint32_t bits;
                std::memcpy(&bits, &value, sizeof bits);
                const uint32_t even = bits + 0x7fff + (bits >> 16 & 1);
                const bool number = value == value;
                b[((tap * rows + r) / 2 * columns + column) * 2 + r % 2].bits = uint16_t(number ? even >> 16 : 0x7fc0);
            }
}

// Places two by two: `to (count, columns, 2)` from `(2 count, columns)`.
inline void pair_up(const BFloat* from, long count, long columns, BFloat* to) {
    alignas(64) uint16_t order[2][32];
    for (int i = 0; i < 32; ++i) order[0][i] = uint16_t(i / 2 + i % 2 * 32), order[1][i] = uint16_t(order[0][i] + 16);
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (long j = 0; j < count; ++j, from += 2 * columns, to += 2 * columns) {
        long c = 0;
        for (; c + 32 <= columns; c += 32) {
            const __m512i first = _mm512_loadu_si512(from + c), second = _mm512_loadu_si512(from + columns + c);
            _mm512_storeu_si512(to + 2 * c, _mm512_permutex2var_epi16(first, low, second));
            _mm512_storeu_si512(to + 2 * c + 32, _mm512_permutex2var_epi16(first, high, second));
        }
        for (; c < columns; ++c) to[2 * c] = from[c], to[2 * c + 1] = from[columns + c];
    }
}

// `sums[m][n] += sum_k a[m][k] b[k][n]` over `count` pairs of places, for M rows of channels and taps.
template <int M, int N>
inline void tap_products(const BFloat* const* a, long a_step, const BFloat* b, long columns, long count, float* const* to) {
    __m512 sums[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sums[m][n] = _mm512_loadu_ps(to[m] + 16 * n);
    const BFloat* rows[M];
    for (int m = 0; m < M; ++m) rows[m] = a[m];
    for (long k = 0; k < count; ++k, b += 2 * columns) {
        Pairs right[N];
        for (int n = 0; n < N; ++n) right[n] = pairs(b + 32 * n);
        for (int m = 0; m < M; ++m) {
            const Pairs left = everywhere(rows[m] + k * a_step);
            for (int n = 0; n < N; ++n) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], left, right[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) _mm512_storeu_ps(to[m] + 16 * n, sums[m][n]);
}

// The gradient of a kernel, `sums (9, channels, outputs)`, from `count` pairs of places b `(count, outputs, 2)` and the
// pairs of the images that begin at even places and at odd ones. `channels` even.
inline void kernel_products(const BFloat* const* x, long channels, long line, const BFloat* b, long outputs, long count,
                            float* sums) {
    for (long u = 0; u < 3; ++u)
        for (long c = 0; c < channels; c += 2) {
            const BFloat* a[6];
            float* to[6];
            for (int m = 0; m < 6; ++m) {
                const long tap = u * line + m / 2;
                a[m] = x[tap % 2] + (tap / 2 * channels + c + m % 2) * 2;
                to[m] = sums + ((u * 3 + m / 2) * channels + c + m % 2) * outputs;
            }
            for (long o = 0; o < outputs; o += 16) {
                const int n = int(std::min<long>(4, (outputs - o) / 16));
                if (n == 4) tap_products<6, 4>(a, 2 * channels, b + 2 * o, outputs, count, to), o += 48;
                else if (n >= 2) tap_products<6, 2>(a, 2 * channels, b + 2 * o, outputs, count, to), o += 16;
                else tap_products<6, 1>(a, 2 * channels, b + 2 * o, outputs, count, to);
                for (int m = 0; m < 6; ++m) to[m] += n == 4 ? 64 : n >= 2 ? 32 : 16;
            }
        }
}

#endif
