#include "report.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static void put_json_string(FILE* file, const char* text) {
  fputc('"', file);
  for (const unsigned char* c = (const unsigned char*)text; *c != 0; ++c) {
    if (*c == '"' || *c == '\\') {
      fprintf(file, "\\%c", *c);
    } else if (*c < 0x20 || *c == 0x7f) {
      fprintf(file, "\\u%04x", *c);
    } else {
      fputc(*c, file);
    }
  }
  fputc('"', file);
}

static _Noreturn void fail_with(int status, const char* format, va_list arguments) {
  char message[2048];
  vsnprintf(message, sizeof message, format, arguments);
  fputs("{\"error\": ", stderr);
  put_json_string(stderr, message);
  fputs("}\n", stderr);
  fflush(stderr);
  _exit(status);
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(STATUS_FAILED, format, arguments);
}

void fail_usage(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(STATUS_USAGE, format, arguments);
}

void print_json_string(const char* text) { put_json_string(stdout, text); }

void finish(int status) {
  if (fflush(stdout) != 0) fail("cannot write to stdout");
  // Not exit(): destructors of TVM's registries take time and give nothing back.
  _exit(status);
}
