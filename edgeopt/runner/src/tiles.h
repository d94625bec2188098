// The tile registers of x86-64 (AMX), which Linux gives only to those who ask.
#ifndef EDGEOPT_TILES_H_
#define EDGEOPT_TILES_H_

// Ask for them, for all threads, if the loaded model uses them; a refusal ends the program. model
// is its shared library, NULL for what is linked in.
void allow_tiles(const char* model);

#endif
