#include "meter.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "report.h"

static int counter = -1;

// perf_event_open(2). QEMU's Arm cores retire exactly what they execute where -icount is on.
void count_instructions(void) {
  struct perf_event_attr what;
  memset(&what, 0, sizeof what);
  what.type = PERF_TYPE_HARDWARE;
  what.size = sizeof what;
  what.config = PERF_COUNT_HW_INSTRUCTIONS;
  what.exclude_kernel = 1;
  what.exclude_hv = 1;
  what.inherit = 1;
  counter = (int)syscall(SYS_perf_event_open, &what, 0, -1, -1, 0UL);
  if (counter < 0) fail("instructions cannot be counted here: %s", strerror(errno));
}

bool counts_instructions(void) { return counter >= 0; }

int64_t read_clock(int clock) {
  struct timespec now;
  if (clock_gettime((clockid_t)clock, &now) != 0) fail("the clock does not answer");
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t read_meter(void) {
  // RAW: no adjustment by NTP, so that a nanosecond is one and the same all along.
  if (counter < 0) return read_clock(CLOCK_MONOTONIC_RAW);
  uint64_t count = 0;
  if (read(counter, &count, sizeof count) != sizeof count) fail("the counter does not answer");
  return (int64_t)count;
}
