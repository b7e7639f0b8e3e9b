/*
 * The bodies of responses, as libcurl passes them on: their checksums are computed, and they are written to files.
 *
 * libcurl calls `receive` with at most 16 KiB, 60,000 times a GB. Each call computes the checksums while the bytes are in
 * the processor's first cache, and copies them to a buffer that fits its second one, because so many calls of the kernel
 * would cost more than the copy. All receivers of a thread share the buffer, so that it stays in that cache.
 * The thread that drives libcurl calls it, and doesn't hold the interpreter's lock meanwhile; nothing here calls Python.
 *
 * A file of a tmpfs has one writer at a time, which the kernel's lock of the file ensures: 32 processes that write one
 * file are as fast as one. So only one of them writes, and the others copy their bytes to mappings of the file, which
 * takes a third more CPU time, because the kernel clears new pages, but doesn't take that lock. All of them add pages to
 * the file under another lock of the kernel, whose waiters spin: 16 processes fill one file no faster than 4 do, but in
 * four times the CPU time. So no more than 4 add pages to one file at a time, and the others sleep meanwhile.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crc_update.h"

#define ABI 2
#define HUGE_PAGE ((uint64_t)2 << 20)
#define SLOTS 4 /* processes that add pages to one file */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

enum { CHECKSUMMED = 1, CAPTURED = 2 }; /* of a piece */
enum { IN_TMPFS = 1, BY_ADVICE = 2 };   /* of an output */

/* The bytes of an object from the end of the piece before to `end`. */
struct piece {
    uint64_t end;
    int64_t target;  /* offset in the file; negative: they are not written */
    uint32_t output; /* index of the file */
    uint32_t flags;
};

struct output {
    int32_t descriptor;
    uint32_t flags; /* BY_ADVICE: the tmpfs gives huge pages only to mappings that ask for them */
};

enum { UNDECIDED, ACCEPTED, REFUSED };
enum { NO_CRC, CRC64NVME, CRC32C };

struct receiver;

/* Bytes that are not written yet: `used` bytes of one receiver, for one place. */
struct writer {
    unsigned char *buffer;
    uint64_t size;
    uint64_t used;
    struct receiver *receiver;
    struct output *output;
    uint64_t at; /* offset in the file */
};

/* One response. Results are 0 at its start. */
struct receiver {
    struct writer *writer;
    uint64_t start; /* the range, in the object */
    uint64_t end;
    uint64_t at; /* first byte that has not arrived */
    const struct piece *pieces;
    struct output *outputs;
    uint32_t *checksums;       /* result: the CRC-32 of each piece as far as it has arrived */
    unsigned char *captured;   /* result: the captured pieces, one after the other; there is room for all */
    unsigned char *other_body; /* result: the beginning of a body that is not the requested range */
    uint64_t other_limit;
    uint64_t captured_size; /* result */
    uint64_t other_size;    /* result */
    uint64_t crc;           /* result: of all pieces together */
    uint64_t received;      /* result: bytes of all bodies; the caller sets it to 0 when it has read it */
    uint32_t algorithm; /* of `crc` */
    uint32_t piece;    /* index of the piece that has the byte `at` */
    uint32_t decision; /* whether the response is the requested range, which its headers tell the caller */
    uint32_t too_long; /* result: whether bytes follow `end` */
    int32_t error;     /* result: an errno */
};

__attribute__((constructor)) static void prepare_all(void)
{
    prepare(&nvme);
    prepare(&castagnoli);
    prepare(&ieee);
}

int receive_abi(void)
{
    return ABI;
}

static int lock_slot(int descriptor, int command, int type, int slot)
{
    struct flock lock = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
    return fcntl(descriptor, command, &lock);
}

/*
 * Waits until this process may add pages to a file. Returns its slot, which is the byte that it has locked, or a negative
 * number if the file can't be locked. Only the process with slot 0 writes.
 */
static int take_slot(int descriptor)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (!lock_slot(descriptor, F_OFD_SETLK, F_WRLCK, slot))
            return slot;
    int slot = (int)(getpid() % SLOTS);
    return lock_slot(descriptor, F_OFD_SETLKW, F_WRLCK, slot) ? -1 : slot;
}

/*
 * Copies bytes to a mapping of a file in a tmpfs, which doesn't take the lock of its writers. Returns whether it could.
 * Leaves the slot when the file has the pages.
 */
