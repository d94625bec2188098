#include "vm.h"

#include <stdio.h>
#include <string.h>

#include "report.h"

// AllocatorType::kPooled of tvm/runtime/memory/memory_manager.h.
enum { POOLED_ALLOCATOR = 2 };

// Objects start with TVMFFIObject and go on with the cell of their kind (tvm/ffi/c_api.h); the
// header's own accessors exist in C++ only.
static const void* cell_of(TVMFFIObjectHandle object) {
  return (const char*)object + sizeof(TVMFFIObject);
}

static TVMFFIAny make_none(void) {
  TVMFFIAny value;
  memset(&value, 0, sizeof value);
  return value;
}

static TVMFFIAny make_int(int64_t number) {
  TVMFFIAny value = make_none();
  value.type_index = kTVMFFIInt;
  value.v_int64 = number;
  return value;
}

static TVMFFIAny make_bool(bool truth) {
  TVMFFIAny value = make_int(truth);
  value.type_index = kTVMFFIBool;
  return value;
}

static TVMFFIAny make_text(const char* text) {
  TVMFFIAny value = make_none();
  value.type_index = kTVMFFIRawStr;
  value.v_c_str = text;
  return value;
}

void take_error(char* text, size_t size) {
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) {
    snprintf(text, size, "unknown error");
    return;
  }
  const TVMFFIErrorCell* cell = cell_of(error);
  snprintf(text, size, "%.*s: %.*s", (int)cell->kind.size, cell->kind.data,
           (int)cell->message.size, cell->message.data);
  TVMFFIObjectDecRef(error);
}

static _Noreturn void fail_with_error(const char* what) {
  char reason[1536];
  take_error(reason, sizeof reason);
  fail("%s: %s", what, reason);
}

static TVMFFIAny call_global(const char* name, const char* what, const TVMFFIAny* arguments,
                             int count) {
  TVMFFIByteArray key = {.data = name, .size = strlen(name)};
  TVMFFIObjectHandle function = NULL;
  TVMFFIAny result = make_none();
  if (TVMFFIFunctionGetGlobal(&key, &function) != 0 || function == NULL) {
    fail("TVM's runtime in this program has no %s", name);
  }
  if (TVMFFIFunctionCall(function, (TVMFFIAny*)arguments, count, &result) != 0) {
    fail_with_error(what);
  }
  TVMFFIObjectDecRef(function);
  return result;
}

static TVMFFIAny get_function(TVMFFIAny module, const char* name) {
  TVMFFIAny arguments[3] = {module, make_text(name), make_bool(false)};
  TVMFFIAny function = call_global("ffi.ModuleGetFunction", name, arguments, 3);
  if (function.type_index != kTVMFFIFunction) fail("the model has no function %s", name);
  return function;
}

static TVMFFIAny load_module(const char* path) {
  char local[4096];
  if (path == NULL) return call_global("ffi.SystemLib", "the linked model", NULL, 0);
  // dlopen looks for a name without a slash in the system's library folders.
  const char* prefix = strchr(path, '/') == NULL ? "./" : "";
  int length = snprintf(local, sizeof local, "%s%s", prefix, path);
  if (length < 0 || (size_t)length >= sizeof local) fail("the model's path is too long");
  TVMFFIAny argument = make_text(local);
  return call_global("ffi.ModuleLoadFromFile", "cannot load the model", &argument, 1);
}

Vm load_vm(const char* model) {
  TVMFFIAny load = get_function(load_module(model), "vm_load_executable");
  TVMFFIAny machine = make_none();
  if (TVMFFIFunctionCall(load.v_ptr, NULL, 0, &machine) != 0) {
    fail_with_error("vm_load_executable");
  }
  TVMFFIAny initialize = get_function(machine, "vm_initialization");
  TVMFFIAny device[3] = {make_int(kDLCPU), make_int(0), make_int(POOLED_ALLOCATOR)};
  TVMFFIAny nothing = make_none();
  if (TVMFFIFunctionCall(initialize.v_ptr, device, 3, &nothing) != 0) {
    fail_with_error("vm_initialization");
  }
  return (Vm){.main_function = get_function(machine, "main").v_ptr,
              .forget_function = get_function(machine, "forget").v_ptr};
}

bool run_vm(const Vm* vm, const TVMFFIAny* arguments, int count, TVMFFIAny* result) {
  *result = make_none();
  return TVMFFIFunctionCall(vm->main_function, (TVMFFIAny*)arguments, count, result) == 0;
}

void forget_result(const Vm* vm) {
  TVMFFIAny nothing = make_none();
  if (TVMFFIFunctionCall(vm->forget_function, NULL, 0, &nothing) != 0) fail_with_error("forget");
  release(nothing);
}

void release(TVMFFIAny value) {
  if (value.type_index >= kTVMFFIStaticObjectBegin) TVMFFIObjectDecRef(value.v_ptr);
}

int count_outputs(const TVMFFIAny* result) {
  if (result->type_index == kTVMFFITensor) return 1;
  if (result->type_index != kTVMFFIArray) fail("the model returns neither tensor nor tuple");
  return (int)((const TVMFFISeqCell*)cell_of(result->v_ptr))->size;
}

const DLTensor* get_output(const TVMFFIAny* result, int index) {
  const TVMFFIAny* item = result;
  if (result->type_index == kTVMFFIArray) {
    const TVMFFISeqCell* cells = cell_of(result->v_ptr);
    item = (const TVMFFIAny*)cells->data + index;
  }
  if (item->type_index != kTVMFFITensor) fail("output %d is not a tensor", index);
  return cell_of(item->v_ptr);
}

TVMFFIAny import_tensor(DLManagedTensor* tensor) {
  TVMFFIAny value = make_none();
  TVMFFIObjectHandle handle = NULL;
  if (TVMFFITensorFromDLPack(tensor, 0, 1, &handle) != 0) fail_with_error("cannot make a tensor");
  value.type_index = kTVMFFITensor;
  value.v_ptr = handle;
  return value;
}
