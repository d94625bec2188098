// The command line.
#ifndef EDGEOPT_OPTIONS_H_
#define EDGEOPT_OPTIONS_H_

#include <stdbool.h>
#include <stdint.h>

enum { MAX_INPUTS = 64 };

typedef struct {
  // NULL: the model is linked into this program (TVM's system library).
  const char* model;
  // NULL: the model has no lifted weights.
  const char* weights;
  const char* inputs[MAX_INPUTS];
  int input_count;
  // NULL: outputs are thrown away.
  const char* output;
  int64_t samples;
  int64_t warmup;
  int64_t iterations;
  int64_t threads;
  // The cores to run on, as /proc/cpuinfo names them on ARM; 0: the fastest.
  int64_t core_part;
  // How long a thread that waits for work keeps its core before it sleeps.
  int64_t spin_us;
  // How long to rest, and then to run without a pause, under the board's power sensor; 0: not.
  int64_t energy_ms;
  // Bytes of other memory that are read before each timed inference; 0: the caches stay as they are.
  int64_t cold_bytes;
  // Instructions take the place of nanoseconds.
  bool count_instructions;
  // Load TVM's runtime, print the memory that it takes, run nothing.
  bool memory_only;
  bool version;
} Options;

// Read the command line; anything unknown or out of range ends the process with STATUS_USAGE.
Options read_options(int argc, char** argv);

#endif
