// What the program says: one JSON document on stdout, or one JSON line on stderr and a status.
#ifndef EDGEOPT_REPORT_H_
#define EDGEOPT_REPORT_H_

// Statuses of the process; 0 is success.
enum { STATUS_FAILED = 1, STATUS_USAGE = 2 };

// Print {"error": "..."} as one line on stderr and end the process. Never returns.
_Noreturn void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail_usage(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Print text as a JSON string, quotes included; bytes that are not ASCII pass as they are.
void print_json_string(const char* text);

// End the process with status after stdout has reached its reader; a full disk is an error.
_Noreturn void finish(int status);

#endif
