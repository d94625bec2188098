// Small files of /proc and /sys, and exact reads of large ones.
#ifndef EDGEOPT_FILES_H_
#define EDGEOPT_FILES_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Read at most size - 1 bytes of a small text file, zero-terminated; false when unreadable.
bool read_text(const char* path, char* text, size_t size);

// Read the first whole number of a small text file; false when unreadable or not a number.
bool read_number(const char* path, int64_t* number);

// The same of a file below /sys. The environment variable EDGEOPT_SYS names another folder to look
// in instead: boards of the tests are made of files.
bool read_sys_text(char* text, size_t size, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
bool read_sys_number(int64_t* number, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// Read the first file below /sys whose path matches a pattern of glob(7).
bool read_sys_match(char* text, size_t size, const char* pattern);

// Open a regular file for reading and tell its size in bytes; fails when it is anything else.
int open_regular(const char* path, uint64_t* size);

// Read exactly size bytes at offset; fails when the file ends before.
void read_exactly(int file, const char* path, void* data, size_t size, uint64_t offset);

// Write all size bytes; fails when the disk is full.
void write_exactly(int file, const char* path, const void* data, size_t size);

// Memory that is released with the process; fails when there is none.
void* allocate(size_t count, size_t size);

// As allocate, for tensors: aligned to what TVM's kernels expect of every pointer.
void* allocate_tensor(uint64_t size);

#endif
