#include "conditions.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "report.h"

enum { MAX_ZONES = 64 };

// Other zones are of the battery, of the radio, or constant (the PMIC of a Jetson).
static bool is_processor_zone(int zone) {
  char type[64];
  if (!read_sys_text(type, sizeof type, "class/thermal/thermal_zone%d/type", zone)) return false;
  return strcasestr(type, "cpu") != NULL || strcasestr(type, "soc") != NULL ||
         strcasestr(type, "pkg") != NULL;
}

static void read_temperature(Conditions* conditions) {
  for (int zone = 0; zone < MAX_ZONES; ++zone) {
    int64_t milli = 0;
    if (!is_processor_zone(zone)) continue;
    if (!read_sys_number(&milli, "class/thermal/thermal_zone%d/temp", zone)) continue;
    double celsius = (double)milli / 1000;
    if (!conditions->has_temperature || celsius > conditions->temperature_c) {
      conditions->temperature_c = celsius;
    }
    conditions->has_temperature = true;
  }
}

static void read_frequencies(Conditions* conditions) {
  long cpus = sysconf(_SC_NPROCESSORS_CONF);
  for (int cpu = 0; cpu < cpus && cpu < MAX_CPUS; ++cpu) {
    int64_t khz = 0;
    if (read_sys_number(&khz, "devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", cpu)) {
      conditions->frequency_khz[conditions->frequency_count++] = khz;
    }
  }
}

static void read_throttled(Conditions* conditions) {
  char text[64];
  char* end = NULL;
  // "soc/soc:firmware" up to the Raspberry Pi 4; the bus of the 5 has its address in its name.
  if (!read_sys_match(text, sizeof text, "devices/platform/soc*/soc*:firmware/get_throttled")) return;
  unsigned long long flags = strtoull(text, &end, 16);
  if (end == text) return;
  snprintf(conditions->throttled, sizeof conditions->throttled, "0x%llx", flags);
}

void read_conditions(Conditions* conditions) {
  memset(conditions, 0, sizeof *conditions);
  read_temperature(conditions);
  read_frequencies(conditions);
  read_throttled(conditions);
}

void print_conditions(const Conditions* conditions) {
  if (conditions->has_temperature) {
    printf("{\"temperature_c\": %.1f", conditions->temperature_c);
  } else {
    printf("{\"temperature_c\": null");
  }
  printf(", \"frequency_khz\": [");
  for (int i = 0; i < conditions->frequency_count; ++i) {
    printf("%s%" PRId64, i != 0 ? ", " : "", conditions->frequency_khz[i]);
  }
  printf("], \"throttled\": ");
  if (conditions->throttled[0] != 0) {
    print_json_string(conditions->throttled);
  } else {
    printf("null");
  }
  printf("}");
}
