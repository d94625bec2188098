#include "tiles.h"

#if defined(__x86_64__)

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "report.h"

// Linux: arch/x86/include/uapi/asm/prctl.h, and Documentation/arch/x86/xstate.rst.
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };

// Every kernel with such code brings this symbol along; a linked model without has none.
extern const char edgeopt_uses_tiles __attribute__((weak));

static bool uses_tiles(const char* model) {
  if (model == NULL) return &edgeopt_uses_tiles != NULL;
  // As load_module names it: a library that is loaded already is found again.
  char path[4096];
  const char* prefix = strchr(model, '/') == NULL ? "./" : "";
  snprintf(path, sizeof path, "%s%s", prefix, model);
  void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (library == NULL) return false;
  bool found = dlsym(library, "edgeopt_uses_tiles") != NULL;
  dlclose(library);
  return found;
}

void allow_tiles(const char* model) {
  if (!uses_tiles(model)) return;
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
    fail("the kernel does not give the model the tile registers (AMX) that it uses: %s",
         strerror(errno));
  }
}

#else

void allow_tiles(const char* model) { (void)model; }

#endif
