// Runs a kernel: a block's threads are fibers, each of which goes on up to the next barrier before the next one does, so
// that what no barrier keeps apart comes in two orders that differ as much as can be. Blocks go one after another. The
// compiler's sanitizers ask here before each access to memory.

#include "emulated.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

const int MOST_THREADS = 1024, MOST_SHARED = 48 * 1024;
const int STACK = 64 * 1024 + 192;  // were they a power of two apart, few would fit into the processor's caches
const int NOTHING = 0xFF;           // a float or double of such bytes is no number
const int ENDED = 0, FAILED = -1;

struct Fiber {
    Place place;
    bool has_begun;
    int line;  // of the barrier that it waits at, or ENDED, or FAILED
    jmp_buf at;
};
Fiber fibers[MOST_THREADS], *current;
int threads, turn;
bool descending;
char *stacks, *stack;
jmp_buf scheduler;
char message[200];
void **arguments;

alignas(16) unsigned char dynamic[MOST_SHARED];
unsigned char *room() { return dynamic; }

// What threads may read and write beside their own stacks, and which of these one did last.
struct Range {
    const void *from, *to;
} ranges[64], *end, *last;

void begin() {
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    makecontext(&context, live, 0);
    setcontext(&context);
}

// It is the next thread's turn, and the scheduler's after the last. `swapcontext` would ask the system each time.
void pass_on() {
    if (turn == threads) _longjmp(scheduler, 1);
    int thread = descending ? threads - 1 - turn : turn;
    turn++;
    current = &fibers[thread];
    stack = stacks + (size_t)thread * STACK;
    threadIdx = current->place;
    if (current->has_begun) _longjmp(current->at, 1);
    current->has_begun = true;
    begin();
}

void stop(int line) {
    current->line = line;
    if (!_setjmp(current->at)) pass_on();
}

void fail(const char *what) {
    snprintf(message, sizeof message, "thread (%u, %u) of block (%u, %u, %u): %s", threadIdx.x, threadIdx.y, blockIdx.x,
             blockIdx.y, blockIdx.z, what);
    turn = threads;
    stop(FAILED);
}

bool is_within(const char *at, size_t bytes, const Range &range) { return at >= range.from && at + bytes <= range.to; }

void look_for(const char *at, size_t bytes, const char *fault) {
    for (last = ranges; last < end; last++)
        if (is_within(at, bytes, *last)) return;
    fail(fault);
}

// Sooner than it looks: it is asked millions of times.
inline void look_after(const void *given, size_t bytes, const char *fault) {
    const char *at = (const char *)given;
    if ((size_t)(at - stack) >= STACK && !is_within(at, bytes, *last)) look_for(at, bytes, fault);
}

// All threads, to the next barrier: whether it is the same, or the end, for all of them.
bool stay_together() {
    turn = 0;
    if (!_setjmp(scheduler)) pass_on();
    if (current->line == FAILED) return false;
    for (int thread = 1; thread < threads; thread++)
        if (fibers[thread].line != fibers[0].line) {
            snprintf(message, sizeof message, "block (%u, %u, %u): at a barrier, thread 0 is in line %d, and thread %d in "
                     "%d, where 0 is the end", blockIdx.x, blockIdx.y, blockIdx.z, fibers[0].line, thread,
                     fibers[thread].line);
            return false;
        }
    return true;
}

bool run_block(int shared_bytes) {
    memset(dynamic, NOTHING, shared_bytes);
    memset(__start_shared_memory, NOTHING, __stop_shared_memory - __start_shared_memory);
    do
        if (!stay_together()) return false;
    while (fibers[0].line != ENDED);
    return true;
}

bool run_blocks(int shared_bytes) {
    long long count = (long long)gridDim.x * gridDim.y * gridDim.z;
    for (long long number = 0; number < count; number++) {
        long long block = descending ? count - 1 - number : number;
        blockIdx.x = block % gridDim.x;
        blockIdx.y = block / gridDim.x % gridDim.y;
        blockIdx.z = block / gridDim.x / gridDim.y;
        if (!run_block(shared_bytes)) return false;
    }
    return true;
}

void allow(const void *from, const void *to) {
    end->from = from;
    end->to = to;
    end++;
}

void allow_all(const void *const *tensors, int shared_bytes) {
    end = last = ranges;
    allow(dynamic, dynamic + shared_bytes);
    allow(__start_shared_memory, __stop_shared_memory);
    allow(&threadIdx, &threadIdx + 1);
    allow(&blockIdx, &blockIdx + 1);
    allow(&blockDim, &blockDim + 1);
    allow(&gridDim, &gridDim + 1);
    for (; *tensors; tensors += 2) allow(tensors[0], tensors[1]);
}

bool run(int shared_bytes) {
    threads = blockDim.x * blockDim.y;
    for (unsigned thread = 0; thread < blockDim.x * blockDim.y; thread++) {
        fibers[thread].place = {thread % blockDim.x, thread / blockDim.x, 0};
        fibers[thread].has_begun = false;
    }
    stacks = (char *)malloc((size_t)threads * STACK);
    bool went_well = run_blocks(shared_bytes);
    free(stacks);
    return went_well;
}

}  // namespace emulated

// -fsanitize=bounds calls it ahead of an index beyond an array of known size.
extern "C" void __ubsan_handle_out_of_bounds(void *, void *) { emulated::fail("it goes beyond an array"); }

// -fsanitize=alignment calls it ahead of what a GPU ends the process for, such as four floats across two times 16 bytes.
extern "C" void __ubsan_handle_type_mismatch_v1(void *, void *) { emulated::fail("it is not aligned as its type is"); }

// -fsanitize=thread calls them ahead of each access but to what no other thread can know of.
#define ACCESS(name, fault)                                                              \
    extern "C" void __tsan_##name##1(void *at) { emulated::look_after(at, 1, fault); }   \
    extern "C" void __tsan_##name##2(void *at) { emulated::look_after(at, 2, fault); }   \
    extern "C" void __tsan_##name##4(void *at) { emulated::look_after(at, 4, fault); }   \
    extern "C" void __tsan_##name##8(void *at) { emulated::look_after(at, 8, fault); }   \
    extern "C" void __tsan_##name##16(void *at) { emulated::look_after(at, 16, fault); } \
    extern "C" void __tsan_##name##_range(void *at, size_t bytes) { emulated::look_after(at, bytes, fault); }
ACCESS(read, "it reads what it was not given")
ACCESS(write, "it writes where it was not given anything")
ACCESS(unaligned_read, "it reads what it was not given")
ACCESS(unaligned_write, "it writes where it was not given anything")
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void *) {}

extern "C" int emulated_static_bytes() { return __stop_shared_memory - __start_shared_memory; }

// What went wrong, or nothing. `tensors` are where each begins and ends, and nothing after the last.
extern "C" const char *emulated_launch(
    void **arguments, const void *const *tensors, const int *grid, const int *block, int shared_bytes, int descending
) {
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    blockDim = {(unsigned)block[0], (unsigned)block[1], 1};
    emulated::arguments = arguments;
    emulated::descending = descending;
    emulated::allow_all(tensors, shared_bytes);
    return emulated::run(shared_bytes) ? nullptr : emulated::message;
}
