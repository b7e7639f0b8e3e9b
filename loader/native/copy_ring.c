/* Copies groups of tensors from files to a device, through pinned buffers, with threads that need no GIL.
 *
 * Each thread has a few buffers, which it allocates and pins itself when it is first to copy. It takes the next chunk
 * of the tensors, reads it into a buffer, and reads the next chunk into its next buffer while the first one is copied.
 * So no thread waits for another, and the lines of a buffer stay in the caches of the core that fills it: buffers of
 * all threads and of all processes that copy at once should fit the processor's last cache (the size is chosen in
 * copy_options.py).
 *
 * The bus is idle for some microseconds after each copy, in whatever stream the next one is, but not within a batch of
 * copies. So buffers that are read go to the device in batches: while one is copied, and another one waits in the
 * stream, further buffers become the next batch. Drivers without batches get each copy by itself.
 *
 * A chunk is read in pieces, each by one of two ways: `pread`, or a copy from a mapping that the thread has for itself.
 * The share of each is set from outside (ring_set_mapped_share), by what ring_read_stats measures.
 *
 * Python calls these functions through ctypes (tonnage/attach/native/library.py), which releases the GIL. The
 * driver's functions are passed as pointers, so that this file needs no CUDA headers and can copy to host memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RING_ABI 4
#define SHARES 16            /* mapped_share is in sixteenths of the pieces */
#define MAX_EXTENTS 4096     /* of a chunk, so that the lock is held for a bounded time */
#define PAGE 4096
#define PIN_PORTABLE 1u      /* CU_MEMHOSTREGISTER_PORTABLE */
#define BATCH_SLOTS 4        /* buffers of a batch; with eight, no more was copied */
#define MAX_STARTED 2        /* batches: one that is copied, and one that waits for it */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { READ = 0, MAPPED = 1, WAYS = 2 };
enum { FAILED_READ = 1, FAILED_SHORT = 2, FAILED_DEVICE = 3, FAILED_THREAD = 4 };

struct extent {
    uint64_t file, source, target, length;
};

/* CUmemcpyAttributes. */
struct attributes {
    int32_t source_order;   /* IN_STREAM_ORDER */
    int32_t source_location[2], target_location[2];     /* hints for managed memory */
    uint32_t flags;
};
enum { IN_STREAM_ORDER = 1 };   /* CU_MEMCPY_SRC_ACCESS_ORDER_STREAM */

/* Driver functions return 0 for success. */
struct device {
    int (*set_context)(void *context);
    int (*copy)(uint64_t target, const void *source, size_t length, void *stream);
    /* NULL: there are no batches */
    int (*copy_batch)(uint64_t *targets, uint64_t *sources, size_t *lengths, size_t count, struct attributes *attributes,
                      size_t *attribute_indexes, size_t attribute_count, size_t *failed, void *stream);
    int (*record)(void *event, void *stream);
    int (*query)(void *event);
    int (*synchronize)(void *event);
    int (*pin)(void *address, size_t length, unsigned flags);   /* NULL: buffers are not pinned */
    int (*unpin)(void *address);
    void *context, *stream;
};

struct failure {
    int32_t kind;   /* FAILED_...; 0: none */
    int32_t code;   /* errno, or the driver's error code */
    int64_t file;   /* number of the file, or -1 */
    uint64_t offset;
};

struct read_stats {
    uint64_t bytes[WAYS], nanoseconds[WAYS];
    uint64_t waited;    /* nanoseconds, of all active threads */
};

struct group {
    struct group *next;
    uint64_t base;
    uint32_t count;
    uint32_t extent;    /* cursor: the extent to be read next */
    uint64_t done;      /* cursor: bytes of it that are taken */
    uint64_t left;      /* bytes of extents that are not on the device yet */
    struct extent extents[];
};

enum state { IDLE, PENDING, COPYING }; /* IDLE: free or being read; PENDING: read, and not in a batch yet */

/* A buffer, and the chunk that it holds: a range of a group. */
struct slot {
    char *address;
    enum state state;
    struct slot *next;      /* the next pending one */
    uint64_t batch;         /* if COPYING: number of its batch; the first one is 1 */
    struct group *group;
    uint64_t start, end;
    uint64_t bytes;         /* bytes of extents in this range */
    uint32_t extent;        /* first extent, and what is taken of it before the chunk */
    uint64_t done;
};

