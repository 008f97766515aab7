/* Faults for the tests of the binary, preloaded before the C library:
 *
 * FAULT_KILL_AT_RENAME=n   SIGKILL in place of the n-th rename: everything is written, nothing has its name yet
 * FAULT_WHILE=path         while this file exists, writes into files fail, as do creating and renaming them,
 * FAULT_ERRNO=n            with this error: 28 for a full disk, 30 for a read-only one
 * FAULT_CLOCK_BACK=1       each look at the wall clock finds it an hour earlier
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int faulty(void) {
    const char *flag = getenv("FAULT_WHILE");
    int before = errno;
    int present = flag && access(flag, F_OK) == 0;
    errno = before;
    if (present) errno = atoi(getenv("FAULT_ERRNO"));
    return present;
}

static int is_regular(int fd) {
    struct stat status;
    int before = errno;
    int regular = fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    errno = before;
    return regular;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (is_regular(fd) && faulty()) return -1;
    return REAL(write)(fd, bytes, count);
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
        if (faulty()) return -1;
    }
    return REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (faulty()) return -1;
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    static int count;
    const char *kill_at = getenv("FAULT_KILL_AT_RENAME");
    if (kill_at && __sync_add_and_fetch(&count, 1) == atoi(kill_at)) raise(SIGKILL);
    if (faulty()) return -1;
    return REAL(rename)(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static long looks;
    int result = REAL(clock_gettime)(clock, time);
    if (clock == CLOCK_REALTIME && getenv("FAULT_CLOCK_BACK"))
        time->tv_sec -= 3600 * __sync_add_and_fetch(&looks, 1);
    return result;
}
