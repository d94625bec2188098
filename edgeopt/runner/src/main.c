// edgeopt-run: runs a compiled model on the board and prints what it took as one JSON document.
//
//     edgeopt-run --model model.so --weights weights.bin --input ids.npy --output out \
//                 --samples 1 --warmup 1 --iterations 10 --threads 1
//
// Without --model it runs the model that is linked into it.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "caches.h"
#include "conditions.h"
#include "cpus.h"
#include "files.h"
#include "memory.h"
#include "meter.h"
#include "npy.h"
#include "options.h"
#include "power.h"
#include "process.h"
#include "report.h"
#include "threads.h"
#include "tiles.h"
#include "vm.h"
#include "weights.h"

typedef struct {
  Vm vm;
  NpyInput inputs[MAX_INPUTS];
  int input_count;
  // The inputs, then the weights: the parameters of the model's main function.
  TVMFFIAny* arguments;
  int argument_count;
  // Whether the inputs may still turn out to have a leading axis of one sample.
  bool axis_unknown;
} Session;

typedef struct {
  Memory start;
  Memory loaded;
  Memory end;
  Conditions before;
  Conditions after;
  Switches switches;
  int64_t start_ns;
  int64_t load_ns;
  int64_t first_ns;
  int64_t* warm_ns;
  int64_t* samples_ns;
  int64_t realtime_drift_ns;
  Sensor sensor;
  Drawn idle;
  Drawn load;
  // Inferences under load.
  int64_t loads;
  NpyOutput* outputs;
  int output_count;
} Result;

static void open_inputs(Session* session, const Options* options) {
  session->input_count = options->input_count;
  session->axis_unknown = options->samples == 1 && options->input_count > 0;
  for (int i = 0; i < options->input_count; ++i) {
    session->inputs[i] = open_input(options->inputs[i], options->samples);
    session->arguments[i] = view_memory(session->inputs[i].memory, &session->inputs[i].layout);
  }
}

static void load_session(Session* session, const Options* options) {
  Weights weights = {.tensors = NULL, .count = 0};
  session->vm = load_vm(options->model);
  allow_tiles(options->model);
  if (options->weights != NULL) weights = map_weights(options->weights);
  session->argument_count = options->input_count + weights.count;
  session->arguments = allocate((size_t)session->argument_count, sizeof(TVMFFIAny));
  if (weights.count != 0) {
    memcpy(session->arguments + options->input_count, weights.tensors,
           sizeof(TVMFFIAny) * (size_t)weights.count);
  }
}

static void read_inputs(Session* session, int64_t sample) {
  for (int i = 0; i < session->input_count; ++i) read_sample(&session->inputs[i], sample);
}

static bool run_once(const Session* session, TVMFFIAny* output, int64_t* duration_ns) {
  int64_t start = read_meter();
  bool done = run_vm(&session->vm, session->arguments, session->argument_count, output);
  *duration_ns = read_meter() - start;
  return done;
}

// A single sample may come with its sample axis or without. Only the model knows which, and it
// checks its arguments before it computes anything.
static bool drop_sample_axis(Session* session) {
  if (!session->axis_unknown) return false;
  session->axis_unknown = false;
  for (int i = 0; i < session->input_count; ++i) {
    if (!strip_sample_axis(&session->inputs[i])) return false;
    release(session->arguments[i]);
    session->arguments[i] = view_memory(session->inputs[i].memory, &session->inputs[i].layout);
  }
  return true;
}

static TVMFFIAny run_timed(Session* session, int64_t* duration_ns) {
  char reason[1536];
  TVMFFIAny output;
  if (run_once(session, &output, duration_ns)) return output;
  take_error(reason, sizeof reason);
  if (!drop_sample_axis(session) || !run_once(session, &output, duration_ns)) {
    fail("the model failed: %s", reason);
  }
  return output;
}

static void let_go(const Session* session, TVMFFIAny output) {
  release(output);
  forget_result(&session->vm);
}