struct ring {
    pthread_mutex_t lock;
    pthread_cond_t changed;     /* for workers */
    pthread_cond_t parked;      /* for workers that are not active */
    pthread_cond_t progressed;  /* for the caller */
    _Atomic uint64_t version;   /* of what workers wait for */
    struct device device;
    uint64_t slot_bytes, piece_bytes;
    uint64_t spin_nanoseconds;
    struct slot *slots;
    uint32_t slots_each;                /* the first slots_each are those of thread 0, and so on */
    void **events;                      /* as many as slots; batches take them in turn */
    struct slot *pending, **pending_end;
    uint32_t pending_count, max_batch;
    uint64_t batches_taken, batches_started, batches_ended; /* as far as is known */
    uint32_t prepared;                  /* threads whose buffers are ready */
    uint64_t pinned;                    /* bytes */
    struct group *groups, **groups_end, *next_group;
    const int *descriptors;
    uint32_t files;
    int finished, stopped, started;
    uint32_t running, threads;
    uint32_t handle_count;              /* threads that were asked for */
    _Atomic uint32_t numbered;          /* threads that have a number */
    uint32_t active;                    /* threads with a lower number copy, the others wait */
    uint32_t outstanding;               /* chunks that are being read or copied */
    uint64_t copied;
    struct failure failure;
    _Atomic uint32_t mapped_share, turn;
    _Atomic uint64_t way_bytes[WAYS], way_nanoseconds[WAYS];
    _Atomic uint64_t waited;            /* nanoseconds that active threads waited for copies or for groups */
    pthread_t *handles;
};

struct worker {
    struct ring *ring;
    uint32_t number;
    uint32_t turn;          /* its slot that is used next */
    int prepared, pinned;
    char **mappings;
    uint64_t *sizes;
};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void announce(struct ring *ring) {
    atomic_fetch_add(&ring->version, 1);
    pthread_cond_broadcast(&ring->changed);
}

/* Lets the threads that are not active look again. */
static void unpark(struct ring *ring) {
    pthread_cond_broadcast(&ring->parked);
}

/* Waits until announce; spins first, because an idle virtual processor takes longer to start again than most waits. */
static void wait_for_change(struct ring *ring) {
    uint64_t version = atomic_load(&ring->version);
    if (ring->spin_nanoseconds) {
        uint64_t until = now() + ring->spin_nanoseconds;
        pthread_mutex_unlock(&ring->lock);
        while (atomic_load_explicit(&ring->version, memory_order_relaxed) == version && now() < until) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        pthread_mutex_lock(&ring->lock);
    }
    if (atomic_load(&ring->version) == version)
        pthread_cond_wait(&ring->changed, &ring->lock);
}

static void fail(struct ring *ring, int kind, int code, int64_t file, uint64_t offset) {
    if (!ring->failure.kind)
        ring->failure = (struct failure){kind, code, file, offset};
    ring->stopped = 1;
    announce(ring);
    unpark(ring);
    pthread_cond_broadcast(&ring->progressed);
}

/* Takes the next chunk for a slot. False if there is none at present. The lock is held. */
static int take_chunk(struct ring *ring, struct slot *slot) {
    struct group *group = ring->next_group;
    if (!group)
        return 0;
    *slot = (struct slot){.address = slot->address, .group = group, .extent = group->extent, .done = group->done};
    slot->start = slot->end = group->extents[group->extent].target + group->done;
    uint64_t limit = slot->start + ring->slot_bytes;
    for (uint32_t count = 0; count < MAX_EXTENTS && group->extent < group->count; count++) {
        const struct extent *extent = &group->extents[group->extent];
        uint64_t target = extent->target + group->done;
        if (target >= limit)
            break;
        uint64_t length = extent->length - group->done;
        if (length > limit - target)
            length = limit - target;
        slot->bytes += length;
        slot->end = target + length;
        group->done += length;
        if (group->done == extent->length) {
            group->extent++;
            group->done = 0;
        }
    }
    if (group->extent == group->count)
        ring->next_group = group->next;
    ring->outstanding++;
    return 1;
}

static char *mapping(struct worker *worker, uint64_t file, uint64_t end) {
    struct ring *ring = worker->ring;
    if (!worker->mappings[file]) {
        struct stat status;
        if (fstat(ring->descriptors[file], &status) || !status.st_size)
            return NULL;
        void *address = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED | MAP_NORESERVE,
                             ring->descriptors[file], 0);
        if (address == MAP_FAILED)
            return NULL;
        madvise(address, (size_t)status.st_size, MADV_SEQUENTIAL);
        worker->mappings[file] = address;
        worker->sizes[file] = (uint64_t)status.st_size;
    }
    return end <= worker->sizes[file] ? worker->mappings[file] : NULL;
}

