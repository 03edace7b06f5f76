/* One pass over memory for what lies between two network calls, and for a draw of noise. Built without fast-math: a NaN
   is found by its bits, and each number is the same wherever it stands in the array. */
#include <stdint.h>
#include <string.h>

#define BLOCK 1024 /* numbers of each array that are worked on at a time; they stay in the first cache */
#define MOST 64    /* terms of a sum */
#define KEYS 4096  /* of a draw */

#define T1(k) c[k] * p[k][i]
#define SUM(T, U, E, n, expression)                                                                                    \
    case n:                                                                                                            \
        for (long i = 0; i < count; i++) {                                                                             \
            const T total = (expression);                                                                              \
            U bits;                                                                                                    \
            out[i] = total;                                                                                            \
            memcpy(&bits, &total, sizeof bits);                                                                        \
            if (watched) found |= (U)((bits & E) == E);                                                                \
        }                                                                                                              \
        break;
#define S1 T1(0)
#define S2 S1 + T1(1)
#define S3 S2 + T1(2)
#define S4 S3 + T1(3)
#define S5 S4 + T1(4)
#define S6 S5 + T1(5)
#define S7 S6 + T1(6)
#define S8 S7 + T1(7)

/* combine: out[j] = sum_k table[j, k] (in, out)[k], j < m, k < n + j, over `count` numbers; no out may be an in. Each
   bit j of `watched` asks of output j whether all of it is finite; the answer has the bits of those that are not. job:
   count, n, m, table, watched, the n inputs and the m outputs. */
#define DEFINE(NAME, T, U, E)                                                                                          \
    static inline __attribute__((always_inline)) U NAME##_sum(long count, int n, const T *c, const T *const *p,        \
                                                              T *restrict out, const int watched) {                    \
        U found = 0;                                                                                                   \
        switch (n < 8 ? n : 8) {                                                                                       \
            case 0:                                                                                                    \
                memset(out, 0, count * sizeof(T));                                                                     \
                break;                                                                                                 \
                SUM(T, U, E, 1, S1) SUM(T, U, E, 2, S2) SUM(T, U, E, 3, S3) SUM(T, U, E, 4, S4)                        \
                SUM(T, U, E, 5, S5) SUM(T, U, E, 6, S6) SUM(T, U, E, 7, S7) SUM(T, U, E, 8, S8)                        \
        }                                                                                                              \
        for (n -= 8, c += 8, p += 8; n > 0; n -= 4, c += 4, p += 4) {                                                  \
            found = 0;                                                                                                 \
            switch (n < 4 ? n : 4) {                                                                                   \
                SUM(T, U, E, 1, out[i] + S1) SUM(T, U, E, 2, out[i] + S2) SUM(T, U, E, 3, out[i] + S3)                 \
                SUM(T, U, E, 4, out[i] + S4)                                                                           \
            }                                                                                                          \
        }                                                                                                              \
        return found;                                                                                                  \
    }                                                                                                                  \
    uint64_t NAME(const uint64_t *job) {                                                                               \
        const long count = (long)job[0];                                                                               \
        const int n = (int)job[1], m = (int)job[2];                                                                    \
        const double *table = (const double *)(uintptr_t)job[3];                                                       \
        const uint64_t watched = job[4], *in = job + 5, *out = job + 5 + n;                                            \
        T c[MOST];                                                                                                     \
        const T *p[MOST];                                                                                              \
        uint64_t bad = 0;                                                                                              \
        for (long start = 0; start < count; start += BLOCK) {                                                          \
            long size = count - start < BLOCK ? count - start : BLOCK;                                                 \
            for (int j = 0; j < m; j++) {                                                                              \
                int terms = 0;                                                                                         \
                for (int k = 0; k < n + j; k++) {                                                                      \
                    const double share = table[j * (n + m) + k];                                                       \
                    if (share != 0) c[terms] = (T)share, p[terms++] = (const T *)(uintptr_t)in[k] + start;             \
                }                                                                                                      \
                T *to = (T *)(uintptr_t)out[j] + start;                                                                \
                if (!(watched >> j & 1)) NAME##_sum(size, terms, c, p, to, 0);                                         \
                else if (NAME##_sum(size, terms, c, p, to, 1)) bad |= (uint64_t)1 << j;                                \
            }                                                                                                          \
        }                                                                                                              \
        return bad;                                                                                                    \
    }

DEFINE(combine_float, float, uint32_t, 0x7f800000u)
DEFINE(combine_double, double, uint64_t, 0x7ff0000000000000u)

/* gram: out[s, k] = the inner product of the two vectors of pair k in sample s, `count` numbers each, summed in T for a
   block and in double over the blocks. job: count, samples, pairs, out (double), and where each pair's two begin. */
#define GRAM(NAME, T)                                                                                                  \
    typedef T NAME##_v __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));                                \
    uint64_t NAME(const uint64_t *job) {                                                                               \
        const long count = (long)job[0], samples = (long)job[1], wide = 32 / sizeof(T);                                \
        const int pairs = (int)job[2];                                                                                 \
        double *out = (double *)(uintptr_t)job[3];                                                                     \
        memset(out, 0, samples * pairs * sizeof(double));                                                              \
        for (long s = 0; s < samples; s++, out += pairs)                                                               \
            for (long start = 0; start < count; start += BLOCK) {                                                      \
                const long size = count - start < BLOCK ? count - start : BLOCK, even = size - size % (4 * wide);      \
                for (int k = 0; k < pairs; k++) {                                                                      \
                    const T *p = (const T *)(uintptr_t)job[4 + 2 * k] + s * count + start;                             \
                    const T *q = (const T *)(uintptr_t)job[5 + 2 * k] + s * count + start;                             \
                    NAME##_v lanes[4] = {{0}, {0}, {0}, {0}};                                                          \
                    double total = 0;                                                                                  \
                    for (long i = 0; i < even; i += 4 * wide)                                                          \
                        for (int l = 0; l < 4; l++)                                                                    \
                            lanes[l] += *(const NAME##_v *)(p + i + l * wide) * *(const NAME##_v *)(q + i + l * wide); \
                    for (int l = 0; l < 4; l++)                                                                        \
                        for (int h = 0; h < wide; h++) total += lanes[l][h];                                           \
                    for (long i = even; i < size; i++) total += (double)p[i] * q[i];                                   \
                    out[k] += total;                                                                                   \
                }                                                                                                      \
            }                                                                                                          \
        return 0;                                                                                                      \
    }

GRAM(gram_float, float)
GRAM(gram_double, double)

/* draw: out[j] = sum_k given[k] in[k] (j = 0 alone) + sum_k share[k, j] look-up of key k, for 16 numbers of each of
   `words` random words. A key's 16 bits for every four numbers, `masks`ed, name four numbers of its table; the first
   `alone` keys are of output 0 only. OFFSET: where those four are, in bytes. */
#define OFFSET(x, q, log) (((q) != 0 ? x >> (16 * (q) - log) : x << log) & mask)

#ifdef __AVX2__
#include <immintrin.h>
typedef __m256 vf; /* of a word's numbers there are WF vectors */
#define WF 2
#define PICK_float(t, x, h)                                                                                            \
    _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float *)(t + OFFSET(x, 2 * h, 4)))),               \
                         _mm_loadu_ps((const float *)(t + OFFSET(x, (2 * h + 1), 4))), 1)
