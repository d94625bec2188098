// Stands in for a header that the apache-tvm wheel leaves out. TVM uses it for tensors inside
// JSON, which the device program never reads or writes.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/support/io.h>

namespace tvm {
namespace support {

class Base64InStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64InStream(Stream*) {}
  void InitPosition() { TVM_FFI_THROW(RuntimeError) << "this runtime reads no base64"; }
  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void*, size_t) override { return 0; }
};

class Base64OutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64OutStream(Stream*) {}
  void Finish() { TVM_FFI_THROW(RuntimeError) << "this runtime writes no base64"; }
  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void*, size_t) override { return 0; }
};

}  // namespace support
}  // namespace tvm