static void keep_outputs(Result* result, const Options* options, int64_t sample,
                         const TVMFFIAny* value) {
  int count = count_outputs(value);
  if (sample == 0) {
    result->output_count = count;
    result->outputs = allocate((size_t)count, sizeof(NpyOutput));
  }
  if (count != result->output_count) fail("the number of outputs differs between samples");
  for (int i = 0; i < count; ++i) {
    const DLTensor* tensor = get_output(value, i);
    if (sample == 0) {
      Layout layout = read_layout(tensor);
      result->outputs[i] = create_output(options->output, i, options->samples, &layout);
    }
    append_sample(&result->outputs[i], tensor);
  }
}

static void warm_up(Session* session, const Options* options, Result* result) {
  result->warm_ns = allocate((size_t)options->warmup + 1, sizeof(int64_t));
  for (int64_t i = 0; i < options->warmup; ++i) {
    let_go(session, run_timed(session, &result->warm_ns[i]));
  }
  result->first_ns = result->warm_ns[0];
}

static void measure(Session* session, const Options* options, Result* result) {
  result->samples_ns = allocate((size_t)options->iterations, sizeof(int64_t));
  Switches before = read_switches();
  int64_t raw = read_clock(CLOCK_MONOTONIC_RAW);
  int64_t real = read_clock(CLOCK_REALTIME);
  for (int64_t i = 0; i < options->iterations; ++i) {
    drive_out(options->cold_bytes);
    // In a model the node before has just written them.
    if (options->samples > 1 || options->cold_bytes != 0) read_inputs(session, i % options->samples);
    TVMFFIAny output = run_timed(session, &result->samples_ns[i]);
    if (options->output != NULL && i < options->samples) {
      keep_outputs(result, options, i, &output);
    }
    let_go(session, output);
  }
  if (options->warmup == 0) result->first_ns = result->samples_ns[0];
  raw = read_clock(CLOCK_MONOTONIC_RAW) - raw;
  result->realtime_drift_ns = read_clock(CLOCK_REALTIME) - real - raw;
  result->switches = read_switches();
  result->switches.voluntary -= before.voluntary;
  result->switches.involuntary -= before.involuntary;
}

static void measure_idle(const Options* options, Result* result) {
  if (!find_sensor(&result->sensor) || options->energy_ms == 0) return;
  start_watch(&result->sensor);
  rest(options->energy_ms);
  result->idle = end_watch();
}

// Apart from the timed inferences, which a thread that reads a sensor would disturb.
static void measure_energy(Session* session, const Options* options, Result* result) {
  if (result->idle.readings == 0) return;
  start_watch(&result->sensor);
  int64_t until = read_clock(CLOCK_MONOTONIC_RAW) + options->energy_ms * 1000000;
  do {
    int64_t unused = 0;
    let_go(session, run_timed(session, &unused));
    ++result->loads;
  } while (read_clock(CLOCK_MONOTONIC_RAW) < until);
  result->load = end_watch();
}

static void print_energy(const Result* result) {
  printf("\"sensor\": ");
  if (result->sensor.name[0] != 0) {
    print_json_string(result->sensor.name);
  } else {
    printf("null");
  }
  printf(", \"energy\": ");
  if (result->load.readings == 0) {
    printf("null");
    return;
  }
  double idle_s = (double)result->idle.duration_ns / 1e9;
  printf("{\"idle_uw\": %.0f, \"drawn_uj\": %" PRId64 ", \"duration_ns\": %" PRId64
         ", \"inferences\": %" PRId64 ", \"readings\": %" PRId64 "}",
         (double)result->idle.drawn_uj / idle_s, result->load.drawn_uj, result->load.duration_ns,
         result->loads, result->load.readings);
}

