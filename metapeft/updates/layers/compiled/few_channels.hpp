// What the kernels for few channels work in.
#pragma once

#include <omp.h>

#include "tiles.hpp"

namespace {

// What a thread works in: an image with a border of zeros, a task's weights `(channels, 3, 3, outputs)`, patches of
// a row of tiles.
template <class T> struct Room {
    T *image, *weight, *patches;
    long line;  // of the image
    Room(const Shape& s, Memory<T>& memory)
        : image(memory.take((s.height + 2) * (s.width + 2) * s.channels)),
          weight(memory.take(s.channels * 9 * s.outputs)), patches(memory.take(s.wide * s.channels * 16)), line((s.width + 2) * s.channels) {}

    void read_image(const Shape& s, const T* from) {
        std::fill_n(image, (s.height + 2) * line, T(0));
        for (long y = 0; y < s.height; ++y)
            std::copy_n(from + y * s.width * s.channels, s.width * s.channels, image + (y + 1) * line + s.channels);
    }
    void read_weight(const Shape& s, const T* from) {
        for (long i = 0; i < s.channels * 9; ++i)
            for (long o = 0; o < s.outputs; ++o) weight[i * s.outputs + o] = from[o * s.channels * 9 + i];
    }
    // A channel's 4x4 numbers under a tile.
    void read_patch(const Shape& s, long tile, long channel, T* to) const {
        const T* from = corner(s, tile) + channel;
        for (int i = 0; i < 16; ++i) to[i] = from[i / 4 * line + i % 4 * s.channels];
    }
    const T* corner(const Shape& s, long tile) const {
        return image + tile / s.wide * 2 * line + tile % s.wide * 2 * s.channels;
    }
};

// What a call works in, with sums as in chain.cpp.
template <class T> struct Call {
    const Shape& s;
    T *weights, *shifts, *rooms;
    long size, used;  // of a room, and of all

    Call(const Shape& s, T* base) : s(s) {
        Memory<T> memory(base), one(nullptr);
        weights = memory.take(s.segments() * s.channels * 9 * s.outputs);
        shifts = memory.take(s.segments() * s.outputs);
        rooms = memory.take(0);
        Room<T> counted(s, one);
        size = one.used();
        used = memory.used() + s.threads * size;
    }
    Room<T> room() const {
        Memory<T> memory(rooms + omp_get_thread_num() * size);
        return Room<T>(s, memory);
    }
};

}  // namespace
