// The state of the board that explains a latency.
#ifndef EDGEOPT_CONDITIONS_H_
#define EDGEOPT_CONDITIONS_H_

#include <stdbool.h>
#include <stdint.h>

enum { MAX_CPUS = 256 };

typedef struct {
  bool has_temperature;
  double temperature_c;
  // Of each CPU that tells, in the order of their numbers.
  int64_t frequency_khz[MAX_CPUS];
  int frequency_count;
  // Raspberry Pi's firmware flags as "0x50005"; empty elsewhere.
  char throttled[24];
} Conditions;

void read_conditions(Conditions* conditions);

// Print as a JSON object; what could not be read is null.
void print_conditions(const Conditions* conditions);

#endif
