// Says from which sources a library was built: the loader looks for this text before it opens the file, so that a
// library of another version is never called.
#ifndef DETKIT_SOURCES
#error "define DETKIT_SOURCES as the digest of csrc/ (see detkit/ops/_sources.py)"
#endif

#define DETKIT_TEXT_(x) #x
#define DETKIT_TEXT(x) DETKIT_TEXT_(x)

extern "C" __attribute__((visibility("default"), used)) const char detkit_sources[] =
    "detkit-sources:" DETKIT_TEXT(DETKIT_SOURCES);
