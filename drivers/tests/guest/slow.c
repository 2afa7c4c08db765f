/* A disk that takes 0-60 ms for each request, and so answers out of order: preloaded into the storage daemon, whose
 * threads read and write by these calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_a_while(void) {
  static __thread unsigned seed;
  if (!seed) { struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); seed = (unsigned)now.tv_nsec ^ (unsigned)(size_t)&seed | 1; }
  struct timespec t = { 0, (long)(rand_r(&seed) % 60000) * 1000 };
  nanosleep(&t, NULL);
}

#define SLOW(name, args, names)                                     \
  ssize_t name args {                                               \
    static ssize_t (*real) args;                                    \
    if (!real) real = (ssize_t(*) args)dlsym(RTLD_NEXT, #name);     \
    wait_a_while();                                                 \
    return real names;                                              \
  }
SLOW(preadv, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
SLOW(pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
SLOW(preadv64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
SLOW(pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
SLOW(pread, (int fd, void *b, size_t n, off_t at), (fd, b, n, at))
SLOW(pwrite, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at))
SLOW(pread64, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at))
SLOW(pwrite64, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at))
