// The Relax virtual machine, reached through TVM's C ABI only.
#ifndef EDGEOPT_VM_H_
#define EDGEOPT_VM_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

// A loaded model. It stays loaded until the process ends.
typedef struct {
  TVMFFIObjectHandle main_function;
  TVMFFIObjectHandle forget_function;
} Vm;

// Load model (a shared library), or with NULL the one that is linked in.
Vm load_vm(const char* model);

// Run the model; the arguments are borrowed, the result is owned by the caller. On an error
// false, and take_error has the reason.
bool run_vm(const Vm* vm, const TVMFFIAny* arguments, int count, TVMFFIAny* result);

// Copy and clear the pending error of TVM as text.
void take_error(char* text, size_t size);

// Let go of what run_vm returned.
void release(TVMFFIAny value);

// Make the VM let go of the last result too, with the memory that it lies in.
void forget_result(const Vm* vm);

// How many tensors a result holds (a single tensor, or an array), and the one at index, borrowed.
int count_outputs(const TVMFFIAny* result);
const DLTensor* get_output(const TVMFFIAny* result, int index);

// Hand a DLPack tensor over to TVM.
TVMFFIAny import_tensor(DLManagedTensor* tensor);

#endif
