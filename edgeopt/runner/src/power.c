#include "power.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "files.h"
#include "meter.h"
#include "report.h"

// Names and units of files: Documentation/hwmon/sysfs-interface.rst of Linux. A chip of Texas
// Instruments' INA series, or a meter that ACPI knows, is wired to a supply; other chips tell what
// a graphics card or a regulator takes.
enum { MAX_CHIPS = 64, MAX_CHANNELS = 8, READINGS_PER_SECOND = 10 };

typedef struct {
  const Sensor* sensor;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t ended;
  bool over;
  int64_t first_ns;
  int64_t last_ns;
  int64_t last_uw;
  // Microwatts times nanoseconds.
  double drawn;
  int64_t readings;
  bool failed;
} Watch;

static Watch watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool measures_supply(int chip) {
  char name[64];
  if (!read_sys_text(name, sizeof name, "class/hwmon/hwmon%d/name", chip)) return false;
  return strncmp(name, "ina", 3) == 0 || strncmp(name, "power_meter", 11) == 0;
}

// In microwatts: as the chip says, else millivolts times milliamperes.
static bool read_channel(int chip, int channel, int64_t* power) {
  int64_t voltage = 0;
  int64_t current = 0;
  if (read_sys_number(power, "class/hwmon/hwmon%d/power%d_input", chip, channel)) return true;
  if (read_sys_number(power, "class/hwmon/hwmon%d/power%d_average", chip, channel)) return true;
  if (!read_sys_number(&voltage, "class/hwmon/hwmon%d/in%d_input", chip, channel)) return false;
  if (!read_sys_number(&current, "class/hwmon/hwmon%d/curr%d_input", chip, channel)) return false;
  *power = voltage * current;
  return true;
}

static void name_sensor(Sensor* sensor) {
  char chip[48] = "";
  char label[48] = "";
  read_sys_text(chip, sizeof chip, "class/hwmon/hwmon%d/name", sensor->chip);
  if (!read_sys_text(label, sizeof label, "class/hwmon/hwmon%d/power%d_label", sensor->chip,
                     sensor->channel)) {
    read_sys_text(label, sizeof label, "class/hwmon/hwmon%d/in%d_label", sensor->chip,
                  sensor->channel);
  }
  chip[strcspn(chip, "\n")] = 0;
  label[strcspn(label, "\n")] = 0;
  snprintf(sensor->name, sizeof sensor->name, "%s%s%s", chip, label[0] != 0 ? " " : "", label);
  for (char* c = sensor->name; *c != 0; ++c) {
    if (*c < ' ' || *c > '~') *c = '?';
  }
}

bool find_sensor(Sensor* sensor) {
  int64_t most = 0;
  memset(sensor, 0, sizeof *sensor);
  for (int chip = 0; chip < MAX_CHIPS; ++chip) {
    if (!measures_supply(chip)) continue;
    for (int channel = 1; channel <= MAX_CHANNELS; ++channel) {
      int64_t power = 0;
      if (!read_channel(chip, channel, &power) || power <= most) continue;
      most = power;
      sensor->chip = chip;
      sensor->channel = channel;
    }
  }
  if (most > 0) name_sensor(sensor);
  return most > 0;
}

static void take_reading(void) {
  int64_t power = 0;
  if (!read_channel(watch.sensor->chip, watch.sensor->channel, &power) || power < 0) {
    watch.failed = true;
    return;
  }
  int64_t now = read_clock(CLOCK_MONOTONIC_RAW);
  if (watch.readings == 0) {
    watch.first_ns = now;
  } else {
    watch.drawn += (double)(power + watch.last_uw) / 2 * (double)(now - watch.last_ns);
  }
  watch.last_ns = now;
  watch.last_uw = power;
  ++watch.readings;
}

static void* keep_watch(void* unused) {
  (void)unused;
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  pthread_mutex_lock(&watch.lock);
  while (!watch.over) {
    next.tv_nsec += 1000000000 / READINGS_PER_SECOND;
    if (next.tv_nsec >= 1000000000) {
      next.tv_nsec -= 1000000000;
      ++next.tv_sec;
    }
    while (!watch.over && pthread_cond_timedwait(&watch.ended, &watch.lock, &next) == 0) continue;
    if (!watch.over) take_reading();
  }
  pthread_mutex_unlock(&watch.lock);
  return NULL;
}

void start_watch(const Sensor* sensor) {
  pthread_condattr_t monotonic;
  watch.sensor = sensor;
  watch.over = false;
  watch.failed = false;
  watch.readings = 0;
  watch.drawn = 0;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&watch.ended, &monotonic);
  pthread_condattr_destroy(&monotonic);
  take_reading();
  if (pthread_create(&watch.thread, NULL, keep_watch, NULL) != 0) {
    fail("the power sensor cannot be watched: no thread");
  }
}

Drawn end_watch(void) {
  pthread_mutex_lock(&watch.lock);
  watch.over = true;
  take_reading();
  pthread_cond_signal(&watch.ended);
  pthread_mutex_unlock(&watch.lock);
  pthread_join(watch.thread, NULL);
  pthread_cond_destroy(&watch.ended);
  return (Drawn){
      .duration_ns = watch.last_ns - watch.first_ns,
      .drawn_uj = (int64_t)(watch.drawn / 1e9 + 0.5),
      .readings = watch.failed ? 0 : watch.readings,
  };
}

void rest(int64_t milliseconds) {
  struct timespec left = {.tv_sec = milliseconds / 1000,
                          .tv_nsec = milliseconds % 1000 * 1000000};
  while (nanosleep(&left, &left) != 0) continue;
}
