/* What a process does to the files below one directory, counted; at a chosen one of these events something goes wrong.
 *
 * Loaded by LD_PRELOAD; `faults_arm` is called by ctypes. Python, Rust (safetensors) and C++ (Arrow) all go through the
 * functions of libc that are replaced here.
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
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN_READ = 1, OPEN_WRITE = 2, READ = 4, WRITE = 8, NAME = 16, SYNC = 32 };
enum { COUNT, SIGNAL, TORN, FAIL, FAIL_FROM_HERE, SHORT };

static char root[PATH_MAX];
static size_t root_length;
static atomic_long events;
static long chosen;
static int classes, action, argument, record = -1;

/* `place`: the directory below which events count; `kinds`: of the classes above; `at`: the number of the event, from 0;
 * `what` happens there, with a signal or an errno as its `value`; names of events go to the descriptor `log`, or to -1.
 */
void faults_arm(const char *place, int kinds, long at, int what, int value, int log) {
    root_length = strlen(strncpy(root, place, sizeof root - 1));
    chosen = at, action = what, argument = value, record = log, classes = kinds;
    atomic_store(&events, 0);
}

static int below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path of `name` in the directory `at`, or of the descriptor `at` if there is no name. */
static void locate(int at, const char *name, char *path) {
    ssize_t length = 0;
    char link[40];
    if (!name || *name != '/') {
        if (at == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
        if (length < 0) length = 0;
        if (name) path[length++] = '/';
    }
    path[length] = 0;
    if (name) strncat(path, name, PATH_MAX - 1 - length);
}

/* Count an event. What has to happen instead of the call: 0 nothing, -1 it fails (errno is set), else `TORN`, `SHORT`. */
static int event(int kind, const char *call, int at, const char *name) {
    char path[2 * PATH_MAX], line[2 * PATH_MAX + 64];
    int before = errno;
    if (!(kind & classes)) return 0;
    locate(at, name, path);
    errno = before;
    if (!below(path)) return 0;
    long number = atomic_fetch_add(&events, 1);
    int here = number == chosen || (action == FAIL_FROM_HERE && number > chosen);
    if (record >= 0 && (action == COUNT || here)) {
        int size = snprintf(line, sizeof line, "%d %s %s\n", kind, call, path);
        syscall(SYS_write, record, line, size);
    }
    errno = before;
    if (!here || action == COUNT) return 0;
    if (action == SIGNAL || (action == TORN && kind != WRITE)) {
        kill(getpid(), argument);
        return 0;
    }
    if (action == SHORT) return kind & (WRITE | READ) ? SHORT : 0;
    if (action == TORN) return TORN;
    errno = argument;
    return -1;
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAILS(...) if (event(__VA_ARGS__) < 0) return -1

static int opening(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) ? OPEN_WRITE : OPEN_READ; }

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { \
    MODE NEXT(name); FAILS(opening(flags), "open", AT_FDCWD, path); return next(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    MODE NEXT(name); FAILS(opening(flags), "open", at, path); return next(at, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define TRANSFER(name, kind, call, parameters, arguments, half) ssize_t name parameters { \
    NEXT(name); int result = event(kind, call, file, NULL); if (result < 0) return -1; \
    if (result > 0 && size > 1) { ssize_t moved = next half; if (result == TORN) kill(getpid(), argument); return moved; } \
    return next arguments; }
TRANSFER(write, WRITE, "write", (int file, const void *from, size_t size), (file, from, size), (file, from, size / 2))
TRANSFER(pwrite, WRITE, "write", (int file, const void *from, size_t size, off_t place), (file, from, size, place),
         (file, from, size / 2, place))
TRANSFER(pwrite64, WRITE, "write", (int file, const void *from, size_t size, off64_t place), (file, from, size, place),
         (file, from, size / 2, place))
TRANSFER(writev, WRITE, "write", (int file, const struct iovec *from, int size), (file, from, size),
         (file, from, size / 2))
TRANSFER(read, READ, "read", (int file, void *to, size_t size), (file, to, size), (file, to, size / 2))
TRANSFER(pread, READ, "read", (int file, void *to, size_t size, off_t place), (file, to, size, place),
         (file, to, size / 2, place))
TRANSFER(pread64, READ, "read", (int file, void *to, size_t size, off64_t place), (file, to, size, place),
         (file, to, size / 2, place))
TRANSFER(sendfile, WRITE, "write", (int file, int from, off_t *place, size_t size), (file, from, place, size),
         (file, from, place, size / 2))
TRANSFER(sendfile64, WRITE, "write", (int file, int from, off64_t *place, size_t size), (file, from, place, size),
         (file, from, place, size / 2))
ssize_t copy_file_range(int from, off64_t *start, int file, off64_t *place, size_t size, unsigned flags) {
    NEXT(copy_file_range);
    int result = event(WRITE, "write", file, NULL);
    if (result < 0) return -1;
    ssize_t moved = next(from, start, file, place, result > 0 && size > 1 ? size / 2 : size, flags);
    if (result == TORN) kill(getpid(), argument);
    return moved;
}

#define ONE(name, kind, parameters, arguments, at, path) int name parameters { \
    NEXT(name); FAILS(kind, #name, at, path); return next arguments; }
ONE(rename, NAME, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ONE(renameat, NAME, (int a, const char *old, int b, const char *new), (a, old, b, new), b, new)
ONE(link, NAME, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ONE(linkat, NAME, (int a, const char *old, int b, const char *new, int f), (a, old, b, new, f), b, new)
ONE(symlink, NAME, (const char *old, const char *new), (old, new), AT_FDCWD, new)
ONE(unlink, NAME, (const char *path), (path), AT_FDCWD, path)
ONE(unlinkat, NAME, (int at, const char *path, int flags), (at, path, flags), at, path)
ONE(rmdir, NAME, (const char *path), (path), AT_FDCWD, path)
ONE(mkdir, NAME, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ONE(mkdirat, NAME, (int at, const char *path, mode_t mode), (at, path, mode), at, path)
ONE(chmod, NAME, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
ONE(fchmod, NAME, (int file, mode_t mode), (file, mode), file, NULL)
ONE(fchmodat, NAME, (int at, const char *path, mode_t mode, int f), (at, path, mode, f), at, path)
ONE(utimensat, NAME, (int at, const char *path, const struct timespec t[2], int f), (at, path, t, f), at, path)
ONE(truncate, WRITE, (const char *path, off_t size), (path, size), AT_FDCWD, path)
ONE(truncate64, WRITE, (const char *path, off64_t size), (path, size), AT_FDCWD, path)
ONE(ftruncate, WRITE, (int file, off_t size), (file, size), file, NULL)
ONE(ftruncate64, WRITE, (int file, off64_t size), (file, size), file, NULL)
ONE(fsync, SYNC, (int file), (file), file, NULL)
ONE(fdatasync, SYNC, (int file), (file), file, NULL)
