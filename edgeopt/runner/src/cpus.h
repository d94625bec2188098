// Which of the machine's cores a model runs on.
#ifndef EDGEOPT_CPUS_H_
#define EDGEOPT_CPUS_H_

#include <stdint.h>

// Bind this thread, and those that it starts, to the cores that a model is for, and return how
// many threads have a core to themselves there: at most wanted, at least one.
//
// part: the cores' part number as /proc/cpuinfo tells it on ARM (0xd0b), 0 for the fastest. A
// board that does not have such cores, or does not let us have them, gives what it has.
int choose_cpus(int wanted, int64_t part);

#endif
