// What the kernel says of this process's memory.
#ifndef EDGEOPT_MEMORY_H_
#define EDGEOPT_MEMORY_H_

#include <stdint.h>

// Bytes, but for the faults; -1 where the kernel does not tell.
typedef struct {
  int64_t resident;
  int64_t peak;
  // Cannot be evicted.
  int64_t anonymous;
  // Can be evicted and read again: code and mapped weights.
  int64_t file_backed;
  int64_t minor_faults;
  int64_t major_faults;
} Memory;

Memory read_memory(void);

#endif
