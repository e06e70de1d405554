// Blocks of tiles, and what is done with them. A tile is one value of the pooling, 2x2 outputs of the convolution, a
// 4x4 patch of its input.
//
// Arrays of a block of n: patches `v[f][tile][channel]`, outputs `m[f][tile][output]`, low-rank values
// `e[tile][k][term]` at the four outputs k of a tile, and `q[f][tile][term]` where they are transformed; f is a point
// of the transform.
#pragma once

#include "shape.hpp"

// Rows `from` to `to` of kernels `w[row, column, 3x3]`, to `u[f][row][column]`; rows beyond `rows` are 0.
template <class T>
void transform_kernels(const T* w, long row_step, long column_step, long from, long to, long rows, long filled,
                       long columns, T* u) {
    constexpr int L = Lanes<T>::count;
    for (long row = from; row < to; ++row)
        for (long column = 0; column < columns; column += L) {
            T lanes[9][L] = {};
            for (int l = 0; l < L && row < rows; ++l)
                for (int tap = 0; tap < 9; ++tap) lanes[tap][l] = w[row * row_step + (column + l) * column_step + tap];
            Vector<T> kernel[9], out[POINTS];
            for (int tap = 0; tap < 9; ++tap) kernel[tap] = load(lanes[tap]);
            kernel_transform(kernel, out);
            for (int f = 0; f < POINTS; ++f) store(u + (f * filled + row) * columns + column, out[f]);
        }
}

// Its adjoint.
template <class T>
void adjoint_kernels(const T* u, long row_step, long column_step, long from, long to, long filled, long columns, T* w) {
    constexpr int L = Lanes<T>::count;
    for (long row = from; row < to; ++row)
        for (long column = 0; column < columns; column += L) {
            T lanes[9][L];
            Vector<T> points[POINTS], out[9];
            for (int f = 0; f < POINTS; ++f) points[f] = load(u + (f * filled + row) * columns + column);
            kernel_adjoint(points, out);
            for (int tap = 0; tap < 9; ++tap) store(lanes[tap], out[tap]);
            for (int l = 0; l < L; ++l)
                for (int tap = 0; tap < 9; ++tap) w[row * row_step + (column + l) * column_step + tap] = lanes[tap][l];
        }
}

// The places of a tile's patch in an image, -1 for those beyond its border.
inline void patch_places(const Shape& s, long tile, long* places) {
    const long top = tile / s.wide * 2 - 1, left = tile % s.wide * 2 - 1;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const long y = top + i, x = left + j;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            places[4 * i + j] = inside ? (y * s.width + x) * s.channels : -1;
        }
}

// Patches of n tiles from `start` on, counted through the images of a segment.
template <class T> void take(const Shape& s, const T* images, long start, long n, T* v) {
    constexpr int L = Lanes<T>::count;
    for (long t = 0; t < n; ++t) {
        const T* image = images + (start + t) / s.tiles * s.image();
        long places[16];
        patch_places(s, (start + t) % s.tiles, places);
        for (long c = 0; c < s.channels; c += L) {
            Vector<T> patch[16], out[POINTS];
            for (int i = 0; i < 16; ++i) patch[i] = places[i] < 0 ? Vector<T>{} : load(image + places[i] + c);
            patch_transform(patch, out);
            for (int f = 0; f < POINTS; ++f) store(v + (f * n + t) * s.channels + c, out[f]);
        }
    }
}

// Its adjoint, added to the images.
template <class T> void put(const Shape& s, const T* v, long start, long n, T* images) {
    constexpr int L = Lanes<T>::count;
    for (long t = 0; t < n; ++t) {
        T* image = images + (start + t) / s.tiles * s.image();
        long places[16];
        patch_places(s, (start + t) % s.tiles, places);
        for (long c = 0; c < s.channels; c += L) {
            Vector<T> points[POINTS], out[16];
            for (int f = 0; f < POINTS; ++f) points[f] = load(v + (f * n + t) * s.channels + c);
            patch_adjoint(points, out);
            for (int i = 0; i < 16; ++i)
                if (places[i] >= 0) add(image + places[i] + c, out[i]);
        }
    }
}

