#include "process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "report.h"

static char text[8192];

Switches read_switches(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return (Switches){.voluntary = -1, .involuntary = -1};
  return (Switches){.voluntary = usage.ru_nvcsw, .involuntary = usage.ru_nivcsw};
}

// Field 22 of /proc/self/stat (proc(5)), in ticks since the boot. The name before may have spaces.
int64_t read_age(void) {
  struct timespec now;
  long ticks = sysconf(_SC_CLK_TCK);
  if (!read_text("/proc/self/stat", text, sizeof text) || ticks <= 0) return 0;
  const char* field = strrchr(text, ')');
  for (int number = 2; field != NULL && number < 22; ++number) {
    field = strchr(field + 1, ' ');
  }
  if (field == NULL || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
  int64_t begun = (int64_t)strtoll(field, NULL, 10) * (1000000000 / ticks);
  int64_t age = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - begun;
  return age > 0 ? age : 0;
}

void print_cpus(void) {
  const char* key = "\nCpus_allowed_list:\t";
  char list[256] = "";
  if (read_text("/proc/self/status", text, sizeof text)) {
    const char* line = strstr(text, key);
    if (line != NULL) sscanf(line + strlen(key), "%255[0-9,-]", list);
  }
  print_json_string(list);
}
