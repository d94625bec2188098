#include "threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>
#include <unistd.h>

#include "report.h"

// A parallel loop comes as a function that computes one slice of it: slice t of n is the
// iterations from ceil(E / n) * t on, where E is known to the function alone. So it is cut into
// more slices than there are threads, of one iteration each where E allows, and each thread takes
// the next one when it is done: nobody waits for a thread whose core is busy with something else.
//
// Every thread has a queue of its own, so that taking a slice is a counter in its own cache; who
// finds his empty takes from the others'. Slices are dealt like cards: with E below n the last
// ones are empty, and all threads have their share of these too.

enum {
  CACHE_LINE = 64,
  // Beyond one slice in 32 of a thread's share, what is lost to rounding is below 3 %.
  SLICES_PER_THREAD = 32,
  // Kernels keep less than 1 KiB per buffer on the stack; only pages that are touched count.
  STACK_BYTES = 256 * 1024,
  RELAXES_PER_LOOK = 32,
};

// Which job (32 bits), slices of this queue (16), slices taken from it (16). One word, so that
// taking a slice tells whose it is: a thread that comes late never touches what has ended.
typedef _Atomic uint64_t Ticket;

enum { COUNT_SHIFT = 16, JOB_SHIFT = 32, FIELD_MASK = 0xffff };

typedef struct {
  _Alignas(CACHE_LINE) Ticket ticket;
} Queue;

// One parallel loop. Whoever holds a slice of it may read it: it stays until all are done.
typedef struct {
  FTVMParallelLambda run;
  void* data;
  TVMParallelGroupEnv environment;
} Job;

typedef struct {
  Job job;
  int threads;
  int64_t spin_ns;
  Queue queues[MAX_THREADS];
  // Slices of this job that were computed.
  _Alignas(CACHE_LINE) _Atomic uint32_t done;
  // Whether the launching thread sleeps until they all are.
  _Atomic uint32_t launcher_sleeps;
  // The first error of a slice, as TVM's object.
  _Atomic(void*) error;
  // Jobs so far; workers sleep on it.
  _Alignas(CACHE_LINE) _Atomic uint32_t jobs;
  _Atomic uint32_t sleepers;
} Pool;

static Pool pool = {.threads = 1};

// Whether this thread computes a slice: a loop within runs on it alone.
static _Thread_local bool inside;

