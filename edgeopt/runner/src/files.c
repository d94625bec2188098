#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "report.h"

// kAllocAlignment of tvm/runtime/device_api.h: kernels use aligned vector loads.
enum { TENSOR_ALIGNMENT = 64 };

bool read_text(const char* path, char* text, size_t size) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  ssize_t count = read(file, text, size - 1);
  close(file);
  if (count < 0) return false;
  text[count] = 0;
  return true;
}

bool read_number(const char* path, int64_t* number) {
  char text[64];
  char* end = NULL;
  if (!read_text(path, text, sizeof text)) return false;
  long long value = strtoll(text, &end, 10);
  *number = value;
  return end != text;
}

static const char* sys_folder(void) {
  const char* folder = getenv("EDGEOPT_SYS");
  return folder != NULL ? folder : "/sys";
}

// False where the path would be cut: what is read is the file that was meant, or nothing.
static bool name_sys(char* path, const char* format, va_list arguments) {
  int start = snprintf(path, PATH_MAX, "%s/", sys_folder());
  if (start >= PATH_MAX) return false;
  int length = vsnprintf(path + start, (size_t)(PATH_MAX - start), format, arguments);
  return start + length < PATH_MAX;
}

bool read_sys_text(char* text, size_t size, const char* format, ...) {
  char path[PATH_MAX];
  va_list arguments;
  va_start(arguments, format);
  bool named = name_sys(path, format, arguments);
  va_end(arguments);
  return named && read_text(path, text, size);
}

bool read_sys_match(char* text, size_t size, const char* pattern) {
  char path[PATH_MAX];
  glob_t found;
  int length = snprintf(path, sizeof path, "%s/%s", sys_folder(), pattern);
  if (length >= PATH_MAX || glob(path, 0, NULL, &found) != 0) return false;
  bool done = read_text(found.gl_pathv[0], text, size);
  globfree(&found);
  return done;
}

bool read_sys_number(int64_t* number, const char* format, ...) {
  char path[PATH_MAX];
  va_list arguments;
  va_start(arguments, format);
  bool named = name_sys(path, format, arguments);
  va_end(arguments);
  return named && read_number(path, number);
}

int open_regular(const char* path, uint64_t* size) {
  struct stat status;
  // Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail("cannot open %s: %s", path, strerror(errno));
  if (fstat(file, &status) != 0) fail("cannot stat %s: %s", path, strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("%s is not a regular file", path);
  *size = (uint64_t)status.st_size;
  return file;
}

void read_exactly(int file, const char* path, void* data, size_t size, uint64_t offset) {
  char* position = data;
  while (size != 0) {
    ssize_t count = pread(file, position, size, (off_t)offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot read %s: %s", path, strerror(errno));
    if (count == 0) fail("%s is shorter than its header says", path);
    position += count;
    size -= (size_t)count;
    offset += (uint64_t)count;
  }
}

void write_exactly(int file, const char* path, const void* data, size_t size) {
  const char* position = data;
  while (size != 0) {
    ssize_t count = write(file, position, size);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("cannot write %s: %s", path, strerror(errno));
    position += count;
    size -= (size_t)count;
  }
}

void* allocate(size_t count, size_t size) {
  void* memory = calloc(count != 0 ? count : 1, size);
  if (memory == NULL) fail("out of memory: %zu x %zu bytes", count, size);
  return memory;
}

void* allocate_tensor(uint64_t size) {
  void* memory = NULL;
  if (size > SIZE_MAX - TENSOR_ALIGNMENT ||
      posix_memalign(&memory, TENSOR_ALIGNMENT, size != 0 ? (size_t)size : 1) != 0) {
    fail("out of memory: a tensor of %llu bytes", (unsigned long long)size);
  }
  return memory;
}
