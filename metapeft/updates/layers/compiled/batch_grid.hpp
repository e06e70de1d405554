// What the chains on batch statistics share: grids with a border, gradients of a convolution's outputs. A call's outputs `z` lie in grids of `(height + 1) x (width + 1)` places an image, the last row and column
// unused, so that an image with one line of zeros between its rows has the same places.
#pragma once

#include "tiles.hpp"

// Windows of the pooling are tiles, and so are the outputs that it leaves over at odd sizes.
struct Grid : Shape {
    long pooled_high, pooled_wide, line, area;
    explicit Grid(const Sizes& sizes)
        : Shape(sizes), pooled_high(sizes.height / 2), pooled_wide(sizes.width / 2), line(sizes.width + 1),
          area((sizes.height + 1) * line) {
        high = (height + 1) / 2, wide = (width + 1) / 2, tiles = high * wide;
    }
    long pooled() const { return pooled_high * pooled_wide; }
    bool counts(long row) const { return row % images < reference; }  // in the statistics
};

// Where a tile's outputs are.
struct Tile {
    long places[4];  // in the grid of its image, -1 beyond the border
    long window;     // of the pooling, -1 where it is none
    Tile(const Grid& s, long tile) {
        const long y = tile / s.wide, x = tile % s.wide;
        for (int k = 0; k < 4; ++k) {
            const long row = 2 * y + k / 2, column = 2 * x + k % 2;
            places[k] = row < s.height && column < s.width ? row * s.line + column : -1;
        }
        window = y < s.pooled_high && x < s.pooled_wide ? y * s.pooled_wide + x : -1;
    }
};

// The largest of four; which it was goes to `code`. Where one is not a number, the mean is none, and so all are not.
template <class T> inline Vector<T> largest(const Vector<T>* z, uint8_t* code) {
    using Mask = typename Lanes<T>::Mask;
    Vector<T> most = z[0];
    Mask which = {};
    for (int k = 1; k < 4; ++k) {
        const Mask larger = z[k] > most;
        most = larger ? z[k] : most;
        which = larger ? Mask{} + k : which;
    }
    *reinterpret_cast<typename Lanes<T>::Codes*>(code) = __builtin_convertvector(which, typename Lanes<T>::Codes);
    return most;
}

// Coefficients of an image, `(tasks, 2, 3, outputs)`, first those of images that count in the statistics: the gradient of
// an output is `routed * g + slope * z + level`, with g where it was the largest.
template <class T> struct Slopes {
    const T *routed, *slope, *level;
    Slopes(const Grid& s, long row, const T* coefficients)
        : routed(coefficients + (row / s.images * 2 + !s.counts(row)) * 3 * s.outputs), slope(routed + s.outputs),
          level(slope + s.outputs) {}
};

// Gradients of the four outputs of a tile; 0 beyond the border. z, g and code are those of its image, as is what else
// goes to z (NULL: nothing).
template <class E, class T = typename Computed<E>::type>
inline void output_gradients(const Grid& s, const Tile& tile, long o, const Slopes<T>& by, const E* z, const E* g,
                             const uint8_t* code, const E* more, Vector<T>* out) {
    typename Lanes<T>::Mask which = {};
    which += OFF;
    Vector<T> routed = {};
    if (tile.window >= 0) {
        which = codes<T>(code + tile.window * s.outputs + o);
        routed = get(g + tile.window * s.outputs + o) * load(by.routed + o);
    }
    const Vector<T> slope = load(by.slope + o), level = load(by.level + o);
    for (int k = 0; k < 4; ++k) {
        if (tile.places[k] < 0) {
            out[k] = Vector<T>{};
            continue;
        }
        const long at = tile.places[k] * s.outputs + o;
        Vector<T> dense = slope * get(z + at) + level;
        if (more) dense += get(more + at);
        out[k] = which == k ? dense + routed : dense;
    }
}
