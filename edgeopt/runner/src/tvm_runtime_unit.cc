// TVM's CPU runtime and Relax virtual machine as one translation unit. No RPC, no tuning, no
// other devices; threads are those of threads.c. The include path leads to the sources inside the apache-tvm wheel.
#include "src/runtime/cpu_device_api.cc"
#include "src/runtime/device_api.cc"
#include "src/runtime/file_utils.cc"
#include "src/runtime/logging.cc"
#include "src/runtime/memory/memory_manager.cc"
#include "src/runtime/module.cc"
#include "src/runtime/tensor.cc"
#include "src/runtime/vm/builtin.cc"
#include "src/runtime/vm/bytecode.cc"
#include "src/runtime/vm/executable.cc"
#include "src/runtime/vm/vm.cc"
#include "src/runtime/workspace_pool.cc"
