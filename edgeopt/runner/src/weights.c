#include "weights.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "files.h"
#include "report.h"
#include "tensor.h"

typedef struct {
  char magic[8];
  uint64_t count;
} Header;

typedef struct {
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  uint32_t rank;
  int64_t shape[MAX_RANK];
  uint64_t offset;
  uint64_t size;
  uint32_t flags;
  uint32_t zero;
  uint8_t reserved[16];
} Record;

_Static_assert(sizeof(Header) == 16, "the header is part of a file format");
_Static_assert(sizeof(Record) == 112, "the record is part of a file format");

enum {
  // The tensor is read in few, scattered places: an embedding table.
  FLAG_RANDOM = 1,
  ALIGNMENT = 64,
  // Advice is given in pages: 4 KiB, or 16 KiB on a Raspberry Pi 5.
  RANDOM_ALIGNMENT = 16384,
  MANY_BYTES = 1048576,
  // Bytes that are asked for at once: the kernel cuts off what is beyond its read-ahead, by default
  // these.
  FETCHED = 131072,
};

static bool is_random(const Record* record) { return (record->flags & FLAG_RANDOM) != 0; }

// Bytes of the record's data and padding; a tensor that is not random has no padding.
static uint64_t padded_size(const Record* record) {
  uint64_t unit = is_random(record) ? RANDOM_ALIGNMENT : 1;
  return (record->size + unit - 1) / unit * unit;
}

static void check_place(const char* path, const Record* record, unsigned long long number,
                        uint64_t file_size) {
  uint64_t alignment = is_random(record) ? RANDOM_ALIGNMENT : ALIGNMENT;
  // Each is checked before it is used in a sum, so nothing here can overflow.
  if (record->size > file_size || record->offset > file_size ||
      padded_size(record) > file_size - record->offset) {
    fail("%s: record %llu: data outside of the file", path, number);
  }
  if (record->offset % alignment != 0) fail("%s: record %llu: not aligned", path, number);
}

static Layout check_record(const char* path, const Record* record, unsigned long long number,
                           uint64_t file_size) {
  Layout layout = {.type = {record->type_code, record->type_bits, record->type_lanes}};
  uint64_t bytes = 0;
  if (!is_supported_type(layout.type)) fail("%s: record %llu: bad type", path, number);
  if (record->rank > MAX_RANK) fail("%s: record %llu: bad rank", path, number);
  layout.rank = (int)record->rank;
  memcpy(layout.shape, record->shape, sizeof layout.shape);
  if (!count_bytes(&layout, &bytes) || bytes != record->size) {
    fail("%s: record %llu: shape and size disagree", path, number);
  }
  if ((record->flags & ~(uint32_t)FLAG_RANDOM) != 0 || record->zero != 0) {
    fail("%s: record %llu: unknown flags", path, number);
  }
  check_place(path, record, number, file_size);
  return layout;
}

static Record* read_records(int file, const char* path, uint64_t file_size, int* count) {
  Header header;
  if (file_size < sizeof header) fail("%s is too short for a weights file", path);
  read_exactly(file, path, &header, sizeof header, 0);
  if (memcmp(header.magic, "EDGEWT2", 8) != 0) fail("%s is not a weights file", path);
  if (header.count > INT_MAX || header.count > (file_size - sizeof header) / sizeof(Record)) {
    fail("%s: more records than the file can hold", path);
  }
  *count = (int)header.count;
  size_t size = (size_t)header.count * sizeof(Record);
  Record* records = allocate((size_t)header.count, sizeof(Record));
  read_exactly(file, path, records, size, sizeof header);
  return records;
}

static uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }

// Bytes of the file.
typedef struct {
  uint64_t start;
  uint64_t end;
} Span;

