// Says from which sources a library was built: the loader looks for this text before it opens the file, so that a
// library of another version is never called.
#include "mark.h"

#ifndef DETKIT_SOURCES
#error "define DETKIT_SOURCES as the digest of csrc/ (see detkit/ops/_sources.py)"
#endif

DETKIT_MARK(detkit_sources, "detkit-sources:", DETKIT_SOURCES);
