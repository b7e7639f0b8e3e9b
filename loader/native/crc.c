/*
 * CRC-64/NVME and CRC-32C of bytes in memory, for the checksums that stores keep of their objects.
 *
 * Both are reflected CRCs. Long inputs are folded with carry-less multiplication (x86-64 with PCLMULQDQ, four blocks an
 * instruction with VPCLMULQDQ): a block of 128 bits, as a polynomial, times x^d, is reduced to 128 bits, and is added to
 * the block that follows d bits later.
 * What is left, and all of the input on other processors, goes through tables, eight bytes at a time. Tables and folding
 * constants are computed from the polynomial when the library is loaded.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ABI 1

struct crc {
    unsigned width;         /* bits */
    uint64_t polynomial;    /* reflected */
    uint64_t table[8][256];
    uint64_t fold[16][2];   /* for a distance of 1 to 16 blocks: of the first and the second half of a block */
};

static struct crc nvme = {.width = 64, .polynomial = 0x9A6C9329AC4BC9B5u};
static struct crc castagnoli = {.width = 32, .polynomial = 0x82F63B78u};

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

__attribute__((constructor)) static void prepare_all(void)
{
    prepare(&nvme);
    prepare(&castagnoli);
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

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i block, __m128i by, __m128i next)
{
    __m128i first = _mm_clmulepi64_si128(block, by, 0x00), second = _mm_clmulepi64_si128(block, by, 0x11);
    return _mm_xor_si128(next, _mm_xor_si128(first, second));
}

__attribute__((target("pclmul,sse4.1"))) static uint64_t
by_folding(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    const __m128i *from = (const __m128i *)data;
    __m128i by[4], block[4];
#pragma GCC unroll 4
    for (int at = 0; at < 4; at++) {
        by[at] = _mm_loadu_si128((const __m128i *)crc->fold[at]);
        block[at] = _mm_loadu_si128(from + at);
    }
    block[0] = _mm_xor_si128(block[0], _mm_set_epi64x(0, (long long)value));
    for (from += 4, size -= 64; size >= 64; from += 4, size -= 64)
#pragma GCC unroll 4
        for (int at = 0; at < 4; at++)
            block[at] = fold(block[at], by[3], _mm_loadu_si128(from + at));
    block[3] = fold(block[2], by[0], block[3]);
    block[3] = fold(block[1], by[1], block[3]);
    block[3] = fold(block[0], by[2], block[3]);
    for (; size >= 16; from++, size -= 16)
        block[3] = fold(block[3], by[0], _mm_loadu_si128(from));
    unsigned char rest[16];
    _mm_storeu_si128((__m128i *)rest, block[3]);
    return by_tables(crc, by_tables(crc, 0, rest, 16), (const unsigned char *)from, size);
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

static uint64_t update_long(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    if (!__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1"))
        return by_tables(crc, value, data, size);
    if (size >= 1024 && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f"))
        return by_wide_folding(crc, value, data, size);
    return by_folding(crc, value, data, size);
}
#else
#define update_long by_tables
#endif

static uint64_t update(const struct crc *crc, uint64_t value, const unsigned char *data, size_t size)
{
    uint64_t mask = ~(uint64_t)0 >> (64 - crc->width);
    value ^= mask;
    value = size >= 128 ? update_long(crc, value, data, size) : by_tables(crc, value, data, size);
    return value ^ mask;
}

int crc_abi(void)
{
    return ABI;
}

/* Each returns the CRC of the bytes before, whose CRC is `value`, and of `size` more bytes. */
uint64_t crc64nvme(const void *data, size_t size, uint64_t value)
{
    return update(&nvme, value, data, size);
}

uint64_t crc32c(const void *data, size_t size, uint64_t value)
{
    return update(&castagnoli, value, data, size);
}
