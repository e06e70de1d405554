// Vectors as wide as the machine's registers, and a matrix product.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 6, VECTORS = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6, VECTORS = 2;  // 12 of 16
#else
constexpr int BYTES = 16, ROWS = 4, VECTORS = 2;
#endif

template <class T> struct Lanes {
    static constexpr int count = BYTES / sizeof(T);
    typedef T Vector __attribute__((vector_size(BYTES)));
    typedef T Loose __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));  // anywhere in memory
    typedef uint8_t Codes __attribute__((vector_size(BYTES / sizeof(T)), aligned(1), may_alias));
    typedef decltype(Vector{} > Vector{}) Mask;  // whole numbers of the size of T
};
template <class T> using Vector = typename Lanes<T>::Vector;

template <class T> inline Vector<T> load(const T* p) { return *reinterpret_cast<const typename Lanes<T>::Loose*>(p); }
template <class T> inline void store(T* p, Vector<T> v) { *reinterpret_cast<typename Lanes<T>::Loose*>(p) = v; }
template <class T> inline void add(T* p, Vector<T> v) { store(p, load(p) + v); }

// Numbers stored as bfloat16 and computed in float, where the processor converts them.
struct BFloat {
    uint16_t bits;
};
template <class E> struct Computed { using type = E; };  // what numbers stored as E are computed in
template <> struct Computed<BFloat> { using type = float; };

template <class T> inline Vector<T> get(const T* p) { return load(p); }
template <class T> inline void put_back(T* p, Vector<T> v) { store(p, v); }

#if defined(__AVX512BF16__)
inline Vector<float> get(const BFloat* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return Vector<float>(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
}
inline void put_back(BFloat* p, Vector<float> v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(__m512(v))));
}
#endif

// Sums over the lanes of as many vectors as there are lanes, one beside the other: halves are folded upon halves.
template <class T, int HALF = Lanes<T>::count / 2> inline Vector<T> sums_of(Vector<T>* v) {
    using Mask = typename Lanes<T>::Mask;
    Mask low, high;
    for (int l = 0; l < Lanes<T>::count; ++l) {  // of a pair, the lanes of each half where the sum shall stand
        low[l] = l % (2 * HALF) < HALF ? l : Lanes<T>::count + l - HALF;
        high[l] = low[l] + HALF;
    }
    for (int i = 0; i < HALF; ++i)
        v[i] = __builtin_shuffle(v[i], v[i + HALF], low) + __builtin_shuffle(v[i], v[i + HALF], high);
    if constexpr (HALF > 1) return sums_of<T, HALF / 2>(v);
    return v[0];
}

// Two factors: `a[row * a_row + k * a_step]` and `b[k * b_row + column]`, k below `depth`.
template <class T> struct Factors {
    long depth;
    const T* a;
    long a_row, a_step;
    const T* b;
    long b_row;
};

// A block of a product with all of its sums in registers.
template <class T, int M, int N>
inline void block(const Factors<T>& one, const Factors<T>& two, long row, long column, T* c, long c_row, bool more) {
    constexpr int L = Lanes<T>::count;
    Vector<T> sums[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sums[m][n] = more ? load(c + m * c_row + n * L) : Vector<T>{};
    for (const Factors<T>* pair : {&one, &two}) {
        const T *a = pair->a + row * pair->a_row, *b = pair->b + column;
        for (long k = 0; k < pair->depth; ++k, a += pair->a_step, b += pair->b_row) {
            Vector<T> right[N];
            for (int n = 0; n < N; ++n) right[n] = load(b + n * L);
            for (int m = 0; m < M; ++m)
                for (int n = 0; n < N; ++n) sums[m][n] += a[m * pair->a_row] * right[n];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(c + m * c_row + n * L, sums[m][n]);
}

template <class T, int N, int M = ROWS>
inline void rows_of(const Factors<T>& one, const Factors<T>& two, long rows, long row, long column, T* c, long c_row,
                    bool more) {
    for (; row + M <= rows; row += M) block<T, M, N>(one, two, row, column, c + row * c_row + column, c_row, more);
    if constexpr (M > 1)
        if (row < rows) rows_of<T, N, M - 1>(one, two, rows, row, column, c, c_row, more);
}

// `c[row, column] (+)= sum_k a b` of one pair of factors, or of two; columns a multiple of the lanes.
template <class T, int N = VECTORS>
inline void product(long rows, long columns, const Factors<T>& one, const Factors<T>& two, T* c, long c_row, bool more,
                    long column = 0) {
    for (; column + N * Lanes<T>::count <= columns; column += N * Lanes<T>::count)
        rows_of<T, N>(one, two, rows, 0, column, c, c_row, more);
    if constexpr (N > 1)
        if (column < columns) product<T, N - 1>(rows, columns, one, two, c, c_row, more, column);
}
