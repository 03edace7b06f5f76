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

/* combine: out[j] = sum_k table[j, k] (in, out)[k], j < m, k < n + j, over `count` numbers of each of `samples`; no out
   may be an in. Each bit j of `watched` asks of output j whether all of it is finite; the answer has the bits of those
   that are not. An output at 0 is for the pairs alone.

   of_samples, or 0: how many factors, products and shares there are, and of each factor, f[0] being 1, that it is
   f[which] share[which] of the sample, of each product, a column of the table beyond n + m, that it is of in[which] times
   f[which].
   pairs, or 0: how many, and of each which two of (in, out); found[sample, pair] is their inner product, summed in T for
   a block and in double over the blocks.

   job: count, samples, n, m, table, watched, of_samples, pairs, found, the shares, the n inputs and the m outputs. */
#define DEFINE(NAME, T, U, E)                                                                                          \
    typedef T NAME##_v __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));                                \
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
    static double NAME##_dot(long count, const T *p, const T *q) {                                                     \
        const long wide = 32 / sizeof(T), even = count - count % (4 * wide);                                           \
        NAME##_v lanes[4] = {{0}, {0}, {0}, {0}};                                                                      \
        double total = 0;                                                                                              \
        for (long i = 0; i < even; i += 4 * wide)                                                                      \
            for (int l = 0; l < 4; l++)                                                                                \
                lanes[l] += *(const NAME##_v *)(p + i + l * wide) * *(const NAME##_v *)(q + i + l * wide);             \
        for (int l = 0; l < 4; l++)                                                                                    \
            for (int h = 0; h < wide; h++) total += lanes[l][h];                                                       \
        for (long i = even; i < count; i++) total += (double)p[i] * q[i];                                              \
        return total;                                                                                                  \
    }                                                                                                                  \
    uint64_t NAME(const uint64_t *job) {                                                                               \
        static const uint64_t none[3];                                                                                 \
        const long count = (long)job[0], samples = (long)job[1];                                                       \
        const int n = (int)job[2], m = (int)job[3], wide = n + m;                                                      \
        const double *table = (const double *)(uintptr_t)job[4];                                                       \
        const uint64_t watched = job[5], *of = job[6] ? (const uint64_t *)(uintptr_t)job[6] : none;                    \
        const uint64_t *pairs = job[7] ? (const uint64_t *)(uintptr_t)job[7] : none;                                   \
        double *found = (double *)(uintptr_t)job[8];                                                                   \
        const int factors = (int)of[0], products = (int)of[1];                                                         \
        const uint64_t *share = job + 9, *in = share + of[2], *out = in + n;                                           \
        const long block = pairs[0] ? BLOCK / 2 : BLOCK;                                                               \
        double own[products ? m * wide : 1], f[factors + 1];                                                           \
        T scratch[(pairs[0] ? m : 0) + 1][BLOCK / 2], c[MOST];                                                         \
        const T *p[MOST];                                                                                              \
        uint64_t bad = 0;                                                                                              \
        if (pairs[0]) memset(found, 0, samples * pairs[0] * sizeof(double));                                           \
        for (long s = 0; s < samples; s++, found += pairs[0]) {                                                        \
            f[0] = 1;                                                                                                  \
            of = job[6] ? (const uint64_t *)(uintptr_t)job[6] + 3 : none;                                              \
            for (int i = 1; i <= factors; i++, of += 2) f[i] = f[of[0]] * ((const T *)(uintptr_t)share[of[1]])[s];     \
            for (int j = 0; products && j < m; j++) {                                                                  \
                const double *row = table + j * (wide + products);                                                     \
                memcpy(own + j * wide, row, wide * sizeof(double));                                                    \
                for (int e = 0; e < products; e++) own[j * wide + of[2 * e]] += row[wide + e] * f[of[2 * e + 1]];      \
            }                                                                                                          \
            const double *use = products ? own : table;                                                                \
            for (long start = s * count; start < (s + 1) * count; start += block) {                                    \
                const long size = (s + 1) * count - start < block ? (s + 1) * count - start : block;                   \
                for (int j = 0; j < m; j++) {                                                                          \
                    int terms = 0;                                                                                     \
                    for (int k = 0; k < n + j; k++) {                                                                  \
                        const double w = use[j * wide + k];                                                            \
                        if (w != 0) c[terms] = (T)w, p[terms++] = (const T *)(uintptr_t)in[k] + start;                 \
                    }                                                                                                  \
                    T *to = out[j] ? (T *)(uintptr_t)out[j] + start : scratch[j];                                      \
                    if (!(watched >> j & 1)) NAME##_sum(size, terms, c, p, to, 0);                                     \
                    else if (NAME##_sum(size, terms, c, p, to, 1)) bad |= (uint64_t)1 << j;                            \
                }                                                                                                      \
                for (uint64_t k = 0; k < pairs[0]; k++) {                                                              \
                    const T *two[2];                                                                                   \
                    for (int h = 0; h < 2; h++) {                                                                      \
                        const uint64_t i = pairs[1 + 2 * k + h];                                                       \
                        two[h] = in[i] ? (const T *)(uintptr_t)in[i] + start : scratch[i - n];                         \
                    }                                                                                                  \
                    found[k] += NAME##_dot(size, two[0], two[1]);                                                      \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        return bad;                                                                                                    \
    }

DEFINE(combine_float, float, uint32_t, 0x7f800000u)
DEFINE(combine_double, double, uint64_t, 0x7ff0000000000000u)

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
