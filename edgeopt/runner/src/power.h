// What the board draws, by a sensor on it: nothing here is estimated.
#ifndef EDGEOPT_POWER_H_
#define EDGEOPT_POWER_H_

#include <stdbool.h>
#include <stdint.h>

typedef struct {
  // Chip and rail, as "ina3221 VDD_IN"; empty where the board has no sensor.
  char name[97];
  int chip;
  int channel;
} Sensor;

// Energy that passed the sensor between two moments, by the trapezoidal rule over its readings.
typedef struct {
  int64_t duration_ns;
  int64_t drawn_uj;
  // 0 when the sensor did not answer all along.
  int64_t readings;
} Drawn;

// Of a chip that measures a supply, the rail that draws most now: the others are parts of it.
bool find_sensor(Sensor* sensor);

// Read the sensor ten times a second from now on, in a thread of its own; one watch at a time.
void start_watch(const Sensor* sensor);
Drawn end_watch(void);

// Do nothing for so long.
void rest(int64_t milliseconds);

#endif
