// The transforms of Winograd's F(2x2, 3x3): a 3x3 convolution of a 4x4 patch to 2x2 outputs by 16 products instead
// of 36 (Lavin and Gray 2016, arXiv 1509.09308, section 4.1). An output is `A^T ((G w G^T) * (B^T d B)) A`.
#pragma once

#include "vectors.hpp"

constexpr int POINTS = 16;  // entries of a transformed patch, `f = 4 a + b`

// B^T, to the patch d
template <class V> inline void patch_transform(const V* d, V* out) {
    V t[16];
    for (int j = 0; j < 4; ++j) {
        t[j] = d[j] - d[8 + j];
        t[4 + j] = d[4 + j] + d[8 + j];
        t[8 + j] = d[8 + j] - d[4 + j];
        t[12 + j] = d[4 + j] - d[12 + j];
    }
    for (int i = 0; i < 16; i += 4) {
        out[i] = t[i] - t[i + 2];
        out[i + 1] = t[i + 1] + t[i + 2];
        out[i + 2] = t[i + 2] - t[i + 1];
        out[i + 3] = t[i + 1] - t[i + 3];
    }
}

// its adjoint, to a patch
template <class V> inline void patch_adjoint(const V* v, V* out) {
    V t[16];
    for (int j = 0; j < 4; ++j) {
        t[j] = v[j];
        t[4 + j] = v[4 + j] - v[8 + j] + v[12 + j];
        t[8 + j] = v[4 + j] + v[8 + j] - v[j];
        t[12 + j] = -v[12 + j];
    }
    for (int i = 0; i < 16; i += 4) {
        out[i] = t[i];
        out[i + 1] = t[i + 1] - t[i + 2] + t[i + 3];
        out[i + 2] = t[i + 1] + t[i + 2] - t[i];
        out[i + 3] = -t[i + 3];
    }
}

// A^T, to the 2x2 outputs
template <class V> inline void output_transform(const V* m, V* out) {
    V t[8];
    for (int j = 0; j < 4; ++j) {
        t[j] = m[j] + m[4 + j] + m[8 + j];
        t[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    for (int i = 0; i < 2; ++i) {
        out[2 * i] = t[4 * i] + t[4 * i + 1] + t[4 * i + 2];
        out[2 * i + 1] = t[4 * i + 1] - t[4 * i + 2] - t[4 * i + 3];
    }
}

// its adjoint
template <class V> inline void output_adjoint(const V* y, V* out) {
    V t[8];
    for (int j = 0; j < 2; ++j) {
        t[j] = y[j];
        t[2 + j] = y[j] + y[2 + j];
        t[4 + j] = y[j] - y[2 + j];
        t[6 + j] = -y[2 + j];
    }
    for (int i = 0; i < 4; ++i) {
        out[4 * i] = t[2 * i];
        out[4 * i + 1] = t[2 * i] + t[2 * i + 1];
        out[4 * i + 2] = t[2 * i] - t[2 * i + 1];
        out[4 * i + 3] = -t[2 * i + 1];
    }
}

// G, to the 3x3 kernel
template <class V> inline void kernel_transform(const V* w, V* out) {
    V t[12];
    for (int j = 0; j < 3; ++j) {
        t[j] = w[j];
        t[3 + j] = (w[j] + w[3 + j] + w[6 + j]) / 2;
        t[6 + j] = (w[j] - w[3 + j] + w[6 + j]) / 2;
        t[9 + j] = w[6 + j];
    }
    for (int i = 0; i < 4; ++i) {
        out[4 * i] = t[3 * i];
        out[4 * i + 1] = (t[3 * i] + t[3 * i + 1] + t[3 * i + 2]) / 2;
        out[4 * i + 2] = (t[3 * i] - t[3 * i + 1] + t[3 * i + 2]) / 2;
        out[4 * i + 3] = t[3 * i + 2];
    }
}

// its adjoint
template <class V> inline void kernel_adjoint(const V* u, V* out) {
    V t[12];
    for (int j = 0; j < 4; ++j) {
        t[j] = u[j] + (u[4 + j] + u[8 + j]) / 2;
        t[4 + j] = (u[4 + j] - u[8 + j]) / 2;
        t[8 + j] = (u[4 + j] + u[8 + j]) / 2 + u[12 + j];
    }
    for (int i = 0; i < 3; ++i) {
        out[3 * i] = t[4 * i] + (t[4 * i + 1] + t[4 * i + 2]) / 2;
        out[3 * i + 1] = (t[4 * i + 1] - t[4 * i + 2]) / 2;
        out[3 * i + 2] = (t[4 * i + 1] + t[4 * i + 2]) / 2 + t[4 * i + 3];
    }
}
