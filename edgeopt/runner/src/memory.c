#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "files.h"

// A line is "VmHWM:\t    4096 kB", where kB is 1024 bytes.
static int64_t find_bytes(const char* status, const char* key) {
  const char* line = strstr(status, key);
  return line != NULL ? (int64_t)strtoll(line + strlen(key), NULL, 10) * 1024 : -1;
}

// Larger than either file ever is; static, so that looking does not grow what is looked at.
static char text[8192];

static int64_t at_least(int64_t figure, int64_t other) { return figure > other ? figure : other; }

Memory read_memory(void) {
  struct rusage usage;
  if (!read_text("/proc/self/status", text, sizeof text)) text[0] = 0;
  Memory memory = {
      .resident = find_bytes(text, "\nVmRSS:"),
      .peak = find_bytes(text, "\nVmHWM:"),
      .anonymous = find_bytes(text, "\nRssAnon:"),
      .file_backed = find_bytes(text, "\nRssFile:"),
      .minor_faults = -1,
      .major_faults = -1,
  };
  // Those figures are counters that a thread settles every 64 faults (Linux before 6.2,
  // TASK_RSS_EVENTS_THRESH), and one fault maps up to 16 pages of a file: they may lack 4 MB.
  // This one walks the page tables, and mapped weights stay: their peak is at the end.
  if (read_text("/proc/self/smaps_rollup", text, sizeof text)) {
    memory.resident = find_bytes(text, "\nRss:");
    memory.anonymous = find_bytes(text, "\nAnonymous:");
    memory.file_backed = memory.resident - memory.anonymous;
    memory.peak = at_least(memory.peak, memory.resident);
  }
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    memory.minor_faults = usage.ru_minflt;
    memory.major_faults = usage.ru_majflt;
  }
  return memory;
}
