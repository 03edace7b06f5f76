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
        lanes[0] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);                                                      \
        for (int h = 0; h < wide; h++) total += lanes[0][h];                                                           \
        for (long i = even; i < count; i++) total += (double)p[i] * q[i];                                              \
        return total;                                                                                                  \
    }

DEFINE(combine_float, float, uint32_t, 0x7f800000u)
DEFINE(combine_double, double, uint64_t, 0x7ff0000000000000u)

/* draw: noise of a Brownian path. A look-up is four numbers of a table, named by 16 bits of a key for every four numbers.

   A[k] = sum_i alone[i, k] look-up(i), k < lanes. S[k] = sum_i inner[i, k] look-up(i), k < width, of what lies in one
   cell, with the leaf in it, which has a table of its own for each k. Z[k] is the look-up of inner's key k.
   out[j] = rows[j] (S, Z, given), and A[j] where j < lanes, and what is given, are of draws; the rest is of what is left
   of the cell, and may take the place of what is given, where that is `width` tensors.

   job: words (16 numbers each), random bits, the normals' table, the book, the bytes of its row, the path's key, the
   recipe's integers and its numbers, the given tensors, the outputs, and a word that is 1 once it is done.
   integers: width, lanes, given, outputs, alone, inner, storeys of the leaf, the leaf's name, MEMBERS, TURNS, the part of
   each storey, and the keys: alone, inner, the leaf's.
   numbers: alone (lanes each), inner (width each), the leaf's (width), of each k and storey 2 width rows, and rows. */
#define PIECE 512   /* numbers of a table that are worked on at a time */
#define LEAF 4096   /* members of a leaf, at most */
#define GAMMA 0x9E3779B97F4A7C15u
#define M1 0xBF58476D1CE4E5B9u
#define M2 0x94D049BB133111EBu
#define OFFSET(x, q, log) (((q) != 0 ? x >> (16 * (q) - (log)) : x << (log)) & mask)

static uint64_t scrambled(uint64_t z) {
    z = (z + 1) * GAMMA;
    z = (z ^ (z >> 30)) * M1;
    z = (z ^ (z >> 27)) * M2;
    return z ^ (z >> 31);
}

static inline uint64_t mixed(uint64_t x) {
    x *= M1;
    return (x ^ (uint64_t)((int64_t)x >> 32)) * M2;
}

static __thread double leaves[2][8 * LEAF];

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

/* p[j] += c[j] look-up, j < n, in two words: the look-ups of one do not wait for those of the other. */
#define EACH(W) _Pragma("GCC unroll 4") for (int h = 0; h < W; h++)
#define LOOK(T, V, W, p, n, kept)                                                                                      \
    {                                                                                                                  \
        const uint64_t x = mixed(a ^ *keys), y = mixed(b ^ *keys);                                                     \
        V f[2 * W];                                                                                                    \
        EACH(W) f[h] = PICK_##T(t, x, h);                                                                              \
        EACH(W) f[W + h] = PICK_##T(t, y, h);                                                                          \
        if (kept) EACH(2 * W) Z[k][h] = f[h];                                                                          \
        _Pragma("GCC unroll 2") for (int j = 0; j < n; j++) EACH(2 * W) p[j][h] += f[h] * c[j];                        \
    }
