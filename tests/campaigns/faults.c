/* Preloaded into a process: counts its calls that change files below a folder, and has the n-th of them fail.

   kill, term, int: the signal comes with the n-th call, and SIGINT again with the next one.
   enospc: the disk is full from then on; the n-th write may still put half of its bytes there.
   eio: the n-th call fails, the others do not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, TERM, INT, FULL, BROKEN };
enum { PASS, HALF, FAIL };

static char under[PATH_MAX];
static atomic_long calls;
static long at;
static int how;

/* Count calls on files below `folder`; how: an index of the list above. */
void faults_arm(const char *folder, int kind, long number) {
  strncpy(under, folder, sizeof under - 1);
  how = kind, at = number, calls = 0;
}

long faults_count(void) { return calls; }

static int below(const char *path) {
  size_t length = strlen(under);
  return length && strncmp(path, under, length) == 0;
}

static int named(int folder, const char *path) {
  char whole[PATH_MAX];
  if (path[0] == '/') return below(path);
  char link[64];
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, whole, sizeof whole - 2);
  if (size < 0) return 0;
  whole[size] = '/', whole[size + 1] = 0;
  return below(whole) || below(strncat(whole, path, sizeof whole - size - 2));
}

static int opened(int file) {
  char link[64], whole[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, whole, sizeof whole - 1);
  if (size < 0) return 0;
  whole[size] = 0;
  return below(whole);
}

/* What becomes of a call; `room`: whether it takes room on the disk. */
static int fate(int room) {
  long number = ++calls;
  if (how == INT && number == at + 1) kill(getpid(), SIGINT);
  if (how == FULL && number >= at && room) return errno = ENOSPC, number == at ? HALF : FAIL;
  if (number != at) return PASS;
  if (how == KILL) kill(getpid(), SIGKILL);
  if (how == TERM) kill(getpid(), SIGTERM);
  if (how == INT) kill(getpid(), SIGINT);
  if (how == BROKEN) return errno = EIO, FAIL;
  return PASS;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, #name))

#define WRITE(name, PARAMETERS, ARGUMENTS, HALVED)                                  \
  ssize_t name PARAMETERS {                                                         \
    ssize_t(*real) PARAMETERS = REAL(name, ssize_t(*) PARAMETERS);                  \
    int kind = opened(file) ? fate(1) : PASS;                                       \
    if (kind == HALF && size > 1) return real HALVED;                               \
    if (kind != PASS) return -1;                                                    \
    return real ARGUMENTS;                                                          \
  }
WRITE(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRITE(pwrite, (int file, const void *data, size_t size, off_t place), (file, data, size, place), (file, data, size / 2, place))
WRITE(pwrite64, (int file, const void *data, size_t size, off_t place), (file, data, size, place), (file, data, size / 2, place))
WRITE(writev, (int file, const struct iovec *data, int size), (file, data, size), (file, data, size / 2))

#define CALL(name, PARAMETERS, ARGUMENTS, MINE, room)                               \
  int name PARAMETERS {                                                             \
    int(*real) PARAMETERS = REAL(name, int(*) PARAMETERS);                          \
    if ((MINE) && fate(room) != PASS) return -1;                                    \
    return real ARGUMENTS;                                                          \
  }
CALL(fsync, (int file), (file), opened(file), 1)
CALL(fdatasync, (int file), (file), opened(file), 1)
CALL(ftruncate, (int file, off_t size), (file, size), opened(file), 0)
CALL(ftruncate64, (int file, off_t size), (file, size), opened(file), 0)
CALL(truncate, (const char *path, off_t size), (path, size), named(AT_FDCWD, path), 0)
CALL(truncate64, (const char *path, off_t size), (path, size), named(AT_FDCWD, path), 0)
CALL(rename, (const char *from, const char *to), (from, to), named(AT_FDCWD, to), 0)
CALL(unlink, (const char *path), (path), named(AT_FDCWD, path), 0)
CALL(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), named(folder, path), 0)
CALL(rmdir, (const char *path), (path), named(AT_FDCWD, path), 0)
CALL(mkdir, (const char *path, mode_t mode), (path, mode), named(AT_FDCWD, path), 1)

#define OPEN(name, PARAMETERS, ARGUMENTS, folder)                                   \
  int name PARAMETERS {                                                             \
    int(*real) PARAMETERS = REAL(name, int(*) PARAMETERS);                          \
    mode_t mode = 0;                                                                \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                          \
      va_list rest;                                                                 \
      va_start(rest, flags);                                                        \
      mode = va_arg(rest, mode_t);                                                  \
      va_end(rest);                                                                 \
      if (named(folder, path) && fate(1) != PASS) return -1;                        \
    }                                                                               \
    return real ARGUMENTS;                                                          \
  }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int place, const char *path, int flags, ...), (place, path, flags, mode), place)
OPEN(openat64, (int place, const char *path, int flags, ...), (place, path, flags, mode), place)