// Of each point f on its own: a `(rows, depth)`, or `(depth, rows)` where it is turned, and b `(depth, columns)`.
template <class T> struct Points {
    long depth;
    const T* a;
    bool turned;
    const T* b;
};

// For each point `c (+)= a b`, of one pair or of two.
template <class T>
void products(long rows, long columns, const Points<T>& one, T* c, bool more, const Points<T>& two = {}) {
    const auto factors = [=](const Points<T>& p, int f) -> Factors<T> {
        return {p.depth, p.a + f * rows * p.depth, p.turned ? 1 : p.depth, p.turned ? rows : 1,
                p.b + f * p.depth * columns, columns};
    };
    for (int f = 0; f < POINTS; ++f)
        product<T>(rows, columns, factors(one, f), factors(two, f), c + f * rows * columns, columns, more);
}

// Sums over the lanes of 16 vectors.
template <class T> inline void sums_over_lanes(Vector<T>* v, T* sums) {
    constexpr int L = Lanes<T>::count;
    for (int i = 0; i < 16; i += L) store(sums + i, sums_of<T>(v + i));
}

// `e[tile][k][term] (+)= ` the convolution of patches to few channels, by kernels `d[f][term][channel]`.
template <class T> void thin(const Shape& s, long n, const T* v, const T* d, T* e, bool more) {
    constexpr int L = Lanes<T>::count;
    for (long t = 0; t < n; ++t)
        for (long r = 0; r < s.rank; r += TERMS) {
            Vector<T> points[TERMS][POINTS], out[4 * TERMS];
            for (int f = 0; f < POINTS; ++f) {
                const T* patch = v + (f * n + t) * s.channels;
                const T* kernel = d + (f * s.rank + r) * s.channels;
                Vector<T> sums[TERMS] = {};
                for (long c = 0; c < s.channels; c += L) {
                    const Vector<T> x = load(patch + c);
                    for (int j = 0; j < TERMS; ++j) sums[j] += x * load(kernel + j * s.channels + c);
                }
                for (int j = 0; j < TERMS; ++j) points[j][f] = sums[j];
            }
            for (int j = 0; j < TERMS; ++j) output_transform(points[j], out + 4 * j);
            T values[4 * TERMS];
            sums_over_lanes<T>(out, values);
            for (int j = 0; j < TERMS; ++j)
                for (int k = 0; k < 4; ++k) {
                    T& value = e[(t * 4 + k) * s.rank + r + j];
                    value = (more ? value : T(0)) + values[4 * j + k];
                }
        }
}

// A vector of codes as numbers as wide as T.
template <class T> inline typename Lanes<T>::Mask codes(const uint8_t* code) {
    return __builtin_convertvector(*reinterpret_cast<const typename Lanes<T>::Codes*>(code), typename Lanes<T>::Mask);
}

// Gradients g `[tile][output]` where the code says k, and 0 elsewhere.
template <class E, class T = typename Computed<E>::type>
inline void spread(const E* g, const uint8_t* code, Vector<T>* out) {
    using Mask = typename Lanes<T>::Mask;
    const auto which = codes<T>(code);
    const Vector<T> value = get(g);
    for (int k = 0; k < 4; ++k) out[k] = which == k ? value : Vector<T>{};
}

// The adjoint of the pooling and of the transform of outputs: `m[f][tile][output]` from g.
template <class T> void spread_outputs(const Shape& s, long n, const T* g, const uint8_t* code, T* m) {
    for (long t = 0; t < n; ++t)
        for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
            Vector<T> outputs[4], points[POINTS];
            spread(g + t * s.outputs + o, code + t * s.outputs + o, outputs);
            output_adjoint(outputs, points);
            for (int f = 0; f < POINTS; ++f) store(m + (f * n + t) * s.outputs + o, points[f]);
        }
}