/* Copies from a mapping. The processor's own prefetching ends at each page, so the next page is prefetched here. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
static void copy_pages(char *restrict target, const char *restrict source, size_t length) {
    size_t at = 0;
    for (; at + 64 <= length; at += 64) {
        __builtin_prefetch(source + at + PAGE, 0, 2);
        __builtin_memcpy(target + at, source + at, 64);
    }
    memcpy(target + at, source + at, length - at);
}

/* Reads one extent; false after an error. */
static int read_extent(struct worker *worker, int way, uint64_t file, uint64_t source, char *target, uint64_t length) {
    struct ring *ring = worker->ring;
    if (way == MAPPED) {
        struct stat status;
        char *base = mapping(worker, file, source + length);
        /* reading a mapping beyond the file's end raises SIGBUS */
        if (base && !fstat(ring->descriptors[file], &status) && (uint64_t)status.st_size >= source + length) {
            copy_pages(target, base + source, length);
            return 1;
        }
    }
    while (length) {
        ssize_t count = pread(ring->descriptors[file], target, length, (off_t)source);
        if (count > 0) {
            target += count;
            source += (uint64_t)count;
            length -= (uint64_t)count;
        } else if (count == 0 || errno != EINTR) {
            int code = count ? errno : 0;
            pthread_mutex_lock(&ring->lock);
            fail(ring, count ? FAILED_READ : FAILED_SHORT, code, (int64_t)file, source);
            pthread_mutex_unlock(&ring->lock);
            return 0;
        }
    }
    return 1;
}

/* Reads part of an extent, a piece after the other; false after an error. */
static int read_pieces(struct worker *worker, const struct extent *extent, uint64_t done, char *target,
                       uint64_t length) {
    struct ring *ring = worker->ring;
    while (length) {
        uint64_t count = length < ring->piece_bytes ? length : ring->piece_bytes;
        uint32_t turn = atomic_fetch_add_explicit(&ring->turn, 7, memory_order_relaxed) % SHARES;
        int way = turn < atomic_load_explicit(&ring->mapped_share, memory_order_relaxed) ? MAPPED : READ;
        uint64_t began = now();
        if (!read_extent(worker, way, extent->file, extent->source + done, target, count))
            return 0;
        atomic_fetch_add_explicit(&ring->way_bytes[way], count, memory_order_relaxed);
        atomic_fetch_add_explicit(&ring->way_nanoseconds[way], now() - began, memory_order_relaxed);
        target += count;
        done += count;
        length -= count;
    }
    return 1;
}

/* Reads a slot's chunk; false after an error. */
static int read_chunk(struct worker *worker, const struct slot *slot) {
    uint64_t left = slot->bytes, done = slot->done;
    for (const struct extent *extent = &slot->group->extents[slot->extent]; left; extent++) {
        uint64_t length = extent->length - done;
        if (length > left)
            length = left;
        if (!read_pieces(worker, extent, done, slot->address + (extent->target + done - slot->start), length))
            return 0;
        left -= length;
        done = 0;
    }
    return 1;
}

static int complete(const struct ring *ring) {
    return ring->finished && !ring->next_group && !ring->outstanding;
}

static void *batch_event(const struct ring *ring, uint64_t batch) {
    return ring->events[batch % (ring->handle_count * ring->slots_each)];
}

/* Starts the copies of a batch; returns 0 or the driver's error code. A device may refuse batches, although its driver
 * has them: then each copy is started by itself. The lock is not held. */
static int start_copies(struct ring *ring, struct slot *const *slots, uint32_t count, void *event, int *refused) {
    const struct device *device = &ring->device;
    uint64_t targets[BATCH_SLOTS], sources[BATCH_SLOTS];
    size_t lengths[BATCH_SLOTS], first = 0, failed;
    struct attributes attributes = {.source_order = IN_STREAM_ORDER};
    for (uint32_t number = 0; number < count; number++) {
        targets[number] = slots[number]->group->base + slots[number]->start;
        sources[number] = (uint64_t)(uintptr_t)slots[number]->address;
        lengths[number] = slots[number]->end - slots[number]->start;
    }
    *refused = count > 1 && device->copy_batch(targets, sources, lengths, count, &attributes, &first, 1, &failed,
                                               device->stream);
    int code = 0;
    if (count == 1 || *refused)
        for (uint32_t number = 0; number < count && !code; number++)
            code = device->copy(targets[number], slots[number]->address, lengths[number], device->stream);
    int recorded = device->record(event, device->stream);   /* also after a failure: some copies may have begun */
    return code ? code : recorded;
}

