#include "cpus.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"

// Read number by number, because with 64 cores the file is longer than read_text takes at once.
static void read_parts(int64_t* parts) {
  char line[256];
  int cpu = -1;
  FILE* file = fopen("/proc/cpuinfo", "re");
  if (file == NULL) return;
  while (fgets(line, sizeof line, file) != NULL) {
    const char* value = strchr(line, ':');
    if (value == NULL) continue;
    if (strncmp(line, "processor", 9) == 0) cpu = atoi(value + 1);
    if (strncmp(line, "CPU part", 8) == 0 && cpu >= 0 && cpu < CPU_SETSIZE) {
      parts[cpu] = strtoll(value + 1, NULL, 16);
    }
  }
  fclose(file);
}

// How fast a core is beside the others: the kernel's own estimate (arm64, and x86 with two kinds
// of cores), else its highest clock, which says nothing across kinds but is all there is.
static int64_t read_speed(int cpu) {
  static const char* const files[] = {"cpu_capacity", "cpufreq/cpuinfo_max_freq"};
  int64_t speed = 0;
  for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
    if (read_sys_number(&speed, "devices/system/cpu/cpu%d/%s", cpu, files[i])) return speed;
  }
  return 0;
}

static bool select_part(const cpu_set_t* allowed, int64_t part, cpu_set_t* chosen) {
  static int64_t parts[CPU_SETSIZE];
  CPU_ZERO(chosen);
  if (part == 0) return false;
  read_parts(parts);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, allowed) && parts[cpu] == part) CPU_SET(cpu, chosen);
  }
  return CPU_COUNT(chosen) != 0;
}

// The fastest cores, and slower ones only while there are less of them than wanted.
static void select_fastest(const cpu_set_t* allowed, int wanted, cpu_set_t* chosen) {
  static int64_t speeds[CPU_SETSIZE];
  CPU_ZERO(chosen);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    speeds[cpu] = CPU_ISSET(cpu, allowed) ? read_speed(cpu) : -1;
  }
  while (CPU_COUNT(chosen) < wanted) {
    int64_t best = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (speeds[cpu] > best) best = speeds[cpu];
    }
    if (best < 0) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (speeds[cpu] != best) continue;
      CPU_SET(cpu, chosen);
      speeds[cpu] = -1;
    }
  }
}

// A container's share of time, in whole cores: more threads than that would be stopped in turn.
static int read_quota(int wanted) {
  char text[64];
  int64_t quota = -1;
  int64_t period = 0;
  // cgroup 2, then 1; both seen from inside of the container.
  if (read_sys_text(text, sizeof text, "fs/cgroup/cpu.max")) {
    char* end = text;
    quota = strtoll(text, &end, 10);
    if (end == text) return wanted;
    period = strtoll(end, NULL, 10);
  } else if (!read_sys_number(&quota, "fs/cgroup/cpu/cpu.cfs_quota_us") ||
             !read_sys_number(&period, "fs/cgroup/cpu/cpu.cfs_period_us")) {
    return wanted;
  }
  if (quota <= 0 || period <= 0) return wanted;
  int64_t cores = (quota + period - 1) / period;
  return cores < wanted ? (int)cores : wanted;
}

int choose_cpus(int wanted, int64_t part) {
  cpu_set_t allowed;
  cpu_set_t chosen;
  wanted = read_quota(wanted);
  // What is offline or outside of our cpuset is not in it.
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return wanted;
  if (!select_part(&allowed, part, &chosen)) select_fastest(&allowed, wanted, &chosen);
  int count = CPU_COUNT(&chosen);
  if (count == 0) return 1;
  // The scheduler may move threads among these: one of them may be busy with something else.
  if (!CPU_EQUAL(&chosen, &allowed)) sched_setaffinity(0, sizeof chosen, &chosen);
  return count < wanted ? count : wanted;
}
