// Sizes, how images are shared out among threads, and memory.
#pragma once

#include <algorithm>

#include "winograd.hpp"

constexpr long BLOCK = 42;  // tiles: with 64 channels all that belongs to one f fits into a core's first cache
constexpr int TERMS = 4;    // of a low-rank update, handled at once
constexpr uint8_t OFF = 4;  // the code of a value that ReLU set to 0; else which of the four outputs is the largest

struct Sizes {
    int64_t tasks, images, channels, outputs, height, width;  // images: of a task
    int64_t terms;                                            // of the low-rank update; 0: none
    int64_t kernels;                                          // 1: one for all tasks, else each task its own
    int64_t threads;
    int64_t reference;  // images of a task, the first ones, that its batch statistics are taken from
};

// A segment is a run of images of one task; each belongs to one thread.
struct Shape : Sizes {
    long high, wide, tiles, rank, pieces;  // pooled height and width; rank: terms, filled up to whole blocks
    explicit Shape(const Sizes& s)
        : Sizes(s), high(s.height / 2), wide(s.width / 2), tiles(high * wide),
          rank((s.terms + TERMS - 1) / TERMS * TERMS) {
        long common = s.threads, rest = s.tasks;  // tasks are cut so that threads get equally many segments
        while (rest) std::swap(common %= rest, rest);
        pieces = std::min<long>(s.threads / common, s.images);
    }
    long segments() const { return tasks * pieces; }
    long image() const { return height * width * channels; }
    long kernel() const { return POINTS * channels * outputs; }
    bool shared() const { return kernels == 1 && (tasks > 1 || terms > 0); }  // one task's kernel is its own
};

struct Segment {
    long number, task, row, count;  // the first of its images among all, and how many they are
    Segment(const Shape& s, long number) : number(number), task(number / s.pieces) {
        const long piece = number % s.pieces, first = piece * s.images / s.pieces;
        row = task * s.images + first;
        count = (piece + 1) * s.images / s.pieces - first;
    }
};

// Run `work(first tile, tiles)` over a segment in blocks of about the same size.
template <class Work> void in_blocks(const Shape& s, const Segment& segment, Work work) {
    const long tiles = segment.count * s.tiles, blocks = (tiles + BLOCK - 1) / BLOCK;
    for (long b = 0; b < blocks; ++b) work(b * tiles / blocks, (b + 1) * tiles / blocks - b * tiles / blocks);
}

// Memory handed out piece by piece, on borders of vectors; without memory it only counts.
template <class T> class Memory {
  public:
    explicit Memory(T* base) : base_(base) {}
    T* take(long count) {
        constexpr long border = 64 / sizeof(T);
        T* piece = base_ ? base_ + used_ : nullptr;
        used_ += (count + border - 1) / border * border;
        return piece;
    }
    long used() const { return used_; }

  private:
    T* base_;
    long used_ = 0;
};
