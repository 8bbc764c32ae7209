// A text in a library that can be found without opening it: DETKIT_MARK(name, "key:", VALUE) for a macro VALUE.
#pragma once

#define DETKIT_TEXT_(x) #x
#define DETKIT_TEXT(x) DETKIT_TEXT_(x)
#define DETKIT_MARK(name, key, value) \
  extern "C" __attribute__((visibility("default"), used)) const char name[] = key DETKIT_TEXT(value)