#define DRAW(NAME, SUM, T, V, U, W, LOG)                                                                               \
    typedef struct {                                                                                                   \
        const uint64_t *job, *keys, *in, *out;                                                                         \
        const T *points, *leaf[2];                                                                                     \
        int width, lanes, n, m, alone, inner;                                                                          \
        uint64_t leaf_mask;                                                                                            \
        T c[2 * KEYS], rows[24];                                                                                       \
    } NAME##_t;                                                                                                        \
    /* A leaf's table k: W (or its integral) at a place in it for each pair of members, even storeys plus and minus    \
       odd ones; a storey is read at a turn of its own. */                                                             \
    static void NAME##_table(const NAME##_t *d, const uint64_t *is, int k, const double *share, T *restrict out) {     \
        const int storeys = (int)is[6], wide = 2 * d->width;                                                           \
        const long size = 4 * (long)is[8], stride = (long)d->job[4];                                                   \
        uint64_t key = scrambled(d->job[5] + is[7]), turn = 0;                                                         \
        const T *p[2][MOST];                                                                                           \
        T c[2][MOST], odd[PIECE];                                                                                      \
        int count[2] = {0, 0};                                                                                         \
        for (int s = 0; s < storeys; s++) {                                                                            \
            const uint64_t part = is[10 + s];                                                                          \
            for (int r = 0; r < wide; r++, count[s & 1]++) {                                                           \
                p[s & 1][count[s & 1]] =                                                                               \
                    (const T *)((const char *)(uintptr_t)d->job[3] + stride * (long)(d->width * part + r)) + turn;     \
                c[s & 1][count[s & 1]] = (T)share[(k * storeys + s) * wide + r];                                       \
            }                                                                                                          \
            turn = 4 + 4 * ((key % (is[9] - 3) + part) % (is[9] - 3));                                                 \
            key = scrambled(key + part);                                                                               \
        }                                                                                                              \
        for (long start = 0; start < size; start += PIECE) {                                                           \
            T *plus = out + start, *minus = out + size + start;                                                        \
            for (int h = 0; h < 2; h++) SUM##_sum(PIECE, count[h], c[h], p[h], h ? odd : plus, 0);                     \
            for (int i = 0; i < PIECE; i++) minus[i] = plus[i] - odd[i], plus[i] += odd[i];                            \
            for (int h = 0; h < 2; h++)                                                                                \
                for (int r = 0; r < count[h]; r++) p[h][r] += PIECE;                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    static int NAME##_begin(NAME##_t *d, const uint64_t *job) {                                                        \
        const uint64_t *is = (const uint64_t *)(uintptr_t)job[6];                                                      \
        const double *numbers = (const double *)(uintptr_t)job[7];                                                     \
        const int storeys = (int)is[6], width = (int)is[0], lanes = (int)is[1];                                        \
        d->job = job, d->width = width, d->lanes = lanes, d->n = (int)is[2], d->m = (int)is[3];                        \
        d->alone = (int)is[4], d->inner = (int)is[5], d->keys = is + 10 + storeys;                                     \
        d->points = (const T *)(uintptr_t)job[2], d->leaf_mask = (2 * is[8] - 1) << LOG;                               \
        d->in = job + 8, d->out = d->in + d->n;                                                                        \
        const int count = lanes * d->alone + width * (d->inner + (storeys > 0));                                       \
        if (width > 2 || lanes > 2 || d->m > 4 || count > 2 * KEYS || is[8] > LEAF) return 1;                          \
        for (int i = 0; i < count; i++) d->c[i] = (T)numbers[i];                                                       \
        d->leaf[0] = d->leaf[1] = 0;                                                                                   \
        for (int k = 0; k < width && storeys; k++) {                                                                   \
            NAME##_table(d, is, k, numbers + count, (T *)leaves[k]);                                                   \
            d->leaf[k] = (const T *)leaves[k];                                                                         \
        }                                                                                                              \
        const double *rows = numbers + count + (storeys ? 2 * width * width * storeys : 0);                            \
        for (int i = 0; i < 3 * width * d->m; i++) d->rows[i] = (T)rows[i];                                            \
        return 0;                                                                                                      \
    }                                                                                                                  \
    /* The outputs of two words. What follows the look-ups is short: the next ones wait for it. */                     \
    static inline __attribute__((always_inline)) void NAME##_two(                                                      \
        const NAME##_t *d, const int width, const int lanes, const uint64_t a, const uint64_t b,                       \
        const V (*rows)[6], const int normals, const T *const *in, T *const *out, long at) {                           \
        const uint64_t *keys = d->keys;                                                                                \
        const T *c = d->c;                                                                                             \
        const char *t = (const char *)d->points;                                                                       \
        uint64_t mask = (uint64_t)0xFFFF << LOG;                                                                       \
        V A[2][2 * W], S[2][2 * W], Z[2][2 * W];                                                                       \
        for (int j = 0; j < 2; j++) EACH(2 * W) A[j][h] = S[j][h] = (V){0};                                            \
        for (int k = 0; k < d->alone; k++, keys++, c += lanes) LOOK(T, V, W, A, lanes, 0)                              \
        _Pragma("GCC unroll 2") for (int k = 0; k < width; k++, keys++, c += width) LOOK(T, V, W, S, width, 1)         \
        for (int k = width; k < d->inner; k++, keys++, c += width) LOOK(T, V, W, S, width, 0)                          \
        if (d->leaf[0]) {                                                                                              \
            const uint64_t x = mixed(a ^ *keys), y = mixed(b ^ *keys);                                                 \
            mask = d->leaf_mask;                                                                                       \
            _Pragma("GCC unroll 2") for (int j = 0; j < width; j++) {                                                  \
                t = (const char *)d->leaf[j];                                                                          \
                EACH(W) S[j][h] += PICK_##T(t, x, h) * c[j];                                                           \
                EACH(W) S[j][W + h] += PICK_##T(t, y, h) * c[j];                                                       \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("GCC unroll 2") for (int j = 0; j < lanes; j++) {                                                      \
            EACH(2 * W) A[j][h] += S[0][h] * rows[j][0];                                                               \
            if (width > 1) EACH(2 * W) A[j][h] += S[1][h] * rows[j][1];                                                \
            if (normals) EACH(2 * W) A[j][h] += Z[0][h] * rows[j][2];                                                  \
            if (normals && width > 1) EACH(2 * W) A[j][h] += Z[1][h] * rows[j][3];                                     \
            _Pragma("GCC unroll 2") for (int k = 0; k < width; k++)                                                    \
                EACH(2 * W) A[j][h] += *(const U *)(in[k] + at + 16 / W * h) * rows[j][4 + k];                         \
            EACH(2 * W) *(U *)(out[j] + at + 16 / W * h) = A[j][h];                                                    \
        }                                                                                                              \
        if (d->m == lanes) return;                                                                                     \
        EACH(2 * W) *(U *)(out[lanes] + at + 16 / W * h) = Z[0][h] - S[0][h];                                          \
        if (width > 1)                                                                                                 \
            EACH(2 * W) *(U *)(out[lanes + 1] + at + 16 / W * h) =                                                     \
                S[0][h] * rows[lanes + 1][0] - S[1][h] + Z[0][h] * rows[lanes + 1][2] + Z[1][h] * rows[lanes + 1][3];  \
    }                                                                                                                  \
    /* Outputs from the number `start` on, the first of them to `here` if that is not 0. */                            \
    static inline __attribute__((always_inline)) void NAME##_of(const NAME##_t *d, const int width, const int lanes,   \
                                                                long start, long size, T *here) {                      \
        const uint64_t *bits = (const uint64_t *)(uintptr_t)d->job[1] + start / 16;                                    \
        const T *in[2];                                                                                                \
        T *out[4], room[6][32] = {{0}}; /* for a word without a second one */                                          \
        int normals = 0; /* whether the cell's own are in a draw: it begins in the cell where it ends */               \
        V rows[4][6];                                                                                                  \
        for (int k = 0; k < d->n; k++) in[k] = (const T *)(uintptr_t)d->in[k] + start;                                 \
        for (int j = 0; j < d->m; j++) {                                                                               \
            out[j] = j == 0 && here ? here : (T *)(uintptr_t)d->out[j] + start;                                        \
            for (int k = 0; k < 3 * width; k++)                                                                        \
                rows[j][2 * (k / width) + k % width] = (V){0} + d->rows[3 * width * j + k];                            \
            for (int k = width; k < 2 * width; k++) normals |= j < lanes && d->rows[3 * width * j + k] != 0;           \
        }                                                                                                              \
        for (int one = 0; one < 2; one++) {                                                                            \
            const long from = one ? size / 32 : 0, to = one ? (size + 16) / 32 : size / 32;                            \
            if (from == to) continue;                                                                                  \
            for (int k = 0; one && k < d->n; k++)                                                                      \
                in[k] = (const T *)memcpy(room[k], in[k] + 32 * from, 16 * sizeof(T)) - 32 * from;                     \
            for (int j = 0; one && j < d->m; j++) out[j] = room[2 + j] - 32 * from;                                    \
            for (long i = from; i < to; i++)                                                                           \
                NAME##_two(d, width, lanes, bits[2 * i], bits[2 * i + 1 - one], rows, normals, in, out, 32 * i);       \
            for (int j = 0; one && j < d->m; j++)                                                                      \
                memcpy((j == 0 && here ? here : (T *)(uintptr_t)d->out[j] + start) + 32 * from, room[2 + j],           \
                       16 * sizeof(T));                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    static void NAME##_piece(const NAME##_t *d, long start, long size, T *here) {                                      \
        if (d->width == 1) NAME##_of(d, 1, 1, start, size, here);                                                      \
        else if (d->lanes == 1) NAME##_of(d, 2, 1, start, size, here);                                                 \
        else NAME##_of(d, 2, 2, start, size, here);                                                                    \
    }                                                                                                                  \
    static void NAME##_end(const NAME##_t *d) { *(uint64_t *)(uintptr_t)(d->out + d->m) = 1; }                         \
    int NAME(const uint64_t *job) {                                                                                    \
        NAME##_t d;                                                                                                    \
        if (NAME##_begin(&d, job)) return 1;                                                                           \
        NAME##_piece(&d, 0, 16 * (long)job[0], 0);                                                                     \
        NAME##_end(&d);                                                                                                \
        return 0;                                                                                                      \
    }

DRAW(draw_float, combine_float, float, vf, vfu, WF, 4)
DRAW(draw_double, combine_double, double, vd, vdu, WD, 5)

/* combine: out[j] = sum_k table[j, k] (in, out)[k], j < m, k < n + j, over `count` numbers of each of `samples`; no out
   may be an in. Each bit j of `watched` asks of output j whether all of it is finite; the answer has the bits of those
   that are not. An output at 0 is for the pairs alone.

   of_samples, or 0: how many factors, products and shares there are, and of each factor, f[0] being 1, that it is
   f[which] share[which] of the sample, of each product, a column of the table beyond n + m, that it is of in[which] times
   f[which].
   pairs, or 0: how many, and of each which two of (in, out); found[sample, pair] is their inner product, summed in T for
   a block and in double over the blocks.

   An input at an odd address is the job of a draw before it, whose output 0 is worked on where it stands.

   job: told, count, samples, found, the shares, the n inputs and the m outputs. told: n, m, table, watched, of_samples,
   pairs. */
#define PLAY(NAME, DRAWN, T)                                                                                           \
    uint64_t NAME(const uint64_t *job) {                                                                               \
        static const uint64_t none[3];                                                                                 \
        const uint64_t *told = (const uint64_t *)(uintptr_t)job[0];                                                    \
        const long count = (long)job[1], samples = (long)job[2];                                                       \
        const int n = (int)told[0], m = (int)told[1], wide = n + m;                                                    \
        const double *table = (const double *)(uintptr_t)told[2];                                                      \
        const uint64_t watched = told[3], *of = told[4] ? (const uint64_t *)(uintptr_t)told[4] : none;                 \
        const uint64_t *pairs = told[5] ? (const uint64_t *)(uintptr_t)told[5] : none;                                 \
        double *found = (double *)(uintptr_t)job[3];                                                                   \
        const long block = pairs[0] ? BLOCK / 2 : BLOCK, blocks = (count + block - 1) / block;                         \
        const int factors = (int)of[0], products = (int)of[1];                                                         \
        const uint64_t *share = job + 4, *in = share + of[2], *out = in + n;                                           \
        double own[products ? m * wide : 1], f[factors + 1];                                                           \
        T scratch[(pairs[0] ? m : 0) + 1][BLOCK / 2], c[m + 1][wide + 1];                                              \
        int terms[m + 1], of_terms[m + 1][wide + 1];                                                                   \
        const T *p[MOST];                                                                                              \
        uint64_t bad = 0;                                                                                              \
        DRAWN##_t drawn;                                                                                               \
        int normal = -1; /* which input is drawn here; one may be, for there is room for one leaf */                   \
        T normals[BLOCK];                                                                                              \
        for (int k = 0; k < n; k++)                                                                                    \
            if (in[k] & 1) normal = k;                                                                                 \
        if (normal >= 0 && DRAWN##_begin(&drawn, (const uint64_t *)(uintptr_t)(in[normal] - 1))) return ~(uint64_t)0;  \
        if (pairs[0]) memset(found, 0, samples * pairs[0] * sizeof(double));                                           \
        for (long s = 0; s < samples; s++, found += pairs[0]) {                                                        \
            f[0] = 1;                                                                                                  \
            of = told[4] ? (const uint64_t *)(uintptr_t)told[4] + 3 : none;                                            \
            for (int i = 1; i <= factors; i++, of += 2) f[i] = f[of[0]] * ((const T *)(uintptr_t)share[of[1]])[s];     \
            for (int j = 0; products && j < m; j++) {                                                                  \
                const double *row = table + j * (wide + products);                                                     \
                memcpy(own + j * wide, row, wide * sizeof(double));                                                    \
                for (int e = 0; e < products; e++) own[j * wide + of[2 * e]] += row[wide + e] * f[of[2 * e + 1]];      \
            }                                                                                                          \
            const double *use = products ? own : table;                                                                \
            for (int j = 0; j < m; j++) {                                                                              \
                terms[j] = 0;                                                                                          \
                for (int k = 0; k < n + j; k++) {                                                                      \
                    if (use[j * wide + k] == 0) continue;                                                              \
                    c[j][terms[j]] = (T)use[j * wide + k];                                                             \
                    of_terms[j][terms[j]++] = k;                                                                       \
                }                                                                                                      \
            }                                                                                                          \
            for (long b = 0; b < blocks; b++) {                                                                        \
                const long start = s * count + b * block;                                                              \
                const long size = (s + 1) * count - start < block ? (s + 1) * count - start : block;                   \
                if (normal >= 0) DRAWN##_piece(&drawn, start, size, normals);                                          \
                for (int j = 0; j < m; j++) {                                                                          \
                    for (int i = 0; i < terms[j]; i++) {                                                               \
                        const int k = of_terms[j][i];                                                                  \
                        p[i] = k == normal ? normals : (const T *)(uintptr_t)in[k] + start;                            \
                    }                                                                                                  \
                    T *to = out[j] ? (T *)(uintptr_t)out[j] + start : scratch[j];                                      \
                    if (!(watched >> j & 1)) NAME##_sum(size, terms[j], c[j], p, to, 0);                               \
                    else if (NAME##_sum(size, terms[j], c[j], p, to, 1)) bad |= (uint64_t)1 << j;                      \
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
        if (normal >= 0) DRAWN##_end(&drawn);                                                                          \
        return bad;                                                                                                    \
    }

PLAY(combine_float, draw_float, float)
PLAY(combine_double, draw_double, double)
