/* The CRCs of crc_update.h, for Python. */

#include "crc_update.h"

#define ABI 1

__attribute__((constructor)) static void prepare_all(void)
{
    prepare(&nvme);
    prepare(&castagnoli);
    prepare(&ieee);
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

uint64_t crc32(const void *data, size_t size, uint64_t value)
{
    return update(&ieee, value, data, size);
}
