// Products of bfloat16 by the tile registers of Intel's AMX, for the same arrays as those of dots.hpp: 32 places by 32
// columns at a time. Where METAPEFT_TILES is defined, registers are emulated in plain C++, for tests of what is done
// with them on processors that have none.
#pragma once

#include "dots.hpp"

#if defined(__AVX512BF16__) && (defined(__AMX_BF16__) || defined(METAPEFT_TILES))

#if defined(METAPEFT_TILES)
struct TileRegister {
    char rows[16][64];
};
inline thread_local TileRegister tile_registers[8];
#define tile_zero(t) std::memset(&tile_registers[t], 0, sizeof(TileRegister))
#define tile_load(t, p, step)                                                                                          \
    for (int row = 0; row < 16; ++row)                                                                                 \
    std::memcpy(tile_registers[t].rows[row], reinterpret_cast<const char*>(p) + row * long(step), 64)
#define tile_store(t, p, step)                                                                                         \
    for (int row = 0; row < 16; ++row)                                                                                 \
    std::memcpy(reinterpret_cast<char*>(p) + row * long(step), tile_registers[t].rows[row], 64)
#define tile_product(c, a, b) emulated_product(tile_registers[c], tile_registers[a], tile_registers[b])
inline void emulated_product(TileRegister& c, const TileRegister& a, const TileRegister& b) {
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k) {
            const Pairs left = everywhere(reinterpret_cast<const BFloat*>(a.rows[m]) + 2 * k);
            const __m512 sum = _mm512_loadu_ps(c.rows[m]);
            _mm512_storeu_ps(c.rows[m], _mm512_dpbf16_ps(sum, left, Pairs(_mm512_loadu_si512(b.rows[k]))));
        }
}
inline bool tiles_allowed() { return true; }
struct TilesInUse {};
#else
#include <sys/syscall.h>
#include <unistd.h>
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p, step) _tile_loadd(t, p, step)
#define tile_store(t, p, step) _tile_stored(t, p, step)
#define tile_product(c, a, b) _tile_dpbf16ps(c, a, b)
// Linux hands the registers out on demand, once a process.
inline bool tiles_allowed() {
    constexpr long request = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, request, data) == 0;
    return allowed;
}
// All eight registers as 16 rows of 64 bytes; given back at the end, as others in the process expect it.
struct TilesInUse {
    TilesInUse() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, none[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~TilesInUse() { _tile_release(); }
};
#endif

// Whether all of it fits: whole registers of channels and outputs.
inline bool tiles_fit(const Grid& s) { return s.channels % 32 == 0 && s.outputs % 32 == 0 && tiles_allowed(); }

// As `convolve` of dots.hpp, of 32 places at least.
inline void convolve_tiles(const BFloat* a, long channels, long line, long places, const BFloat* b, long columns,
                           const float* less, BFloat* to) {
    const TilesInUse use;
    const long a_step = 2 * channels, b_step = 4 * columns, depth = 3 * channels;
    alignas(64) float sums[32][32];
    for (long o = 0; o < columns; o += 32)
        for (long next = 0; next < places; next += 32) {
            const long q = std::min(next, places - 32);  // the last block overlaps the one before
            tile_zero(0);
            tile_zero(1);
            tile_zero(2);
            tile_zero(3);
            for (long u = 0; u < 3; ++u)
                for (long k = 0; k < depth; k += 32) {
                    const BFloat *left = a + (q + u * line) * channels + k, *right = b + (u * depth + k) * columns + 2 * o;
                    tile_load(4, left, a_step);
                    tile_load(5, left + 16 * channels, a_step);
                    tile_load(6, right, b_step);
                    tile_load(7, right + 32, b_step);
                    tile_product(0, 4, 6);
                    tile_product(1, 4, 7);
                    tile_product(2, 5, 6);
                    tile_product(3, 5, 7);
                }
            tile_store(0, sums[0], 128);
            tile_store(1, sums[0] + 16, 128);
            tile_store(2, sums[16], 128);
            tile_store(3, sums[16] + 16, 128);
            for (long m = 0; m < 32; ++m)
                for (long n = 0; n < 32; n += 16) {
                    const Vector<float> sum = load(sums[m] + n);
                    put_back(to + (q + m) * columns + o + n, less ? sum - load(less + o + n) : sum);
                }
        }
}

// `to[column][i]` from `from[i][column]`, pairs as they are; `count` and `columns` multiples of 16.
inline void turn_pairs(const BFloat* from, long count, long columns, BFloat* to) {
    for (long i = 0; i < count; i += 16)
        for (long c = 0; c < columns; c += 16) {
            __m512i rows[16], other[16];
            for (int r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(from + 2 * ((i + r) * columns + c));
            for (int r = 0; r < 16; r += 2) {
                other[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
                other[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
            }
            for (int r = 0; r < 16; r += 4)
                for (int h = 0; h < 2; ++h) {
                    rows[r + 2 * h] = _mm512_unpacklo_epi64(other[r + h], other[r + 2 + h]);
                    rows[r + 2 * h + 1] = _mm512_unpackhi_epi64(other[r + h], other[r + 2 + h]);
                }
            for (int r = 0; r < 4; ++r) {  // rows[4 g + r] has columns r, r + 4, r + 8, r + 12 of rows 4 g to 4 g + 3
                const __m512i low = _mm512_shuffle_i32x4(rows[r], rows[4 + r], 0x88),
                              high = _mm512_shuffle_i32x4(rows[r], rows[4 + r], 0xdd),
                              more_low = _mm512_shuffle_i32x4(rows[8 + r], rows[12 + r], 0x88),
                              more_high = _mm512_shuffle_i32x4(rows[8 + r], rows[12 + r], 0xdd);
                other[r] = _mm512_shuffle_i32x4(low, more_low, 0x88);
                other[r + 8] = _mm512_shuffle_i32x4(low, more_low, 0xdd);
                other[r + 4] = _mm512_shuffle_i32x4(high, more_high, 0x88);
                other[r + 12] = _mm512_shuffle_i32x4(high, more_high, 0xdd);
            }
            for (int r = 0; r < 16; ++r) _mm512_storeu_si512(to + 2 * ((c + r) * count + i), other[r]);
        }
}

// As `kernel_products` of dots.hpp, with the images turned: x `(channels, step)`; `count` a multiple of 16.
inline void kernel_products_tiles(const BFloat* x, long step, long channels, long line, const BFloat* b, long outputs,
                                  long count, float* sums) {
    const TilesInUse use;
    const long a_step = 2 * step, b_step = 4 * outputs;
    for (long tap = 0; tap < 9; ++tap)
        for (long c = 0; c < channels; c += 32)
            for (long o = 0; o < outputs; o += 32) {
                float *to = sums + (tap * channels + c) * outputs + o, *below = to + 16 * outputs;
                tile_load(0, to, b_step);
                tile_load(1, to + 16, b_step);
                tile_load(2, below, b_step);
                tile_load(3, below + 16, b_step);
                for (long k = 0; k < count; k += 16) {
                    const BFloat *left = x + c * step + tap / 3 * line + tap % 3 + 2 * k, *right = b + 2 * (k * outputs + o);
                    tile_load(4, left, a_step);
                    tile_load(5, left + 16 * step, a_step);
                    tile_load(6, right, b_step);
                    tile_load(7, right + 32, b_step);
                    tile_product(0, 4, 6);
                    tile_product(1, 4, 7);
                    tile_product(2, 5, 6);
                    tile_product(3, 5, 7);
                }
                tile_store(0, to, b_step);
                tile_store(1, to + 16, b_step);
                tile_store(2, below, b_step);
                tile_store(3, below + 16, b_step);
            }
}

#elif defined(__AVX512BF16__)

inline bool tiles_fit(const Grid&) { return false; }
inline void convolve_tiles(const BFloat*, long, long, long, const BFloat*, long, const float*, BFloat*) {}
inline void turn_pairs(const BFloat*, long, long, BFloat*) {}
inline void kernel_products_tiles(const BFloat*, long, long, long, const BFloat*, long, long, float*) {}

#endif