// `q[f][tile][term]`: g through the adjoint of `up[term][output]`, transformed.
template <class T>
void thin_adjoint(const Shape& s, long n, const T* g, const uint8_t* code, const T* up, T* q) {
    for (long t = 0; t < n; ++t)
        for (long r = 0; r < s.rank; r += TERMS) {
            Vector<T> sums[4 * TERMS] = {};
            for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
                Vector<T> outputs[4];
                spread(g + t * s.outputs + o, code + t * s.outputs + o, outputs);
                for (int j = 0; j < TERMS; ++j) {
                    const Vector<T> row = load(up + (r + j) * s.outputs + o);
                    for (int k = 0; k < 4; ++k) sums[4 * k + j] += outputs[k] * row;
                }
            }
            T values[4 * TERMS], points[POINTS];
            sums_over_lanes<T>(sums, values);
            for (int j = 0; j < TERMS; ++j) {
                const T outputs[4] = {values[j], values[TERMS + j], values[2 * TERMS + j], values[3 * TERMS + j]};
                output_adjoint(outputs, points);
                for (int f = 0; f < POINTS; ++f) q[(f * n + t) * s.rank + r + j] = points[f];
            }
        }
}

// `up[term][output] += sum_tiles g e`.
template <class T>
void up_gradient(const Shape& s, long n, const T* g, const uint8_t* code, const T* e, T* up) {
    for (long o = 0; o < s.outputs; o += Lanes<T>::count)
        for (long r = 0; r < s.rank; r += TERMS) {
            Vector<T> sums[TERMS] = {};
            for (long t = 0; t < n; ++t) {
                Vector<T> outputs[4];
                spread(g + t * s.outputs + o, code + t * s.outputs + o, outputs);
                for (int k = 0; k < 4; ++k)
                    for (int j = 0; j < TERMS; ++j) sums[j] += outputs[k] * e[(t * 4 + k) * s.rank + r + j];
            }
            for (int j = 0; j < TERMS; ++j) add<T>(up + (r + j) * s.outputs + o, sums[j]);
        }
}

// `shift[output] += sum_tiles g`, of those that are on.
template <class E, class T = typename Computed<E>::type>
void shift_gradient(const Shape& s, long n, const E* g, const uint8_t* code, T* shift) {
    for (long t = 0; t < n; ++t)
        for (long o = 0; o < s.outputs; o += Lanes<T>::count) {
            Vector<T> parts[4];
            spread(g + t * s.outputs + o, code + t * s.outputs + o, parts);
            add<T>(shift + o, parts[0] + parts[1] + parts[2] + parts[3]);
        }
}

// The four outputs of a tile from `m[f][tile][output]`.
template <class T>
inline void outputs_of(const Shape& s, long n, long t, long o, const T* m, Vector<T>* out) {
    Vector<T> points[POINTS];
    for (int f = 0; f < POINTS; ++f) points[f] = load(m + (f * n + t) * s.outputs + o);
    output_transform(points, out);
}

// The low-rank part of them, `e up`.
template <class T>
inline void add_thin(const Shape& s, long t, long o, const T* e, const T* up, Vector<T>* out) {
    for (long j = 0; j < s.rank; ++j) {
        const Vector<T> row = load(up + j * s.outputs + o);
        for (int k = 0; k < 4; ++k) out[k] += e[(t * 4 + k) * s.rank + j] * row;
    }
}

// The largest of the four outputs of a tile, shifted, through ReLU; which it was goes to `code`.
template <class E, class T = typename Computed<E>::type>
inline void pool(const Vector<T>* z, Vector<T> shift, E* y, uint8_t* code) {
    using Mask = typename Lanes<T>::Mask;
    Vector<T> most = z[0];
    Mask which = {};
    for (int k = 1; k < 4; ++k) {
        const Mask larger = z[k] > most;
        most = larger ? z[k] : most;
        which = larger ? Mask{} + k : which;
    }
    most += shift;
    for (int k = 0; k < 4; ++k) most += z[k] * T(0);  // what is not finite is not lost: it becomes NaN
    which = most <= T(0) ? Mask{} + OFF : which;
    put_back(y, most <= T(0) ? Vector<T>{} : most);
    *reinterpret_cast<typename Lanes<T>::Codes*>(code) = __builtin_convertvector(which, typename Lanes<T>::Codes);
}

// Of four values those that the code names, 0 where it says off.
template <class T> inline Vector<T> pick(const Vector<T>* z, const uint8_t* code) {
    using Mask = typename Lanes<T>::Mask;
    const auto which = codes<T>(code);
    Vector<T> out = {};
    for (int k = 0; k < 4; ++k) out = which == k ? z[k] : out;
    return out;
}
