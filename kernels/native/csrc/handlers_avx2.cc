// The custom calls of handlers.cc for processors with AVX2.

#define ROOST_AVX2
#include "handlers.cc"
