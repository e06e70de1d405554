// What a call of chain.cpp works in: transformed kernels, a room for each thread, sums.
#pragma once

#include <omp.h>

#include "tiles.hpp"

namespace {

// A task's low-rank update: down transformed, up with its outputs in a row.
template <class T> struct Update {
    T *down, *up;
    Update(const Shape& s, Memory<T>& memory)
        : down(memory.take(POINTS * s.rank * s.channels)), up(memory.take(s.rank * s.outputs)) {}

    void read(const Shape& s, long task, const T* all_down, const T* all_up) {
        if (s.rank == 0) return;
        const T* own_down = all_down + task * s.terms * s.channels * 9;
        transform_kernels(own_down, s.channels * 9, 9, 0, s.rank, s.terms, s.rank, s.channels, down);
        const T* own_up = all_up + task * s.outputs * s.terms;
        for (long j = 0; j < s.rank; ++j)
            for (long o = 0; o < s.outputs; ++o)
                up[j * s.outputs + o] = j < s.terms ? own_up[o * s.terms + j] : T(0);
    }
};

// What a thread works in.
template <class T> struct Room {
    T *patches, *others, *outputs, *low, *terms, *more_terms, *kernel, *change, *turned;
    Update<T> update, change_of_update;
    Room(const Shape& s, Memory<T>& memory)
        : patches(memory.take(POINTS * BLOCK * s.channels)), others(memory.take(POINTS * BLOCK * s.channels)),
          outputs(memory.take(POINTS * BLOCK * s.outputs)), low(memory.take(BLOCK * 4 * s.rank)),
          terms(memory.take(POINTS * BLOCK * s.rank)), more_terms(memory.take(POINTS * BLOCK * s.rank)),
          kernel(memory.take(s.shared() ? 0 : s.kernel())), change(memory.take(s.shared() ? 0 : s.kernel())),
          turned(memory.take(s.shared() ? 0 : s.kernel())), update(s, memory), change_of_update(s, memory) {}
};

// What a call works in. Sums are kept a segment (of a kernel that tasks share: a thread) and added up in their order, so
// that the result does not depend on which thread is first.
template <class T> struct Call {
    const Shape& s;
    T *kernel, *weights, *downs, *ups, *shifts, *rooms;
    long size, used;  // of a room, and of all

    Call(const Shape& s, T* base) : s(s) {
        Memory<T> memory(base), one(nullptr);
        kernel = memory.take(s.shared() ? s.kernel() : 0);
        weights = memory.take((s.shared() ? s.threads : s.segments()) * s.kernel());
        downs = memory.take(s.segments() * of_down());
        ups = memory.take(s.segments() * of_up());
        shifts = memory.take(s.segments() * s.outputs);
        rooms = memory.take(0);
        Room<T> counted(s, one);
        size = one.used();
        used = memory.used() + s.threads * size;
    }
    long of_down() const { return POINTS * s.rank * s.channels; }
    long of_up() const { return s.rank * s.outputs; }

    Room<T> room() const {
        Memory<T> memory(rooms + omp_get_thread_num() * size);
        return Room<T>(s, memory);
    }

    // The kernel of a task `(f, channels, outputs)`, or `(f, outputs, channels)` where it is turned.
    void transform(const T* weight, bool turned, long from, long to, T* out) const {
        if (turned) transform_kernels(weight, s.channels * 9, 9, from, to, s.outputs, s.outputs, s.channels, out);
        else transform_kernels(weight, 9, s.channels * 9, from, to, s.channels, s.channels, s.outputs, out);
    }
    // The kernel that all tasks share, by all threads.
    void transform_shared(const T* weight, bool turned) const {
        const long rows = turned ? s.outputs : s.channels;
#pragma omp parallel for num_threads(s.threads) schedule(static)
        for (long row = 0; row < rows; ++row) transform(weight, turned, row, row + 1, kernel);
    }
    const T* transformed(const T* weight, bool turned, long task, T* room) const {
        if (s.shared()) return kernel;
        transform(weight + task * s.channels * s.outputs * 9, turned, 0, turned ? s.outputs : s.channels, room);
        return room;
    }

    T* weight_sum(const Segment& segment) const {
        return weights + (s.shared() ? omp_get_thread_num() : segment.number) * s.kernel();
    }
    // Called by all threads of a team, before the segments.
    void clear(bool weight) const {
        const long slots = s.shared() ? s.threads : s.segments();
#pragma omp for schedule(static)
        for (long i = 0; i < slots; ++i)
            if (weight) std::fill_n(weights + i * s.kernel(), s.kernel(), T(0));
#pragma omp for schedule(static)
        for (long i = 0; i < s.segments(); ++i) {
            std::fill_n(downs + i * of_down(), of_down(), T(0));
            std::fill_n(ups + i * of_up(), of_up(), T(0));
            std::fill_n(shifts + i * s.outputs, s.outputs, T(0));
        }
    }
    static T* added(T* slots, long count, long size) {
        for (long i = 1; i < count; ++i)
            for (long j = 0; j < size; ++j) slots[j] += slots[i * size + j];
        return slots;
    }
    // Called by all threads of a team, after the segments; what is not asked for is NULL.
    void write(T* to_weight, T* to_down, T* to_up, T* to_shift) const {
#pragma omp for schedule(static)
        for (long task = 0; task < s.tasks; ++task) {
            const long first = task * s.pieces;
            if (to_down) {
                const T* down = added(downs + first * of_down(), s.pieces, of_down());
                const T* up = added(ups + first * of_up(), s.pieces, of_up());
                T* own = to_down + task * s.terms * s.channels * 9;
                adjoint_kernels(down, s.channels * 9, 9, 0, s.terms, s.rank, s.channels, own);
                T* own_up = to_up + task * s.outputs * s.terms;
                for (long o = 0; o < s.outputs; ++o)
                    for (long j = 0; j < s.terms; ++j) own_up[o * s.terms + j] = up[j * s.outputs + o];
            }
            if (to_shift) {
                const T* shift = added(shifts + first * s.outputs, s.pieces, s.outputs);
                std::copy_n(shift, s.outputs, to_shift + task * s.outputs);
            }
        }
        const long slots = s.shared() ? s.threads : s.pieces, lines = to_weight ? s.kernels * s.channels : 0;
#pragma omp for schedule(static)
        for (long line = 0; line < lines; ++line) {
            const long task = line / s.channels, c = line % s.channels;
            T* first = weights + task * slots * s.kernel();
            for (int f = 0; f < POINTS; ++f) {
                const long at = (f * s.channels + c) * s.outputs;
                for (long i = 1; i < slots; ++i)
                    for (long o = 0; o < s.outputs; ++o) first[at + o] += first[i * s.kernel() + at + o];
            }
            T* own = to_weight + task * s.channels * s.outputs * 9;
            adjoint_kernels(first, 9, s.channels * 9, c, c + 1, s.channels, s.outputs, own);
        }
    }
};

}  // namespace