#else
typedef float vf __attribute__((vector_size(16), aligned(4), may_alias));
#define WF 4
#define PICK_float(t, x, h) (*(const vf *)(t + OFFSET(x, h, 4)))
#endif
typedef float vfu __attribute__((vector_size(sizeof(vf)), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(32), aligned(8), may_alias));
typedef vd vdu;
#define WD 4
#define PICK_double(t, x, h) (*(const vd *)(t + OFFSET(x, h, 5)))

#define LOOK(T, V, W, LOG, FROM, TO, M)                                                                                \
    for (int k = FROM; k < TO; k++) {                                                                                  \
        const char *t = (const char *)tables[k];                                                                       \
        const uint64_t mask = masks[k] << LOG;                                                                         \
        uint64_t x = (bits[i] ^ mixed[k]) * 0xBF58476D1CE4E5B9u;                                                       \
        x = (x ^ (uint64_t)((int64_t)x >> 32)) * 0x94D049BB133111EBu;                                                  \
        _Pragma("GCC unroll 4") for (int h = 0; h < W; h++) {                                                          \
            const V found = PICK_##T(t, x, h);                                                                         \
            _Pragma("GCC unroll 3") for (int j = 0; j < M; j++) total[j][h] += found * c[3 * k + j];                   \
        }                                                                                                              \
    }

#define DRAW(NAME, T, V, U, W, LOG)                                                                                    \
    static inline __attribute__((always_inline)) void NAME##_of(                                                       \
        long words, const int m, int n, const T *const *in, const T *g, int keys, int alone, const uint64_t *bits,     \
        const uint64_t *mixed, const T *const *tables, const uint64_t *masks, const T *c, T *const *out) {             \
        const int step = 16 / W;                                                                                       \
        for (long i = 0; i < words; i++) {                                                                             \
            V total[3][W];                                                                                             \
            for (int h = 0; h < W; h++) total[0][h] = total[1][h] = total[2][h] = (V){0};                              \
            for (int k = 0; k < n; k++)                                                                                \
                for (int h = 0; h < W; h++) total[0][h] += *(const U *)(in[k] + 16 * i + step * h) * g[k];             \
            LOOK(T, V, W, LOG, 0, alone, 1)                                                                            \
            LOOK(T, V, W, LOG, alone, keys, m)                                                                         \
            for (int j = 0; j < m; j++)                                                                                \
                for (int h = 0; h < W; h++) *(U *)(out[j] + 16 * i + step * h) = total[j][h];                          \
        }                                                                                                              \
    }                                                                                                                  \
    int NAME(long words, int m, int n, const T *const *in, const double *given, int keys, int alone,                   \
             const uint64_t *bits, const uint64_t *mixed, const T *const *tables, const uint64_t *masks,               \
             const double *share, T *const *out) {                                                                     \
        T g[MOST], c[3 * KEYS];                                                                                        \
        if (m < 1 || m > 3 || n > MOST || keys > KEYS) return 1;                                                       \
        for (int k = 0; k < n; k++) g[k] = (T)given[k];                                                                \
        for (int k = 0; k < 3 * keys; k++) c[k] = (T)share[k];                                                         \
        if (m == 1) NAME##_of(words, 1, n, in, g, keys, alone, bits, mixed, tables, masks, c, out);                    \
        else if (m == 2) NAME##_of(words, 2, n, in, g, keys, alone, bits, mixed, tables, masks, c, out);               \
        else NAME##_of(words, 3, n, in, g, keys, alone, bits, mixed, tables, masks, c, out);                           \
        return 0;                                                                                                      \
    }

DRAW(draw_float, float, vf, vfu, WF, 4)
DRAW(draw_double, double, vd, vdu, WD, 5)
