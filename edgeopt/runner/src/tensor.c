#include "tensor.h"

#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "report.h"
#include "vm.h"

bool is_supported_type(DLDataType type) {
  bool width = type.bits == 8 || type.bits == 16 || type.bits == 32 || type.bits == 64;
  switch (type.code) {
    case kDLInt:
    case kDLUInt:
      return width && type.lanes == 1;
    case kDLFloat:
      return width && type.bits != 8 && type.lanes == 1;
    case kDLBool:
      return type.bits == 8 && type.lanes == 1;
    default:
      return false;
  }
}

bool count_bytes(const Layout* layout, uint64_t* bytes) {
  *bytes = layout->type.bits / 8;
  for (int i = 0; i < layout->rank; ++i) {
    if (layout->shape[i] < 0) return false;
    if (__builtin_mul_overflow(*bytes, (uint64_t)layout->shape[i], bytes)) return false;
  }
  return true;
}

// What DLPack wants to be kept alive beside the data.
typedef struct {
  DLManagedTensor tensor;
  int64_t shape[MAX_RANK];
  int64_t strides[MAX_RANK];
} View;

static void release_view(DLManagedTensor* tensor) { free(tensor->manager_ctx); }

TVMFFIAny view_memory(void* data, const Layout* layout) {
  View* view = allocate(1, sizeof *view);
  int64_t stride = 1;
  for (int i = layout->rank - 1; i >= 0; --i) {
    view->shape[i] = layout->shape[i];
    view->strides[i] = stride;
    stride *= layout->shape[i];
  }
  view->tensor.manager_ctx = view;
  view->tensor.deleter = release_view;
  view->tensor.dl_tensor = (DLTensor){
      .data = data,
      .device = {.device_type = kDLCPU, .device_id = 0},
      .ndim = layout->rank,
      .dtype = layout->type,
      .shape = view->shape,
      .strides = view->strides,
  };
  return import_tensor(&view->tensor);
}

static bool is_compact(const DLTensor* tensor) {
  int64_t stride = 1;
  if (tensor->strides == NULL) return true;
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride) return false;
    stride *= tensor->shape[i];
  }
  return true;
}

Layout read_layout(const DLTensor* tensor) {
  Layout layout = {.type = tensor->dtype, .rank = tensor->ndim};
  if (tensor->device.device_type != kDLCPU) fail("an output is not in main memory");
  if (tensor->ndim > MAX_RANK) fail("an output has more than %d dimensions", MAX_RANK);
  if (!is_supported_type(tensor->dtype)) fail("an output has an unsupported element type");
  if (!is_compact(tensor)) fail("an output is not in C order");
  if (tensor->ndim > 0) {
    memcpy(layout.shape, tensor->shape, sizeof(int64_t) * (size_t)tensor->ndim);
  }
  return layout;
}
