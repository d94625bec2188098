// Element types, shapes and sizes, and TVM tensors over memory that we own.
#ifndef EDGEOPT_TENSOR_H_
#define EDGEOPT_TENSOR_H_

#include <stdbool.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum { MAX_RANK = 8 };

typedef struct {
  DLDataType type;
  int rank;
  int64_t shape[MAX_RANK];
} Layout;

// Whether type is one scalar of bool, int, uint or float with 8, 16, 32 or 64 bits.
bool is_supported_type(DLDataType type);

// Bytes of a tensor in C order; false when a dimension is negative or the product overflows.
bool count_bytes(const Layout* layout, uint64_t* bytes);

// A TVM tensor that reads and writes data in place. data must outlive the tensor.
TVMFFIAny view_memory(void* data, const Layout* layout);

// The layout of a tensor that TVM returned; fails when it is not compact, in C order, on the CPU.
Layout read_layout(const DLTensor* tensor);

#endif