// Tables that lie one behind another, from the first of so many records on: they share folios.
static Span join_tables(const Record* records, int count) {
  Span found = {records[0].offset, records[0].offset + padded_size(&records[0])};
  for (int i = 1; i < count && is_random(&records[i]) && records[i].offset == found.end; ++i) {
    found.end += padded_size(&records[i]);
  }
  return found;
}

static void drop_from_cache(int file, uint64_t start, uint64_t end) {
  posix_fadvise(file, (off_t)start, (off_t)(end - start), POSIX_FADV_DONTNEED);
}

static bool is_cached(char* base, uint64_t offset, uint64_t page) {
  unsigned char state = 0;
  return mincore(base + round_down(offset, page), (size_t)page, &state) == 0 && (state & 1) != 0;
}

// On a page fault the kernel also maps the neighbours that happen to be in the page cache, 16
// pages each time, and counts them as this process's memory. After an upload all of them are
// there. So drop them from the cache first: then only rows that are read become resident.
//
// What was written at once is cached as a folio, up to a page of page-table entries long, which is
// dropped whole or not at all (ext4 since Linux 6.16). One that reaches beyond tables keeps that
// part of them: go as far as it takes, folios lie at multiples of their size. Of few bytes that is
// not worth it: rows that are read from the disk one by one take longer than their model may.
static void forget_cached_pages(int file, char* base, Span tables) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t start = tables.start, end = tables.end;
  drop_from_cache(file, start, end);
  if (end - start < MANY_BYTES) return;
  uint64_t longest = page * (page / sizeof(uint64_t));
  for (uint64_t unit = 2 * page; unit <= longest; unit *= 2) {
    if (!is_cached(base, start, page) && !is_cached(base, end - 1, page)) return;
    drop_from_cache(file, round_down(start, unit), round_down(end - 1, unit) + unit);
  }
}

// What is not in the cache is read on a page fault with what lies around it, by the device's setting
// up to megabytes: rows of a table again. Where it was fetched before, nothing else is read.
static void fetch_into_cache(int file, const Record* record) {
  uint64_t end = record->offset + record->size;
  for (uint64_t start = record->offset; start < end; start += FETCHED) {
    uint64_t size = end - start < FETCHED ? end - start : FETCHED;
    posix_fadvise(file, (off_t)start, (off_t)size, POSIX_FADV_WILLNEED);
  }
}

// Without read-ahead a row brings in its own page only. Rounded to whole pages inwards: on a
// kernel with 64 KiB pages the neighbours keep their own behaviour.
static void advise_random(char* base, Span tables) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t start = round_down(tables.start + page - 1, page);
  uint64_t end = round_down(tables.end, page);
  if (start < end) madvise(base + start, (size_t)(end - start), MADV_RANDOM);
}

static char* map_file(int file, const char* path, uint64_t size) {
  if (size > SIZE_MAX) fail("%s: %s", path, strerror(EFBIG));
  char* base = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, file, 0);
  if (base == MAP_FAILED) fail("cannot map %s: %s", path, strerror(errno));
  return base;
}

Weights map_weights(const char* path) {
  uint64_t size = 0;
  int count = 0;
  int file = open_regular(path, &size);
  Record* records = read_records(file, path, size, &count);
  Weights weights = {.tensors = allocate((size_t)count, sizeof(TVMFFIAny)), .count = count};
  char* base = map_file(file, path, size);
  for (int i = 0; i < count; ++i) {
    Layout layout = check_record(path, &records[i], (unsigned long long)i, size);
    weights.tensors[i] = view_memory(base + records[i].offset, &layout);
  }
  Span tables = {0, 0};
  for (int i = 0; i < count; ++i) {
    if (!is_random(&records[i]) || records[i].offset < tables.end) continue;
    tables = join_tables(&records[i], count - i);
    forget_cached_pages(file, base, tables);
    advise_random(base, tables);
  }
  for (int i = 0; tables.end > 0 && i < count; ++i) {
    if (!is_random(&records[i])) fetch_into_cache(file, &records[i]);
  }
  close(file);
  return weights;
}