static int write_mapped(const struct output *output, const unsigned char *data, size_t size, uint64_t at, int slot)
{
    uint64_t start = at / HUGE_PAGE * HUGE_PAGE; /* so that a huge page can be mapped as such */
    size_t length = (size_t)((at + size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE - start);
    unsigned char *mapping = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, output->descriptor, (off_t)start);
    int populated = 0;
    if (mapping != MAP_FAILED) {
        if (output->flags & BY_ADVICE)
            madvise(mapping, length, MADV_HUGEPAGE);
        uint64_t first = (at - start) & ~(uint64_t)4095;
        /* Unlike an access, this fails without a signal if there is no room. */
        populated = !madvise(mapping + first, at - start + size - first, MADV_POPULATE_WRITE);
    }
    if (slot >= 0)
        lock_slot(output->descriptor, F_OFD_SETLK, F_UNLCK, slot);
    if (populated)
        memcpy(mapping + (at - start), data, size);
    if (mapping != MAP_FAILED)
        munmap(mapping, length);
    return populated;
}

static int write_all(int descriptor, const unsigned char *data, size_t size, uint64_t at)
{
    while (size) {
        ssize_t written = pwrite(descriptor, data, size, (off_t)at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written ? errno : EIO;
        data += written;
        size -= (size_t)written;
        at += (uint64_t)written;
    }
    return 0;
}

/* Writes bytes to their place. Returns an errno; 0: none. */
static int write_output(struct output *output, const unsigned char *data, size_t size, uint64_t at)
{
    int slot = -1;
    if (output->flags & IN_TMPFS) {
        if (!(output->flags & BY_ADVICE)) /* a huge page is added in one step */
            slot = take_slot(output->descriptor);
        if (slot) {
            if (write_mapped(output, data, size, at, slot))
                return 0;
            output->flags = 0; /* an old kernel, or no room, which the write reports */
        }
    }
    int error = write_all(output->descriptor, data, size, at);
    if (!slot)
        lock_slot(output->descriptor, F_OFD_SETLK, F_UNLCK, slot);
    return error;
}

static void flush(struct writer *writer)
{
    if (!writer->used)
        return;
    int error = write_output(writer->output, writer->buffer, writer->used, writer->at);
    if (error)
        writer->receiver->error = error;
    writer->used = 0;
}

/* Writes what the receiver has left in the buffer. Call it at the end of its response. */
void receiver_finish(struct receiver *receiver)
{
    if (receiver->writer->receiver == receiver)
        flush(receiver->writer);
}

/* Buffers bytes for a place in a file. */
static void put(struct receiver *receiver, struct output *output, const unsigned char *data, size_t size, uint64_t at)
{
    struct writer *writer = receiver->writer;
    if (writer->receiver != receiver || writer->output != output || writer->at + writer->used != at ||
        writer->used + size > writer->size)
        flush(writer);
    if (!writer->used) {
        writer->receiver = receiver;
        writer->output = output;
        writer->at = at;
    }
    memcpy(writer->buffer + writer->used, data, size);
    writer->used += size;
}

/* Takes bytes of one piece. */
static void take(struct receiver *receiver, const unsigned char *data, size_t size)
{
    const struct piece *piece = &receiver->pieces[receiver->piece];
    uint32_t *checksum = &receiver->checksums[receiver->piece];
    if (piece->flags & CHECKSUMMED)
        *checksum = (uint32_t)update(&ieee, *checksum, data, size);
    if (receiver->algorithm != NO_CRC)
        receiver->crc = update(receiver->algorithm == CRC64NVME ? &nvme : &castagnoli, receiver->crc, data, size);
    if (piece->flags & CAPTURED) {
        memcpy(receiver->captured + receiver->captured_size, data, size);
        receiver->captured_size += size;
    }
    if (piece->target < 0)
        return;
    uint64_t start = receiver->piece ? receiver->pieces[receiver->piece - 1].end : receiver->start;
    uint64_t at = (uint64_t)piece->target + (receiver->at - start);
    put(receiver, &receiver->outputs[piece->output], data, size, at);
}

/* libcurl's CURLOPT_WRITEFUNCTION. Returns how many bytes it took; fewer than there are end the transfer. */
size_t receive(const char *bytes, size_t one, size_t size, void *user)
{
    struct receiver *receiver = user;
    const unsigned char *data = (const unsigned char *)bytes;
    size *= one;
    receiver->received += size;
    if (receiver->decision != ACCEPTED) {
        size_t room = receiver->other_limit - receiver->other_size;
        size_t kept = size < room ? size : room;
        memcpy(receiver->other_body + receiver->other_size, data, kept);
        receiver->other_size += kept;
        return receiver->decision == REFUSED ? 0 : size;
    }
    if (size > receiver->end - receiver->at) {
        receiver->too_long = 1;
        return 0;
    }
    for (size_t left = size; left;) {
        while (receiver->pieces[receiver->piece].end == receiver->at) /* the last one ends with the range */
            receiver->piece++;
        uint64_t rest = receiver->pieces[receiver->piece].end - receiver->at;
        size_t length = left < rest ? left : (size_t)rest;
        length = length < receiver->writer->size ? length : receiver->writer->size;
        take(receiver, data, length);
        receiver->at += length;
        data += length;
        left -= length;
    }
    return receiver->error ? 0 : size;
}
