// What the kernel says of how this process was scheduled.
#ifndef EDGEOPT_PROCESS_H_
#define EDGEOPT_PROCESS_H_

#include <stdint.h>

typedef struct {
  // Gave the processor up, to wait for something.
  int64_t voluntary;
  // Lost it to another program.
  int64_t involuntary;
} Switches;

// Of all threads since the start; -1 where the kernel does not tell.
Switches read_switches(void);

// Time since the kernel made this process, in ns; as exact as a tick of the kernel's (10 ms).
int64_t read_age(void);

// Print the CPUs that this process may run on as a JSON string: "0-3"; "" where unknown.
void print_cpus(void);

#endif
