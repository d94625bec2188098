#include "npy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "files.h"
#include "report.h"

enum {
  // Magic, version, and the header's length: two bytes in version 1, four in later ones.
  PREAMBLE = 10,
  PREAMBLE_2 = 12,
  MAX_HEADER = 4096,
};

static const char kMagic[] = "\x93NUMPY";

static DLDataType parse_type(const char* path, const char* text) {
  static const char kCodes[] = "fiub";
  static const uint8_t kTypes[] = {kDLFloat, kDLInt, kDLUInt, kDLBool};
  const char* code = text[0] != 0 && text[1] != 0 ? strchr(kCodes, text[1]) : NULL;
  if (code == NULL || strchr("<|", text[0]) == NULL) fail("%s: unsupported element type", path);
  int bytes = atoi(text + 2);
  DLDataType type = {.code = kTypes[code - kCodes], .bits = 0, .lanes = 1};
  if (bytes >= 1 && bytes <= 8) type.bits = (uint8_t)(8 * bytes);
  if (!is_supported_type(type)) fail("%s: unsupported element type", path);
  return type;
}

static void parse_shape(const char* path, const char* text, Layout* layout) {
  while (*text != ')') {
    char* end = NULL;
    errno = 0;
    long long length = strtoll(text, &end, 10);
    if (end == text || errno != 0 || length < 0) fail("%s: bad shape in the header", path);
    if (layout->rank == MAX_RANK) fail("%s: more than %d dimensions", path, MAX_RANK);
    layout->shape[layout->rank++] = length;
    text = end + strspn(end, ", ");
  }
}

// The header is a Python dictionary as text, always written by one and the same code of NumPy.
static Layout parse_header(const char* path, const char* header) {
  Layout layout = {.rank = 0};
  const char* type = strstr(header, "'descr': '");
  const char* shape = strstr(header, "'shape': (");
  if (type == NULL || shape == NULL || strchr(shape, ')') == NULL) fail("%s: bad header", path);
  if (strstr(header, "'fortran_order': False") == NULL) fail("%s: not in C order", path);
  layout.type = parse_type(path, type + strlen("'descr': '"));
  parse_shape(path, shape + strlen("'shape': ("), &layout);
  return layout;
}

static Layout read_header(NpyInput* input) {
  unsigned char start[PREAMBLE_2];
  char header[MAX_HEADER + 1];
  read_exactly(input->file, input->path, start, PREAMBLE_2, 0);
  if (memcmp(start, kMagic, strlen(kMagic)) != 0) fail("%s is not an npy file", input->path);
  uint32_t length = (uint32_t)start[8] | (uint32_t)start[9] << 8;
  uint64_t offset = PREAMBLE;
  if (start[6] > 1) {
    length |= (uint32_t)start[10] << 16 | (uint32_t)start[11] << 24;
    offset = PREAMBLE_2;
  }
  if (length > MAX_HEADER) fail("%s: the header is too long", input->path);
  read_exactly(input->file, input->path, header, length, offset);
  header[length] = 0;
  input->data_offset = offset + length;
  return parse_header(input->path, header);
}

bool strip_sample_axis(NpyInput* input) {
  Layout* layout = &input->layout;
  if (layout->rank == 0 || layout->shape[0] != 1) return false;
  layout->rank -= 1;
  memmove(layout->shape, layout->shape + 1, sizeof(int64_t) * (size_t)layout->rank);
  return true;
}

NpyInput open_input(const char* path, int64_t samples) {
  uint64_t size = 0;
  uint64_t bytes = 0;
  NpyInput input = {.path = path};
  input.file = open_regular(path, &size);
  input.layout = read_header(&input);
  if (!count_bytes(&input.layout, &bytes)) fail("%s: impossible shape", path);
  if (size - input.data_offset != bytes) fail("%s: size and header disagree", path);
  if (samples > 1) {
    if (input.layout.rank == 0 || input.layout.shape[0] != samples) {
      fail("%s: the leading axis is not the %" PRId64 " samples", path, samples);
    }
    input.layout.shape[0] = 1;
    strip_sample_axis(&input);
  }
  input.sample_bytes = bytes / (uint64_t)samples;
  input.memory = allocate_tensor(input.sample_bytes);
  return input;
}

void read_sample(NpyInput* input, int64_t sample) {
  uint64_t offset = input->data_offset + (uint64_t)sample * input->sample_bytes;
  read_exactly(input->file, input->path, input->memory, (size_t)input->sample_bytes, offset);
}

static size_t format_header(char* header, size_t size, int64_t samples, const Layout* layout) {
  static const char kCodes[] = {[kDLInt] = 'i', [kDLUInt] = 'u', [kDLFloat] = 'f', [kDLBool] = 'b'};
  char order = layout->type.bits == 8 ? '|' : '<';
  char code = kCodes[layout->type.code];
  size_t length = (size_t)snprintf(
      header, size, "{'descr': '%c%c%d', 'fortran_order': False, 'shape': (%" PRId64 ",", order,
      code, layout->type.bits / 8, samples);
  for (int i = 0; i < layout->rank; ++i) {
    length += (size_t)snprintf(header + length, size - length, " %" PRId64 ",", layout->shape[i]);
  }
  length += (size_t)snprintf(header + length, size - length, "), }");
  // The format asks for data at a multiple of 64 bytes and a newline before it.
  while ((PREAMBLE + length + 1) % 64 != 0) header[length++] = ' ';
  header[length++] = '\n';
  return length;
}

void create_folder(const char* folder) {
  if (mkdir(folder, 0755) != 0 && errno != EEXIST) {
    fail("cannot create %s: %s", folder, strerror(errno));
  }
}

NpyOutput create_output(const char* folder, int index, int64_t samples, const Layout* layout) {
  char header[512];
  NpyOutput output = {.layout = *layout};
  size_t size = strlen(folder) + 32;
  output.path = allocate(size, 1);
  snprintf(output.path, size, "%s/%d.npy", folder, index);
  if (!count_bytes(layout, &output.sample_bytes)) fail("%s: impossible shape", output.path);
  output.file = open(output.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (output.file < 0) fail("cannot create %s: %s", output.path, strerror(errno));
  size_t length = format_header(header, sizeof header, samples, layout);
  unsigned char start[PREAMBLE] = {0};
  memcpy(start, kMagic, strlen(kMagic));
  start[6] = 1;
  start[8] = (unsigned char)(length & 0xff);
  start[9] = (unsigned char)(length >> 8);
  write_exactly(output.file, output.path, start, sizeof start);
  write_exactly(output.file, output.path, header, length);
  return output;
}

void append_sample(const NpyOutput* output, const DLTensor* tensor) {
  Layout layout = read_layout(tensor);
  if (memcmp(&layout, &output->layout, sizeof layout) != 0) {
    fail("%s: the shape differs between samples", output->path);
  }
  const char* data = (const char*)tensor->data + tensor->byte_offset;
  write_exactly(output->file, output->path, data, (size_t)output->sample_bytes);
}

void name_type(DLDataType type, char* name) {
  static const char* const kNames[] = {[kDLInt] = "int", [kDLUInt] = "uint", [kDLFloat] = "float"};
  if (type.code == kDLBool) {
    snprintf(name, 16, "bool");
  } else {
    snprintf(name, 16, "%s%d", kNames[type.code], type.bits);
  }
}