/* Returns whether the next batch should be started now: a full one while another is copied, or what there is if the bus
 * is idle. The lock is held. */
static int is_due(struct ring *ring) {
    if (ring->max_batch == 1)
        return 1;
    while (ring->batches_ended < ring->batches_started && !ring->device.query(batch_event(ring, ring->batches_ended + 1)))
        ring->batches_ended++;
    uint64_t busy = ring->batches_taken - ring->batches_ended;
    return !busy || (busy < MAX_STARTED && ring->pending_count >= ring->max_batch);
}

/* Starts the copies of pending slots: all of them, or what is due. The lock is held, and released meanwhile. */
static void start_pending(struct ring *ring, int all) {
    /* another thread that starts a batch looks again when it has done so */
    while (ring->pending && ring->batches_taken == ring->batches_started && (all || is_due(ring))) {
        struct slot *slots[BATCH_SLOTS];
        uint32_t count = 0;
        uint64_t batch = ++ring->batches_taken;
        while (ring->pending && count < ring->max_batch) {
            struct slot *slot = slots[count++] = ring->pending;
            ring->pending = slot->next;
            slot->state = COPYING;
            slot->batch = batch;
        }
        if (!ring->pending)
            ring->pending_end = &ring->pending;
        ring->pending_count -= count;
        pthread_mutex_unlock(&ring->lock);
        int refused, code = start_copies(ring, slots, count, batch_event(ring, batch), &refused);
        pthread_mutex_lock(&ring->lock);
        ring->batches_started = batch;
        if (refused)
            ring->max_batch = 1;
        announce(ring);
        if (code)
            fail(ring, FAILED_DEVICE, code, -1, 0);
    }
}

/* Adds a slot that has been read to those that are copied next. The lock is held, and released meanwhile. */
static void add_pending(struct ring *ring, struct slot *slot) {
    slot->state = PENDING;
    *ring->pending_end = slot;
    ring->pending_end = &slot->next;
    ring->pending_count++;
    start_pending(ring, 0);
}

static int is_started(const struct ring *ring, const struct slot *slot) {
    return slot->state == COPYING && slot->batch <= ring->batches_started;
}

/* Waits for a slot's copy. The lock is held, and released meanwhile. */
static void finish_copy(struct ring *ring, struct slot *slot) {
    while (!is_started(ring, slot)) {
        start_pending(ring, 1);
        if (!is_started(ring, slot)) /* another thread starts a batch */
            wait_for_change(ring);
    }
    if (slot->batch > ring->batches_ended) {
        uint64_t batch = slot->batch;
        pthread_mutex_unlock(&ring->lock);
        int code = ring->device.synchronize(batch_event(ring, batch));
        pthread_mutex_lock(&ring->lock);
        if (code)
            fail(ring, FAILED_DEVICE, code, -1, 0);
        else if (batch > ring->batches_ended)
            ring->batches_ended = batch;
        start_pending(ring, 0);
    }
    slot->state = IDLE;
    ring->outstanding--;
    slot->group->left -= slot->bytes;
    ring->copied += slot->bytes;
    if (!slot->group->left)
        pthread_cond_broadcast(&ring->progressed);
    if (complete(ring)) {
        announce(ring);
        unpark(ring);
    }
}

static struct slot *own_slot(const struct worker *worker, uint32_t index) {
    const struct ring *ring = worker->ring;
    return &ring->slots[worker->number * ring->slots_each + index % ring->slots_each];
}

/* Allocates and pins the thread's buffers. Buffers that can't be pinned only make copies slower. */
static void prepare(struct worker *worker) {
    struct ring *ring = worker->ring;
    char *memory = own_slot(worker, 0)->address;
    uint64_t bytes = ring->slots_each * ring->slot_bytes;
    madvise(memory, bytes, MADV_POPULATE_WRITE);    /* pinning does the same, but under the driver's lock */
    worker->pinned = ring->device.pin && !ring->device.pin(memory, bytes, PIN_PORTABLE);
    worker->prepared = 1;
    pthread_mutex_lock(&ring->lock);
    ring->prepared++;
    if (!worker->pinned)
        ring->max_batch = 1;    /* of memory that isn't pinned, the driver makes copies that it waits for */
    ring->pinned += worker->pinned ? bytes : 0;
    pthread_mutex_unlock(&ring->lock);
}

