// NumPy's .npy files: inputs are read one sample at a time, outputs written as they come, so
// that neither counts in the memory that is measured.
#ifndef EDGEOPT_NPY_H_
#define EDGEOPT_NPY_H_

#include <stdbool.h>
#include <stdint.h>

#include "tensor.h"

// An open input. The layout is that of one sample.
typedef struct {
  const char* path;
  int file;
  uint64_t data_offset;
  uint64_t sample_bytes;
  Layout layout;
  void* memory;
} NpyInput;

// Open an input. With samples > 1 its leading axis must have just that length.
NpyInput open_input(const char* path, int64_t samples);

// Take a leading axis of length one away; false when there is none.
bool strip_sample_axis(NpyInput* input);

// Read one sample into input->memory.
void read_sample(NpyInput* input, int64_t sample);

// An output file that grows by one sample at a time. The layout is that of one sample.
typedef struct {
  char* path;
  int file;
  uint64_t sample_bytes;
  Layout layout;
} NpyOutput;

// Make the folder of the outputs, unless it is there.
void create_folder(const char* folder);

// Create FOLDER/INDEX.npy, for samples of layout stacked along a new leading axis.
NpyOutput create_output(const char* folder, int index, int64_t samples, const Layout* layout);

// Append one sample; fails when its layout differs from the first one's.
void append_sample(const NpyOutput* output, const DLTensor* tensor);

// NumPy's name of an element type ("float32") into name, which holds at least 16 bytes.
void name_type(DLDataType type, char* name);

#endif