static void sleep_on(_Atomic uint32_t* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(_Atomic uint32_t* word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield" ::: "memory");
#endif
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// Wait a moment for the word to change from value; false when it did not.
static bool spin_on(_Atomic uint32_t* word, uint32_t value, int64_t limit_ns) {
  if (limit_ns == 0) return atomic_load_explicit(word, memory_order_acquire) != value;
  int64_t end = now_ns() + limit_ns;
  do {
    for (int i = 0; i < RELAXES_PER_LOOK; ++i) {
      if (atomic_load_explicit(word, memory_order_acquire) != value) return true;
      relax();
    }
  } while (now_ns() < end);
  return false;
}

static void keep_error(void) {
  TVMFFIObjectHandle error = NULL;
  void* none = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) return;
  if (!atomic_compare_exchange_strong(&pool.error, &none, error)) TVMFFIObjectDecRef(error);
}

// Compute what is left of a queue; returns how many slices that were.
static uint32_t empty_queue(int queue) {
  Ticket* ticket = &pool.queues[queue].ticket;
  uint32_t computed = 0;
  for (;;) {
    uint64_t seen = atomic_load_explicit(ticket, memory_order_relaxed);
    if ((seen & FIELD_MASK) >= ((seen >> COUNT_SHIFT) & FIELD_MASK)) return computed;
    seen = atomic_fetch_add_explicit(ticket, 1, memory_order_acquire);
    if ((seen & FIELD_MASK) >= ((seen >> COUNT_SHIFT) & FIELD_MASK)) return computed;
    int slice = queue + (int)(seen & FIELD_MASK) * pool.threads;
    if (pool.job.run(slice, &pool.job.environment, pool.job.data) != 0) keep_error();
    ++computed;
  }
}

// Compute slices until there is none to take, one's own first.
static void work(int thread) {
  uint32_t computed = 0;
  inside = true;
  for (int i = 0; i < pool.threads; ++i) computed += empty_queue((thread + i) % pool.threads);
  inside = false;
  if (computed == 0) return;
  uint32_t all = (uint32_t)pool.job.environment.num_task;
  // The count is read before it is added: after the last addition the job may be another one.
  uint32_t before = atomic_fetch_add(&pool.done, computed);
  if (before + computed == all && atomic_load(&pool.launcher_sleeps) != 0) wake(&pool.done, 1);
}

static void* run_worker(void* argument) {
  int thread = (int)(intptr_t)argument;
  uint32_t seen = 0;
  for (;;) {
    if (!spin_on(&pool.jobs, seen, pool.spin_ns)) {
      atomic_fetch_add(&pool.sleepers, 1);
      while (atomic_load(&pool.jobs) == seen) sleep_on(&pool.jobs, seen);
      atomic_fetch_sub(&pool.sleepers, 1);
    }
    seen = atomic_load_explicit(&pool.jobs, memory_order_acquire);
    work(thread);
  }
  return NULL;
}

void start_threads(int count, int64_t spin_ns) {
  pthread_attr_t attributes;
  pthread_t worker;
  pool.threads = count;
  pool.spin_ns = spin_ns;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  for (int i = 1; i < count; ++i) {
    int error = pthread_create(&worker, &attributes, run_worker, (void*)(intptr_t)i);
    if (error != 0) fail("cannot start thread %d of %d: %s", i + 1, count, strerror(error));
  }
  pthread_attr_destroy(&attributes);
}

static void deal(uint32_t job, int slices) {
  for (int i = 0; i < pool.threads; ++i) {
    uint64_t count = (uint64_t)((slices - i + pool.threads - 1) / pool.threads);
    atomic_store_explicit(&pool.queues[i].ticket, (uint64_t)job << JOB_SHIFT | count << COUNT_SHIFT,
                          memory_order_release);
  }
}

static void await_slices(uint32_t all) {
  for (;;) {
    uint32_t done = atomic_load_explicit(&pool.done, memory_order_acquire);
    if (done == all) return;
    if (spin_on(&pool.done, done, pool.spin_ns)) continue;
    atomic_store(&pool.launcher_sleeps, 1);
    while ((done = atomic_load(&pool.done)) != all) sleep_on(&pool.done, done);
    atomic_store(&pool.launcher_sleeps, 0);
    return;
  }
}

static int share(FTVMParallelLambda run, void* data, int slices) {
  uint32_t job = atomic_load_explicit(&pool.jobs, memory_order_relaxed) + 1;
  pool.job = (Job){.run = run, .data = data, .environment = {.num_task = slices}};
  atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
  deal(job, slices);
  atomic_store(&pool.jobs, job);
  if (atomic_load(&pool.sleepers) != 0) wake(&pool.jobs, INT_MAX);
  work(0);
  await_slices((uint32_t)slices);
  void* error = atomic_exchange(&pool.error, NULL);
  if (error == NULL) return 0;
  TVMFFIErrorSetRaised(error);
  TVMFFIObjectDecRef(error);
  return -1;
}

// Generated code leaves the number of slices to us: it always passes 0.
int TVMBackendParallelLaunch(FTVMParallelLambda run, void* data, int slices) {
  (void)slices;
  if (pool.threads > 1 && !inside) return share(run, data, pool.threads * SLICES_PER_THREAD);
  TVMParallelGroupEnv alone = {.sync_handle = NULL, .num_task = 1};
  return run(0, &alone, data);
}

// Slices of one loop do not run at the same time, so they cannot wait for one another.
int TVMBackendParallelBarrier(int slice, TVMParallelGroupEnv* environment) {
  (void)slice;
  if (environment->num_task == 1) return 0;
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "the model's code waits for all threads at once");
  return -1;
}
