// The threads that share a kernel's loops, in place of TVM's own pool.
#ifndef EDGEOPT_THREADS_H_
#define EDGEOPT_THREADS_H_

#include <stdint.h>

// As many as a kernel can be shared among; more cores than any board has.
enum { MAX_THREADS = 64 };

// Create count - 1 workers, which inherit the caller's CPUs. At most once, before any model runs.
//
// spin_ns: how long a thread that waits keeps its core before it sleeps.
void start_threads(int count, int64_t spin_ns);

#endif
