#include "caches.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <tvm/runtime/c_backend_api.h>

#include "report.h"

// The shortest line of a cache that is read before the next one (Cortex-A9: 32 bytes).
enum { LINE = 32 };

typedef struct {
  volatile const char* data;
  int64_t size;
} Other;

// A weights file is mapped in pages of the usual size: larger ones would leave the TLB as it was.
static Other map_other(int64_t size) {
  char* data = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) fail("no memory for --cold-bytes: %s", strerror(errno));
  madvise(data, (size_t)size, MADV_NOHUGEPAGE);
  // Pages that were never written are all the same one.
  memset(data, 1, (size_t)size);
  return (Other){.data = data, .size = size};
}

static int read_share(int slice, TVMParallelGroupEnv* environment, void* data) {
  const Other* other = data;
  int64_t share = (other->size + environment->num_task - 1) / environment->num_task;
  int64_t end = (slice + 1) * share;
  for (int64_t i = slice * share; i < end && i < other->size; i += LINE) (void)other->data[i];
  return 0;
}

void drive_out(int64_t bytes) {
  static Other other;
  if (bytes == 0) return;
  if (other.data == NULL) other = map_other(bytes);
  TVMBackendParallelLaunch(read_share, &other, 0);
}