/* Waits for the thread's oldest copy; false if it has none. */
static int finish_oldest(struct worker *worker) {
    for (uint32_t step = 0; step < worker->ring->slots_each; step++) {
        struct slot *slot = own_slot(worker, worker->turn + step);
        if (slot->state != IDLE) {
            finish_copy(worker->ring, slot);
            return 1;
        }
    }
    return 0;
}

static void copy_chunks(struct worker *worker) {
    struct ring *ring = worker->ring;
    while (!ring->stopped && !complete(ring)) {
        if (worker->number >= ring->active) {
            if (!finish_oldest(worker))
                pthread_cond_wait(&ring->parked, &ring->lock);
            continue;
        }
        if (!worker->prepared) {
            pthread_mutex_unlock(&ring->lock);
            prepare(worker);
            pthread_mutex_lock(&ring->lock);
            continue;
        }
        struct slot *slot = own_slot(worker, worker->turn);
        uint64_t began = now();
        if (slot->state != IDLE) {
            finish_copy(ring, slot);
        } else if (take_chunk(ring, slot)) {
            pthread_mutex_unlock(&ring->lock);
            int read = read_chunk(worker, slot);
            pthread_mutex_lock(&ring->lock);
            if (read)
                add_pending(ring, slot);
            else
                ring->outstanding--;
            worker->turn = (worker->turn + 1) % ring->slots_each;
            continue;
        } else if (!finish_oldest(worker)) {
            wait_for_change(ring);
        }
        atomic_fetch_add_explicit(&ring->waited, now() - began, memory_order_relaxed);
    }
    unpark(ring);
    while (finish_oldest(worker))  /* after a failure: nothing may write to the device any more */
        ;
}

static void *run_worker(void *argument) {
    struct ring *ring = argument;
    struct worker worker = {.ring = ring, .number = atomic_fetch_add(&ring->numbered, 1)};
    int code = ring->device.set_context ? ring->device.set_context(ring->device.context) : 0;
    pthread_mutex_lock(&ring->lock);
    if (code) {
        fail(ring, FAILED_DEVICE, code, -1, 0);
    } else if (worker.number < ring->active && !ring->stopped && !complete(ring)) {
        pthread_mutex_unlock(&ring->lock);
        prepare(&worker);
        pthread_mutex_lock(&ring->lock);
    }
    while (!ring->started && !ring->stopped)
        pthread_cond_wait(&ring->changed, &ring->lock);
    if (!ring->stopped) {
        worker.mappings = calloc(ring->files, sizeof *worker.mappings);
        worker.sizes = calloc(ring->files, sizeof *worker.sizes);
        if (worker.mappings && worker.sizes)
            copy_chunks(&worker);
        else
            fail(ring, FAILED_THREAD, ENOMEM, -1, 0);
    }
    ring->running--;
    announce(ring);
    pthread_cond_broadcast(&ring->progressed);
    pthread_mutex_unlock(&ring->lock);
    /* Letting go of the pages takes as long as a part of the copy; the caller has its tensors by now. munmap alone would
     * do it for one thread at a time, and hold up others that map memory: the caller's next copy, or the engine. */
    for (uint32_t file = 0; worker.mappings && file < ring->files; file++)
        if (worker.mappings[file])
            madvise(worker.mappings[file], worker.sizes[file], MADV_DONTNEED);
    for (uint32_t file = 0; worker.mappings && file < ring->files; file++)
        if (worker.mappings[file])
            munmap(worker.mappings[file], worker.sizes[file]);
    free(worker.mappings);
    free(worker.sizes);
    if (worker.pinned)
        ring->device.unpin(own_slot(&worker, 0)->address);
    return NULL;
}

/* The functions below are called from Python. */

int ring_abi(void) {
    return RING_ABI;
}

/* Functions of a device that is the machine's own memory, for tests, and of one that drops what is copied to it. */

int ring_host_copy(uint64_t target, const void *source, size_t length, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)target, source, length);
    return 0;
}

