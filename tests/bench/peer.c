/* Runs one ONNX model with onnxruntime's C API, whose table of functions only ever grows: the places
   below are those of its header onnxruntime_c_api.h, which the wheels do not carry.

   ort LIBRARY MODEL UNIT WARMUP ROUNDS OUTPUT,OUTPUT,... NAME=DTYPE:FILE:DIMS ...
   prints the ns of every timed run, or the instructions it executes, and VmHWM in kB. UNIT is ns or
   instructions. DTYPE is ONNX's number, DIMS is 1x128. */
#include <dlfcn.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  GET_ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION = 7,
  RUN = 9,
  CREATE_SESSION_OPTIONS = 10,
  SET_OPTIMIZATION_LEVEL = 23,
  SET_INTRA_OP_NUM_THREADS = 24,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_VALUE = 96,
};
enum { LOGGING_ERROR = 3, ENABLE_ALL = 99, ARENA_ALLOCATOR = 1, MEM_TYPE_DEFAULT = 0 };

typedef struct {
  void **(*get_api)(uint32_t version);
  const char *(*version)(void);
} ApiBase;

static void **api;

static void check(void *status) {
  if (status == NULL) return;
  const char *(*message)(void *) = (const char *(*)(void *))api[GET_ERROR_MESSAGE];
  fprintf(stderr, "%s\n", message(status));
  exit(1);
}

/* Every function but two returns a status; the casts give each call its own signature. */
#define CALL(place, signature, ...) check(((void *(*)signature)api[place])(__VA_ARGS__))

static void *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    exit(1);
  }
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  void *data = aligned_alloc(64, (*size + 64) & ~(size_t)63);
  if (data == NULL || fread(data, 1, *size, file) != *size) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(1);
  }
  fclose(file);
  return data;
}

static void *make_input(char *text, void *memory) {
  int type = atoi(strtok(text, ":"));
  size_t size, rank = 0;
  void *data = read_file(strtok(NULL, ":"), &size);
  int64_t shape[8];
  for (char *each = strtok(NULL, "x"); each != NULL && rank < 8; each = strtok(NULL, "x"))
    shape[rank++] = atoll(each);
  void *value = NULL;
  CALL(CREATE_TENSOR_WITH_DATA, (void *, void *, size_t, const int64_t *, size_t, int, void **),
       memory, data, size, shape, rank, type, &value);
  return value;
}

static void open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  ApiBase *(*base)(void) = library ? (ApiBase * (*)(void)) dlsym(library, "OrtGetApiBase") : NULL;
  if (base == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  api = base()->get_api(1);
}

static void *open_session(const char *path) {
  void *environment, *options, *session;
  CALL(CREATE_ENV, (int, const char *, void **), LOGGING_ERROR, "bench", &environment);
  CALL(CREATE_SESSION_OPTIONS, (void **), &options);
  CALL(SET_INTRA_OP_NUM_THREADS, (void *, int), options, 1);
  CALL(SET_OPTIMIZATION_LEVEL, (void *, int), options, ENABLE_ALL);
  CALL(CREATE_SESSION, (void *, const char *, void *, void **), environment, path, options,
       &session);
  return session;
}

/* Without the kernel's, as the device program counts. */
static int open_counter(void) {
  struct perf_event_attr what = {
      .type = PERF_TYPE_HARDWARE, .size = sizeof what, .config = PERF_COUNT_HW_INSTRUCTIONS,
      .exclude_kernel = 1, .exclude_hv = 1, .inherit = 1};
  int counter = (int)syscall(SYS_perf_event_open, &what, 0, -1, -1, 0UL);
  if (counter < 0) {
    perror("perf_event_open");
    exit(1);
  }
  return counter;
}

static long long read_meter(int counter) {
  uint64_t count = 0;
  struct timespec now;
  if (counter >= 0) return read(counter, &count, sizeof count) == sizeof count ? (long long)count : 0;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void print_peak(void) {
  char line[256];
  FILE *status = fopen("/proc/self/status", "r");
  while (status != NULL && fgets(line, sizeof line, status) != NULL)
    if (strncmp(line, "VmHWM:", 6) == 0) printf("kb %s", line + 6);
}

int main(int argc, char **argv) {
  enum { MOST = 16, FIRST = 7 };
  if (argc <= FIRST || argc - FIRST > MOST) return 2;
  int counter = strcmp(argv[3], "instructions") == 0 ? open_counter() : -1;
  open_library(argv[1]);
  void *session = open_session(argv[2]), *memory, *values[MOST];
  CALL(CREATE_CPU_MEMORY_INFO, (int, int, void **), ARENA_ALLOCATOR, MEM_TYPE_DEFAULT, &memory);
  const char *inputs[MOST], *outputs[MOST];
  size_t wanted = 0, given = 0;
  for (char *each = strtok(argv[6], ","); each && wanted < MOST; each = strtok(NULL, ","))
    outputs[wanted++] = each;
  for (; (int)given < argc - FIRST; given++) {
    char *equals = strrchr(argv[FIRST + given], '=');
    if (equals == NULL) return 2;
    *equals = 0;
    inputs[given] = argv[FIRST + given];
    values[given] = make_input(equals + 1, memory);
  }
  int warmup = atoi(argv[4]), rounds = atoi(argv[5]);
  for (int round = 0; round < warmup + rounds; round++) {
    void *found[MOST] = {0};
    long long from = read_meter(counter);
    CALL(RUN, (void *, void *, const char **, void **, size_t, const char **, size_t, void **),
         session, NULL, inputs, values, given, outputs, wanted, found);
    if (round >= warmup) printf("ns %lld\n", read_meter(counter) - from);
    for (size_t index = 0; index < wanted; index++)
      ((void (*)(void *))api[RELEASE_VALUE])(found[index]);
  }
  print_peak();
  return 0;
}