static void print_memory(const Memory* start, const Memory* loaded, const Memory* end) {
  printf("\"memory\": {\"start\": %" PRId64 ", \"loaded\": %" PRId64 ", \"peak\": %" PRId64
         ", \"anonymous\": %" PRId64 ", \"file_backed\": %" PRId64 ", \"minor_faults\": %" PRId64
         ", \"major_faults\": %" PRId64 "}",
         start->resident, loaded->resident, end->peak, end->anonymous, end->file_backed,
         end->minor_faults, end->major_faults);
}

static void print_output(const NpyOutput* output, int64_t samples) {
  char type[16];
  name_type(output->layout.type, type);
  printf("{\"path\": ");
  print_json_string(output->path);
  printf(", \"dtype\": \"%s\", \"shape\": [%" PRId64, type, samples);
  for (int i = 0; i < output->layout.rank; ++i) printf(", %" PRId64, output->layout.shape[i]);
  printf("]}");
}

static void print_head(void) {
  printf("{\"schema_version\": 1, \"program\": \"edgeopt-run\", \"version\": \"%s\", ",
         EDGEOPT_VERSION);
}

static void print_durations(const int64_t* durations, int64_t count) {
  for (int64_t i = 0; i < count; ++i) printf("%s%" PRId64, i != 0 ? ", " : "", durations[i]);
}

static void print_result(const Options* options, const Result* result) {
  print_head();
  printf("\"clock\": \"%s\", \"threads\": %" PRId64 ", \"start_ns\": %" PRId64
         ", \"load_ns\": %" PRId64 ", \"first_ns\": %" PRId64 ", \"warm_ns\": [",
         counts_instructions() ? "INSTRUCTIONS" : "CLOCK_MONOTONIC_RAW", options->threads,
         result->start_ns, result->load_ns, result->first_ns);
  print_durations(result->warm_ns, options->warmup);
  printf("], \"samples_ns\": [");
  print_durations(result->samples_ns, options->iterations);
  printf("], \"realtime_drift_ns\": %" PRId64 ", \"process\": {\"cpus\": ",
         result->realtime_drift_ns);
  print_cpus();
  printf(", \"voluntary\": %" PRId64 ", \"involuntary\": %" PRId64 "}, ",
         result->switches.voluntary, result->switches.involuntary);
  print_memory(&result->start, &result->loaded, &result->end);
  printf(", \"before\": ");
  print_conditions(&result->before);
  printf(", \"after\": ");
  print_conditions(&result->after);
  printf(", ");
  print_energy(result);
  printf(", \"outputs\": [");
  for (int i = 0; i < result->output_count; ++i) {
    if (i != 0) printf(", ");
    print_output(&result->outputs[i], options->samples);
  }
  printf("]}\n");
}

static void answer_without_model(const Options* options) {
  Memory memory = read_memory();
  print_head();
  printf("\"tvm\": \"%s\"", EDGEOPT_TVM_VERSION);
  if (options->memory_only) {
    printf(", ");
    print_memory(&memory, &memory, &memory);
  }
  printf("}\n");
}

static void run_model(const Options* options) {
  static Session session;
  static Result result;
  result.start_ns = read_age();
  result.start = read_memory();
  measure_idle(options, &result);
  int64_t start = read_meter();
  load_session(&session, options);
  result.load_ns = read_meter() - start;
  result.loaded = read_memory();
  open_inputs(&session, options);
  if (options->output != NULL) create_folder(options->output);
  read_inputs(&session, 0);
  read_conditions(&result.before);
  warm_up(&session, options, &result);
  measure(&session, options, &result);
  read_conditions(&result.after);
  result.end = read_memory();
  measure_energy(&session, options, &result);
  print_result(options, &result);
}

int main(int argc, char** argv) {
  Options options = read_options(argc, argv);
  if (options.count_instructions) count_instructions();
  // One thread runs anywhere, unless it is told where.
  if (options.threads > 1 || options.core_part != 0) {
    options.threads = choose_cpus((int)options.threads, options.core_part);
  }
  start_threads((int)options.threads, options.spin_us * 1000);
  if (options.version || options.memory_only) {
    answer_without_model(&options);
  } else {
    run_model(&options);
  }
  finish(0);
}