int ring_drop_copy(uint64_t target, const void *source, size_t length, void *stream) {
    (void)target, (void)source, (void)length, (void)stream;
    return 0;
}

int ring_host_copy_batch(uint64_t *targets, uint64_t *sources, size_t *lengths, size_t count,
                         struct attributes *attributes, size_t *attribute_indexes, size_t attribute_count,
                         size_t *failed, void *stream) {
    (void)attributes, (void)attribute_indexes, (void)attribute_count, (void)failed, (void)stream;
    for (size_t number = 0; number < count; number++)
        memcpy((void *)(uintptr_t)targets[number], (const void *)(uintptr_t)sources[number], lengths[number]);
    return 0;
}

int ring_host_record(void *event, void *stream) {
    (void)event, (void)stream;
    return 0;
}

int ring_host_query(void *event) {
    (void)event;
    return 0;
}

int ring_host_synchronize(void *event) {
    (void)event;
    return 0;
}

/* Creates a ring for `threads` threads with `slots_each` buffers of `slot_bytes` each: consecutive parts of `memory`.
 * `events` are as many, for batches of copies. Returns NULL without memory. */
struct ring *ring_create(const struct device *device, uint32_t threads, uint32_t slots_each, uint64_t slot_bytes,
                         char *memory, void *const *events, uint64_t piece_bytes, uint64_t spin_nanoseconds) {
    struct ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return NULL;
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&ring->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&ring->changed, NULL);
    pthread_cond_init(&ring->parked, NULL);
    pthread_cond_init(&ring->progressed, &clock);
    pthread_condattr_destroy(&clock);
    ring->device = *device;
    ring->slot_bytes = slot_bytes;
    ring->piece_bytes = piece_bytes;
    ring->spin_nanoseconds = spin_nanoseconds;
    ring->slots_each = slots_each;
    ring->handle_count = threads;
    ring->slots = calloc((size_t)threads * slots_each, sizeof *ring->slots);
    ring->events = calloc((size_t)threads * slots_each, sizeof *ring->events);
    ring->groups_end = &ring->groups;
    ring->pending_end = &ring->pending;
    ring->max_batch = device->copy_batch ? BATCH_SLOTS : 1;
    if (!ring->slots || !ring->events) {
        free(ring->slots);
        free(ring->events);
        free(ring);
        return NULL;
    }
    for (uint32_t slot = 0; slot < threads * slots_each; slot++) {
        ring->slots[slot].address = memory + slot * slot_bytes;
        ring->events[slot] = events[slot];
    }
    return ring;
}

/* Starts the threads, with the calling thread's affinity. The first `active` of them prepare their buffers and copy.
 * Returns how many run. */
uint32_t ring_start_threads(struct ring *ring, uint32_t active) {
    ring->handles = calloc(ring->handle_count, sizeof *ring->handles);
    pthread_mutex_lock(&ring->lock);
    ring->active = active;
    for (; ring->handles && ring->threads < ring->handle_count; ring->threads++) {
        ring->running++;
        if (pthread_create(&ring->handles[ring->threads], NULL, run_worker, ring)) {
            ring->running--;
            break;
        }
    }
    pthread_mutex_unlock(&ring->lock);
    return ring->threads;
}

/* Returns how many threads have prepared their buffers. */
uint32_t ring_prepared(struct ring *ring) {
    pthread_mutex_lock(&ring->lock);
    uint32_t prepared = ring->prepared;
    pthread_mutex_unlock(&ring->lock);
    return prepared;
}

/* Returns how many bytes of host memory were pinned. */
uint64_t ring_pinned(struct ring *ring) {
    pthread_mutex_lock(&ring->lock);
    uint64_t pinned = ring->pinned;
    pthread_mutex_unlock(&ring->lock);
    return pinned;
}

/* Lets the threads begin. `descriptors` must stay valid until ring_wait has returned 0. */
void ring_begin(struct ring *ring, const int *descriptors, uint32_t files) {
    pthread_mutex_lock(&ring->lock);
    ring->descriptors = descriptors;
    ring->files = files;
    ring->started = 1;
    announce(ring);
    pthread_mutex_unlock(&ring->lock);
}

