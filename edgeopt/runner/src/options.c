#include "options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "threads.h"

// Longer than the gap between two kernels of a model, shorter than a scheduler's time slice: so
// threads sleep between inferences, and not within one.
enum { SPIN_US = 20 };

// More than any cache holds.
enum { MOST_COLD_BYTES = 1 << 30 };

static int64_t read_count(const char* option, const char* text, int64_t low, int64_t high) {
  char* end = NULL;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno != 0 || end == text || *end != 0 || value < low || value > high) {
    fail_usage("%s %s: expected a number from %lld to %lld", option, text, (long long)low,
               (long long)high);
  }
  return value;
}

static void add_input(Options* options, const char* path) {
  if (options->input_count == MAX_INPUTS) fail_usage("more than %d inputs", MAX_INPUTS);
  options->inputs[options->input_count++] = path;
}

static void read_option(Options* options, const char* name, const char* value) {
  const int64_t many = 1000000;
  if (strcmp(name, "--model") == 0) {
    options->model = value;
  } else if (strcmp(name, "--weights") == 0) {
    options->weights = value;
  } else if (strcmp(name, "--input") == 0) {
    add_input(options, value);
  } else if (strcmp(name, "--output") == 0) {
    options->output = value;
  } else if (strcmp(name, "--samples") == 0) {
    options->samples = read_count(name, value, 1, many);
  } else if (strcmp(name, "--warmup") == 0) {
    options->warmup = read_count(name, value, 0, many);
  } else if (strcmp(name, "--iterations") == 0) {
    options->iterations = read_count(name, value, 1, many);
  } else if (strcmp(name, "--threads") == 0) {
    options->threads = read_count(name, value, 1, MAX_THREADS);
  } else if (strcmp(name, "--core-part") == 0) {
    options->core_part = read_count(name, value, 0, 0xffff);
  } else if (strcmp(name, "--spin-us") == 0) {
    options->spin_us = read_count(name, value, 0, many);
  } else if (strcmp(name, "--energy-ms") == 0) {
    options->energy_ms = read_count(name, value, 0, many);
  } else if (strcmp(name, "--cold-bytes") == 0) {
    options->cold_bytes = read_count(name, value, 0, MOST_COLD_BYTES);
  } else {
    fail_usage("unknown option %s", name);
  }
}

Options read_options(int argc, char** argv) {
  Options options = {
      .samples = 1, .warmup = 1, .iterations = 10, .threads = 1, .spin_us = SPIN_US};
  for (int i = 1; i < argc; ++i) {
    if (strcmp(argv[i], "--version") == 0) {
      options.version = true;
    } else if (strcmp(argv[i], "--memory-only") == 0) {
      options.memory_only = true;
    } else if (strcmp(argv[i], "--count-instructions") == 0) {
      options.count_instructions = true;
    } else if (i + 1 == argc) {
      fail_usage("%s: an unknown option, or one that needs a value", argv[i]);
    } else {
      read_option(&options, argv[i], argv[i + 1]);
      ++i;
    }
  }
  if (options.output != NULL && options.iterations < options.samples) {
    fail_usage("--output needs at least as many --iterations as --samples");
  }
  return options;
}
