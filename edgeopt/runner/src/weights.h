// The weights file: mapped, never copied.
//
// "EDGEWT2\0", u64 count, then one record of 112 bytes per tensor, then the data. Little endian,
// as every target is. The tensors are the trailing parameters of the model's main function.
#ifndef EDGEOPT_WEIGHTS_H_
#define EDGEOPT_WEIGHTS_H_

#include <tvm/ffi/c_api.h>

typedef struct {
  TVMFFIAny* tensors;
  int count;
} Weights;

// Map a weights file; anything that is not just what the format says is an error.
Weights map_weights(const char* path);

#endif
