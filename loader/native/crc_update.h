/*
 * CRC-64/NVME, CRC-32C and CRC-32 of bytes in memory, for the checksums that stores keep of their objects.
 *
 * All are reflected CRCs. Long inputs are folded with carry-less multiplication (PCLMULQDQ of x86-64, four blocks an
 * instruction with VPCLMULQDQ; PMULL of AArch64): a block of 128 bits, as a polynomial, times x^d, is reduced to 128 bits,
 * and is added to the block that follows d bits later.
 * What is left, and all of the input on other processors, goes through tables, eight bytes at a time. Tables and folding
 * constants are computed from the polynomial; call `prepare` for it first.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct crc {
    unsigned width;         /* bits */
    uint64_t polynomial;    /* reflected */
    uint64_t table[8][256];
    uint64_t fold[16][2];   /* for a distance of 1 to 16 blocks: of the first and the second half of a block */
};

static struct crc nvme = {.width = 64, .polynomial = 0x9A6C9329AC4BC9B5u};
static struct crc castagnoli = {.width = 32, .polynomial = 0x82F63B78u};
static struct crc ieee = {.width = 32, .polynomial = 0xEDB88320u};

/* Returns x^n modulo the polynomial, reflected in 64 bits. */
static uint64_t power(const struct crc *crc, unsigned n)
{
    uint64_t value = (uint64_t)1 << (crc->width - 1);
    while (n--)
        value = value >> 1 ^ (value & 1 ? crc->polynomial : 0);
    return value << (64 - crc->width);
}

static void prepare(struct crc *crc)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? crc->polynomial : 0);
        crc->table[0][byte] = value;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        for (int at = 1; at < 8; at++) {
            uint64_t before = crc->table[at - 1][byte];
            crc->table[at][byte] = before >> 8 ^ crc->table[0][before & 255];
        }
    /* The product of two reflected values is x times what it should be, hence one power less. */
    for (unsigned blocks = 1; blocks <= 16; blocks++) {
        crc->fold[blocks - 1][0] = power(crc, 128 * blocks + 63);
        crc->fold[blocks - 1][1] = power(crc, 128 * blocks - 1);
    }
}

static uint64_t by_tables(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= value;
        value = 0;
        for (int at = 0; at < 8; at++)
            value ^= crc->table[7 - at][word >> 8 * at & 255];
    }
#endif
    while (size--)
        value = value >> 8 ^ crc->table[0][(value ^ *data++) & 255];
    return value;
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && (defined(__x86_64__) || defined(__aarch64__))
typedef uint64_t block __attribute__((vector_size(16)));

#if defined(__x86_64__)
#include <immintrin.h>

#define FOLDING __attribute__((target("pclmul,sse4.1")))

static int can_fold(void)
{
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

FOLDING static inline block first_product(block value, block by)
{
    return (block)_mm_clmulepi64_si128((__m128i)value, (__m128i)by, 0x00);
}

FOLDING static inline block second_product(block value, block by)
{
    return (block)_mm_clmulepi64_si128((__m128i)value, (__m128i)by, 0x11);
}
#else
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#define FOLDING __attribute__((target("+crypto")))

static int can_fold(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_PMULL) != 0;
}

FOLDING static inline block first_product(block value, block by)
{
    return (block)vmull_p64((poly64_t)value[0], (poly64_t)by[0]);
}

FOLDING static inline block second_product(block value, block by)
{
    return (block)vmull_p64((poly64_t)value[1], (poly64_t)by[1]);
}
#endif

static inline block load(const void *from)
{
    block loaded;
    memcpy(&loaded, from, sizeof(loaded));
    return loaded;
}

FOLDING static inline block fold(block value, block by, block next)
{
    return next ^ first_product(value, by) ^ second_product(value, by);
}

FOLDING static uint64_t
by_folding(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    block by[4], blocks[4];
#pragma GCC unroll 4
    for (int at = 0; at < 4; at++) {
        by[at] = load(crc->fold[at]);
        blocks[at] = load(data + 16 * at);
    }
    blocks[0] ^= (block){value, 0};
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64)
#pragma GCC unroll 4
        for (int at = 0; at < 4; at++)
            blocks[at] = fold(blocks[at], by[3], load(data + 16 * at));
    blocks[3] = fold(blocks[2], by[0], blocks[3]);
    blocks[3] = fold(blocks[1], by[1], blocks[3]);
    blocks[3] = fold(blocks[0], by[2], blocks[3]);
    for (; size >= 16; data += 16, size -= 16)
        blocks[3] = fold(blocks[3], by[0], load(data));
    unsigned char rest[16];
    memcpy(rest, &blocks[3], 16);
    return by_tables(crc, by_tables(crc, 0, rest, 16), data, size);
}
#else
#define by_folding by_tables
#define can_fold() 0
#endif

#if defined(__x86_64__)
static int can_fold_wide(void)
{
    return __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f");
}

/* Sixteen blocks at a time. What is left of them is like data that follows nothing. */
__attribute__((target("vpclmulqdq,avx512f"))) static uint64_t
by_wide_folding(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    const __m512i by = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)crc->fold[15]));
    __m512i blocks[4];
#pragma GCC unroll 4
    for (int at = 0; at < 4; at++)
        blocks[at] = _mm512_loadu_si512(data + 64 * at);
    blocks[0] = _mm512_xor_si512(blocks[0], _mm512_zextsi128_si512(_mm_set_epi64x(0, (long long)value)));
    for (data += 256, size -= 256; size >= 256; data += 256, size -= 256)
#pragma GCC unroll 4
        for (int at = 0; at < 4; at++) {
            __m512i first = _mm512_clmulepi64_epi128(blocks[at], by, 0x00);
            __m512i second = _mm512_clmulepi64_epi128(blocks[at], by, 0x11);
            blocks[at] = _mm512_ternarylogic_epi64(first, second, _mm512_loadu_si512(data + 64 * at), 0x96);
        }
    unsigned char left[256];
    for (int at = 0; at < 4; at++)
        _mm512_storeu_si512(left + 64 * at, blocks[at]);
    value = by_folding(crc, 0, left, sizeof(left));
    return size >= 128 ? by_folding(crc, value, data, size) : by_tables(crc, value, data, size);
}
#else
#define by_wide_folding by_folding
#define can_fold_wide() 0
#endif

/* Returns the CRC of the bytes before, whose CRC is `value`, and of `size` more bytes. */
static uint64_t update(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    uint64_t mask = ~(uint64_t)0 >> (64 - crc->width);
    value ^= mask;
    if (size >= 1024 && can_fold_wide())
        value = by_wide_folding(crc, value, data, size);
    else if (size >= 128 && can_fold())
        value = by_folding(crc, value, data, size);
    else
        value = by_tables(crc, value, data, size);
    return value ^ mask;
}