/* Adds a group, with extents by ascending target. Returns 0, or ENOMEM. */
int ring_add_group(struct ring *ring, uint64_t base, const struct extent *extents, uint32_t count) {
    struct group *group = malloc(sizeof *group + count * sizeof *extents);
    if (!group)
        return ENOMEM;
    *group = (struct group){.base = base, .count = count};
    memcpy(group->extents, extents, count * sizeof *extents);
    for (uint32_t number = 0; number < count; number++)
        group->left += extents[number].length;
    pthread_mutex_lock(&ring->lock);
    *ring->groups_end = group;
    ring->groups_end = &group->next;
    if (!ring->next_group && count)
        ring->next_group = group;
    announce(ring);
    pthread_mutex_unlock(&ring->lock);
    return 0;
}

/* No group follows: the threads end when all are copied. */
void ring_finish(struct ring *ring) {
    pthread_mutex_lock(&ring->lock);
    ring->finished = 1;
    announce(ring);
    pthread_mutex_unlock(&ring->lock);
}

/* The threads end after their current chunks and copies. */
void ring_stop(struct ring *ring) {
    pthread_mutex_lock(&ring->lock);
    ring->stopped = 1;
    announce(ring);
    unpark(ring);
    pthread_mutex_unlock(&ring->lock);
}

/* Waits until the threads are done, the first `groups` groups are on the device (if not 0), one failed, or the time is
 * over. Returns the number of threads that run. */
uint32_t ring_wait(struct ring *ring, uint32_t groups, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t nanoseconds = (uint64_t)until.tv_nsec + (uint64_t)(seconds * 1e9);
    until.tv_sec += (time_t)(nanoseconds / 1000000000u);
    until.tv_nsec = (long)(nanoseconds % 1000000000u);
    pthread_mutex_lock(&ring->lock);
    while (ring->running) {
        if (groups) {
            uint32_t done = 0;
            for (const struct group *group = ring->groups; group && !group->left; group = group->next)
                done++;
            if (done >= groups || ring->stopped)
                break;
        }
        if (pthread_cond_timedwait(&ring->progressed, &ring->lock, &until))
            break;
    }
    uint32_t running = ring->running;
    pthread_mutex_unlock(&ring->lock);
    return running;
}

/* Returns the number of groups that are on the device, counted from the first. */
uint32_t ring_groups_done(struct ring *ring) {
    uint32_t done = 0;
    pthread_mutex_lock(&ring->lock);
    for (const struct group *group = ring->groups; group && !group->left; group = group->next)
        done++;
    pthread_mutex_unlock(&ring->lock);
    return done;
}

uint64_t ring_copied(struct ring *ring) {
    pthread_mutex_lock(&ring->lock);
    uint64_t copied = ring->copied;
    pthread_mutex_unlock(&ring->lock);
    return copied;
}

void ring_failure(struct ring *ring, struct failure *failure) {
    pthread_mutex_lock(&ring->lock);
    *failure = ring->failure;
    pthread_mutex_unlock(&ring->lock);
}

void ring_read_stats(struct ring *ring, struct read_stats *stats) {
    for (int way = 0; way < WAYS; way++) {
        stats->bytes[way] = atomic_load_explicit(&ring->way_bytes[way], memory_order_relaxed);
        stats->nanoseconds[way] = atomic_load_explicit(&ring->way_nanoseconds[way], memory_order_relaxed);
    }
    stats->waited = atomic_load_explicit(&ring->waited, memory_order_relaxed);
}

/* Sets how many threads copy; the others wait. */
void ring_set_active(struct ring *ring, uint32_t active) {
    pthread_mutex_lock(&ring->lock);
    ring->active = active;
    unpark(ring);
    pthread_mutex_unlock(&ring->lock);
}

/* Sets how many sixteenths of the pieces are copied from mappings. */
void ring_set_mapped_share(struct ring *ring, uint32_t share) {
    atomic_store_explicit(&ring->mapped_share, share, memory_order_relaxed);
}

/* Waits for the threads' end, including their unmapping, and frees the ring, but not its buffers. */
void ring_free(struct ring *ring) {
    for (uint32_t number = 0; number < ring->threads; number++)
        pthread_join(ring->handles[number], NULL);
    for (struct group *group = ring->groups, *next; group; group = next) {
        next = group->next;
        free(group);
    }
    pthread_mutex_destroy(&ring->lock);
    pthread_cond_destroy(&ring->changed);
    pthread_cond_destroy(&ring->parked);
    pthread_cond_destroy(&ring->progressed);
    free(ring->handles);
    free(ring->slots);
    free(ring->events);
    free(ring);
}
