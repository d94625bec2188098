// What a kernel that is measured by itself finds in the caches.
#ifndef EDGEOPT_CACHES_H_
#define EDGEOPT_CACHES_H_

#include <stdint.h>

// Read so many bytes that nothing else reads, as the other weights of a whole model are between
// two uses of one: what was used longest ago leaves the caches and the TLB. Each thread reads its
// share, for most cores have a cache of their own. 0 does nothing.
void drive_out(int64_t bytes);

#endif
