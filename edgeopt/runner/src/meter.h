// What an inference takes: time, or the instructions that the program executes itself.
#ifndef EDGEOPT_METER_H_
#define EDGEOPT_METER_H_

#include <stdbool.h>
#include <stdint.h>

// Count instructions from now on, those of threads that start later included, and no time. The
// kernel's are left out: page faults and timers are not the model's, and differ between runs.
void count_instructions(void);

bool counts_instructions(void);

// Nanoseconds of CLOCK_MONOTONIC_RAW, or instructions; only differences mean anything.
int64_t read_meter(void);

int64_t read_clock(int clock);

#endif
