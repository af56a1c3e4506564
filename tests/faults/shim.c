/* Preloaded into the command: the nth of some calls on some paths fails, waits or is its last.
 *
 * SHIM_CALLS   which: open read write sync rename unlink truncate (comma-separated)
 * SHIM_PATH    only on paths that hold this text
 * SHIM_FIRST   the first call that is hit, counted from 1 in each process
 * SHIM_COUNT   how many are hit from there on (0: all)
 * SHIM_DO      "errno N" | "kill" (SIGKILL to itself) | "sleep MS"
 *              | "meet FILE" (makes FILE.here, goes on when FILE.go is there)
 * SHIM_MARK    a file that is made when the first call is hit
 * SHIM_CLOCK   the real-time clock jumps every few ms by up to this many seconds either way
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_long seen;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int chosen(const char *call) {
    const char *calls = getenv("SHIM_CALLS");
    size_t length = strlen(call);
    for (const char *at = calls; at && (at = strstr(at, call)); at += length)
        if ((at == calls || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return 1;
    return 0;
}

static void make(const char *file) {
    syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, file, O_CREAT | O_WRONLY, 0600));
}

static void meet(const char *file) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.here", file);
    make(path);
    snprintf(path, sizeof path, "%s.go", file);
    for (int i = 0; i < 15000 && syscall(SYS_faccessat, AT_FDCWD, path, F_OK); i++) usleep(1000);
}

/* 1 where the call fails, errno set. */
static int hit(const char *call, const char *path) {
    const char *part = getenv("SHIM_PATH"), *act = getenv("SHIM_DO");
    if (!act || !part || !path || !chosen(call) || !strstr(path, part)) return 0;
    long first = atol(getenv("SHIM_FIRST")), count = atol(getenv("SHIM_COUNT"));
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (number < first || (count && number >= first + count)) return 0;
    if (getenv("SHIM_MARK")) make(getenv("SHIM_MARK"));
    if (!strncmp(act, "errno ", 6)) { errno = atoi(act + 6); return 1; }
    if (!strcmp(act, "kill")) kill(getpid(), SIGKILL);
    int before = errno;
    if (!strncmp(act, "sleep ", 6)) usleep(1000 * atoi(act + 6));
    if (!strncmp(act, "meet ", 5)) meet(act + 5);
    errno = before;
    return 0;
}

static int hit_fd(const char *call, int fd) {
    if (!getenv("SHIM_DO") || !chosen(call)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    return hit(call, path);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return hit("open", path) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return hit("open", path) ? -1 : real(at, path, flags, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t read(int fd, void *to, size_t n) { REAL(read); return hit_fd("read", fd) ? -1 : real(fd, to, n); }
ssize_t write(int fd, const void *from, size_t n) { REAL(write); return hit_fd("write", fd) ? -1 : real(fd, from, n); }
#define PREAD(name, off) \
    ssize_t name(int fd, void *to, size_t n, off at) { REAL(name); return hit_fd("read", fd) ? -1 : real(fd, to, n, at); }
#define PWRITE(name, off) \
    ssize_t name(int fd, const void *from, size_t n, off at) { \
        REAL(name); return hit_fd("write", fd) ? -1 : real(fd, from, n, at); }
PREAD(pread, off_t) PREAD(pread64, off64_t) PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
#define PREADV(name, off) \
    ssize_t name(int fd, const struct iovec *to, int n, off at) { \
        REAL(name); return hit_fd("read", fd) ? -1 : real(fd, to, n, at); }
#define PREADV2(name, off) \
    ssize_t name(int fd, const struct iovec *to, int n, off at, int flags) { \
        REAL(name); return hit_fd("read", fd) ? -1 : real(fd, to, n, at, flags); }
PREADV(preadv, off_t) PREADV(preadv64, off64_t) PREADV2(preadv2, off_t) PREADV2(preadv64v2, off64_t)
int fsync(int fd) { REAL(fsync); return hit_fd("sync", fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return hit_fd("sync", fd) ? -1 : real(fd); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); return hit_fd("truncate", fd) ? -1 : real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); return hit_fd("truncate", fd) ? -1 : real(fd, n); }
int rename(const char *a, const char *b) { REAL(rename); return hit("rename", b) ? -1 : real(a, b); }
int unlink(const char *path) { REAL(unlink); return hit("unlink", path) ? -1 : real(path); }

static long jump(void) {
    const char *most = getenv("SHIM_CLOCK");
    if (!most) return 0;
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    unsigned long tick = (unsigned long)now.tv_sec * 128 + now.tv_nsec / 7812500;
    tick = (tick ^ (tick >> 3)) * 0x9E3779B97F4A7C15ul;
    return (long)(tick >> 33) % (2 * atol(most) + 1) - atol(most);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(id, now);
    if (!result && id == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    if (!result) now->tv_sec += jump();
    return result;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
