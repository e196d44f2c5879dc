/* Everything a process and its children do to files below one directory, as an ordered trace in one file.
 *
 *     POWER_TRACE  the trace; every record is appended by one write
 *     POWER_ROOT   the directory (a real path, without symbolic links)
 *     POWER_KILL   n: this process (not its children) is killed when it has done n steps, wherever that is;
 *                  n+: when it has done n steps and is between the write and the flush of a write through O_DSYNC
 *
 * It is loaded by LD_PRELOAD, but it does not replace the functions of libc: tantivy renames by a system call of its
 * own, which no preloaded function sees. A seccomp filter stops every system call that changes a file, from whatever
 * code it comes (SIGSYS), and the handler does it and records it. Its own calls carry MAGIC as a sixth argument that
 * none of them has, and so pass the filter, which children inherit.
 *
 * Record order is real order. A change and its record are made under one lock of all processes; of a flush, its start
 * and its end are two records: what was written before its start is on the disk after its end. A write through O_DSYNC
 * is done as what it is, a write and a flush, so that a process can be killed and the power be lost between them.
 *
 * What could change a file unseen is recorded as an escape, which makes the trace worthless: shared writable mappings
 * (but of LMDB's lock files, which say only who reads), links, files without a name.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>
#include <dlfcn.h>

#define MAGIC 0x706f776572211337UL
#define PASSED MAP_STACK /* Of no effect; mmap uses its sixth argument. */
#define PATH_BYTES 4096
#define VECTORS_MAX 256

enum kind { CREATE = 1, MKDIR, WRITE, RESIZE, SYNC_BEGIN, SYNC_END, RENAME, REMOVE, LINK, MARK, ESCAPE };

struct head {
    uint32_t kind;
    uint32_t process;
    uint64_t inode;
    uint64_t number; /* WRITE: offset. RESIZE: size. SYNC_*: which flush. */
    uint32_t path_bytes;
    uint32_t data_bytes;
};

struct shared {
    pthread_mutex_t lock;
    uint64_t flushes;
};

static char root[PATH_BYTES];
static size_t root_bytes;
static int trace = -1;
static struct shared *shared;
static long kill_after; /* 0: not. */
static int kill_unflushed;
static long steps;

/* --- System calls that pass the filter -------------------------------------------------------------------------- */

static long passing(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#else
#error "registers of this processor are not known"
#endif
}

static long done(long number, const long *a) { return passing(number, a[0], a[1], a[2], a[3], a[4], MAGIC); }

static void fail(const char *why) {
    passing(SYS_write, 2, (long)why, (long)strlen(why), 0, 0, MAGIC);
    passing(SYS_kill, getpid(), SIGKILL, 0, 0, 0, 0);
}

/* --- Records ---------------------------------------------------------------------------------------------------- */

static void record(enum kind kind, uint64_t inode, uint64_t number, const char *path, const char *data);

static void take_lock(void) {
    if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD) {
        pthread_mutex_consistent(&shared->lock);
        record(ESCAPE, 0, 0, root, "a change of a process that was killed in it");
    }
}

static void give_lock(void) { pthread_mutex_unlock(&shared->lock); }

static void record_parts(enum kind kind, uint64_t inode, uint64_t number, const char *path, const struct iovec *parts,
                         int count, size_t bytes) {
    struct iovec vectors[VECTORS_MAX + 2];
    struct head head = {kind, (uint32_t)getpid(), inode, number, (uint32_t)strlen(path), (uint32_t)bytes};
    size_t all = sizeof head + head.path_bytes + bytes;
    int used = 2;
    vectors[0] = (struct iovec){&head, sizeof head};
    vectors[1] = (struct iovec){(void *)path, head.path_bytes};
    for (int n = 0; n < count && bytes > 0; n++) {
        size_t taken = parts[n].iov_len < bytes ? parts[n].iov_len : bytes;
        vectors[used++] = (struct iovec){parts[n].iov_base, taken};
        bytes -= taken;
    }
    if (passing(SYS_writev, trace, (long)vectors, used, 0, 0, MAGIC) != (long)all)
        fail("the trace cannot be written\n");
    __atomic_add_fetch(&steps, 1, __ATOMIC_SEQ_CST);
}

static void record(enum kind kind, uint64_t inode, uint64_t number, const char *path, const char *data) {
    struct iovec part = {(void *)data, data == NULL ? 0 : strlen(data)};
    record_parts(kind, inode, number, path, &part, 1, part.iov_len);
}

static void escape(const char *path, const char *how) {
    take_lock();
    record(ESCAPE, 0, 0, path, how);
    give_lock();
}

/* After a step, with the lock given back. */
static void die_if_due(int unflushed) {
    if (kill_after > 0 && kill_unflushed == unflushed && __atomic_load_n(&steps, __ATOMIC_SEQ_CST) >= kill_after)
        passing(SYS_kill, getpid(), SIGKILL, 0, 0, 0, 0);
}

/* --- Paths ------------------------------------------------------------------------------------------------------ */

static int is_below(const char *path) {
    return strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == 0);
}

static int link_target(const char *link, char *path) {
    ssize_t bytes = readlink(link, path, PATH_BYTES - 1);
    if (bytes < 0)
        return 0;
    path[bytes] = 0;
    return path[0] == '/';
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return link_target(link, path) && is_below(path);
}

static int path_at(int directory, const char *name, char *path) {
    if (name == NULL)
        return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_BYTES, "%s", name);
    } else {
        char link[64], base[PATH_BYTES];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        if (!link_target(link, base) || strlen(base) + strlen(name) + 2 > PATH_BYTES)
            return 0;
        size_t bytes = strlen(base);
        memcpy(path, base, bytes);
        path[bytes] = '/';
        strcpy(path + bytes + 1, name);
    }
    size_t bytes = strlen(path);
    while (bytes > 1 && path[bytes - 1] == '/')
        path[--bytes] = 0;
    if (!is_below(path))
        return 0;
    if (strstr(path, "/../") != NULL || strstr(path, "/./") != NULL || strstr(path, "//") != NULL)
        escape(path, "a path that is not plain");
    return 1;
}

/* --- What is traced --------------------------------------------------------------------------------------------- */

static long flushed(long number, int descriptor, uint64_t inode, const char *path) {
    take_lock();
    uint64_t flush = ++shared->flushes;
    record(SYNC_BEGIN, inode, flush, path, NULL);
    give_lock();
    die_if_due(0);
    long result = passing(number, descriptor, 0, 0, 0, 0, MAGIC);
    if (result == 0) {
        take_lock();
        record(SYNC_END, inode, flush, path, NULL);
        give_lock();
    }
    die_if_due(0);
    return result;
}

static long flush(long number, const long *a) {
    char path[PATH_BYTES];
    struct stat found;
    if (!path_of((int)a[0], path) || fstat((int)a[0], &found) != 0)
        return done(number, a);
    return flushed(number, (int)a[0], found.st_ino, path);
}

static long write_parts(long number, const long *a, const struct iovec *parts, int count, long at) {
    char path[PATH_BYTES], link[64];
    struct stat found;
    int to = (int)a[0];
    if (!path_of(to, path) || fstat(to, &found) != 0 || !S_ISREG(found.st_mode))
        return done(number, a);
    if (count > VECTORS_MAX)
        return -EINVAL;
    int flags = fcntl(to, F_GETFL), through = to;
    take_lock();
    fstat(to, &found);
    long offset = flags & O_APPEND ? found.st_size : at >= 0 ? at : lseek(to, 0, SEEK_CUR);
    if (flags & O_DSYNC) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", to);
        through = (int)passing(SYS_openat, AT_FDCWD, (long)link, O_WRONLY | O_CLOEXEC, 0, 0, MAGIC);
    }
    long written = passing(SYS_pwritev, through, (long)parts, count, offset, 0, MAGIC);
    if (written > 0) {
        record_parts(WRITE, found.st_ino, (uint64_t)offset, path, parts, count, (size_t)written);
        if (at < 0)
            lseek(to, offset + written, SEEK_SET);
    }
    if (through != to)
        close(through);
    give_lock();
    die_if_due(0);
    if (written > 0 && flags & O_DSYNC) {
        die_if_due(1);
        long result = flushed((flags & O_SYNC) == O_SYNC ? SYS_fsync : SYS_fdatasync, to, found.st_ino, path);
        return result < 0 ? result : written;
    }
    return written;
}

static long write_one(long number, const long *a, long at) {
    struct iovec part = {(void *)a[1], (size_t)a[2]};
    return write_parts(number, a, &part, 1, at);
}

static long open_at(long number, const long *a, int directory, const char *name, int flags) {
    char path[PATH_BYTES];
    struct stat before, found;
    if (!path_at(directory, name, path))
        return done(number, a);
    if ((flags & O_TMPFILE) == O_TMPFILE)
        escape(path, "a file without a name");
    take_lock();
    int existed = stat(path, &before) == 0;
    long opened = done(number, a);
    if (opened >= 0 && fstat((int)opened, &found) == 0 && S_ISREG(found.st_mode)) {
        if (!existed)
            record(CREATE, found.st_ino, 0, path, NULL);
        else if (flags & O_TRUNC && before.st_size > 0)
            record(RESIZE, found.st_ino, 0, path, NULL);
    }
    give_lock();
    die_if_due(0);
    return opened;
}

static long resize(long number, const long *a, const char *path) {
    struct stat found;
    take_lock();
    long result = done(number, a);
    if (result == 0 && (number == SYS_truncate ? stat(path, &found) : fstat((int)a[0], &found)) == 0)
        record(RESIZE, found.st_ino, (uint64_t)found.st_size, path, NULL);
    give_lock();
    die_if_due(0);
    return result;
}

static long named(long number, const long *a, enum kind kind, int directory, const char *name) {
    char path[PATH_BYTES];
    struct stat found = {0};
    if (!path_at(directory, name, path))
        return done(number, a);
    take_lock();
    long result = done(number, a);
    if (result == 0) {
        if (kind == MKDIR)
            stat(path, &found);
        record(kind, found.st_ino, 0, path, NULL);
    }
    give_lock();
    die_if_due(0);
    return result;
}

static long named_twice(long number, const long *a, enum kind kind, int from, const char *old, int to,
                        const char *name) {
    char path[PATH_BYTES], target[PATH_BYTES];
    int leaves = path_at(from, old, path), enters = path_at(to, name, target);
    if (!leaves && !enters)
        return done(number, a);
    if (leaves != enters)
        escape(leaves ? path : target, "a name that crosses the border");
    take_lock();
    long result = done(number, a);
    if (result == 0)
        record(kind, 0, 0, path, target);
    give_lock();
    die_if_due(0);
    return result;
}

static long map(const long *a) {
    char path[PATH_BYTES];
    if (path_of((int)a[4], path)) {
        const char *name = strrchr(path, '/') + 1;
        if (strcmp(name, "lock.mdb") != 0)
            escape(path, "a shared writable mapping");
    }
    return passing(SYS_mmap, a[0], a[1], a[2], a[3] | PASSED, a[4], a[5]);
}

static long traced(long number, const long *a) {
    char path[PATH_BYTES];
    switch (number) {
    case SYS_write:
        return write_one(number, a, -1);
    case SYS_pwrite64:
        return write_one(number, a, a[3]);
    case SYS_writev:
        return write_parts(number, a, (const struct iovec *)a[1], (int)a[2], -1);
    case SYS_pwritev:
        return write_parts(number, a, (const struct iovec *)a[1], (int)a[2], a[3]);
    case SYS_fsync:
    case SYS_fdatasync:
        return flush(number, a);
    case SYS_openat:
        return open_at(number, a, (int)a[0], (const char *)a[1], (int)a[2]);
    case SYS_ftruncate:
        return path_of((int)a[0], path) ? resize(number, a, path) : done(number, a);
    case SYS_truncate:
        return path_at(AT_FDCWD, (const char *)a[0], path) ? resize(number, a, path) : done(number, a);
    case SYS_fallocate:
        if (!path_of((int)a[0], path))
            return done(number, a);
        if (a[1] & ~FALLOC_FL_KEEP_SIZE)
            escape(path, "a hole");
        return resize(number, a, path);
    case SYS_sendfile:
        return path_of((int)a[0], path) ? -EINVAL : done(number, a); /* Who calls it writes instead. */
    case SYS_mkdirat:
        return named(number, a, MKDIR, (int)a[0], (const char *)a[1]);
    case SYS_unlinkat:
        return named(number, a, REMOVE, (int)a[0], (const char *)a[1]);
    case SYS_linkat:
        return named_twice(number, a, LINK, (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3]);
    case SYS_symlinkat:
        if (path_at((int)a[1], (const char *)a[2], path))
            escape(path, "a symbolic link");
        return done(number, a);
    case SYS_renameat2:
        if (a[4] & RENAME_EXCHANGE && path_at((int)a[0], (const char *)a[1], path))
            escape(path, "an exchange of names");
        __attribute__((fallthrough));
#ifdef SYS_renameat
    case SYS_renameat:
#endif
        return named_twice(number, a, RENAME, (int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3]);
    case SYS_mmap:
        return map(a);
#ifdef SYS_open
    case SYS_open:
        return open_at(number, a, AT_FDCWD, (const char *)a[0], (int)a[1]);
    case SYS_creat:
        return open_at(number, a, AT_FDCWD, (const char *)a[0], O_CREAT | O_WRONLY | O_TRUNC);
    case SYS_mkdir:
        return named(number, a, MKDIR, AT_FDCWD, (const char *)a[0]);
    case SYS_unlink:
    case SYS_rmdir:
        return named(number, a, REMOVE, AT_FDCWD, (const char *)a[0]);
    case SYS_rename:
        return named_twice(number, a, RENAME, AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1]);
    case SYS_link:
        return named_twice(number, a, LINK, AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1]);
    case SYS_symlink:
        if (path_at(AT_FDCWD, (const char *)a[1], path))
            escape(path, "a symbolic link");
        return done(number, a);
#endif
    }
    fail("a system call that is stopped and not traced\n");
    return -ENOSYS;
}

/* --- The filter and its handler --------------------------------------------------------------------------------- */

static const int stopped[] = {
    SYS_write,       SYS_pwrite64,  SYS_writev,    SYS_pwritev, SYS_fsync,   SYS_fdatasync, SYS_ftruncate,
    SYS_truncate,    SYS_fallocate, SYS_sendfile,  SYS_mkdirat, SYS_unlinkat, SYS_linkat,   SYS_symlinkat,
    SYS_renameat2,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#ifdef SYS_open
    SYS_creat,       SYS_mkdir,     SYS_unlink,    SYS_rmdir,   SYS_rename,  SYS_link,      SYS_symlink,
#endif
};

/* Callers of these fall back on the others. */
static const int unknown[] = {SYS_openat2, SYS_copy_file_range, SYS_pwritev2, SYS_io_uring_setup};

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#else
#define MACHINE AUDIT_ARCH_AARCH64
#endif

#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define LOW(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n))
#define HIGH(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n) + 4)
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), yes, no)
#define HAS(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (uint32_t)(bits), yes, no)
#define SAY(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define UNLESS_OURS LOW(5), IS(MAGIC, 0, 2), HIGH(5), IS(MAGIC >> 32, 1, 0), SAY(SECCOMP_RET_TRAP), SAY(SECCOMP_RET_ALLOW)
#define CHANGES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

static struct sock_filter filter[512];
static unsigned short filter_length;

static void add(const struct sock_filter *part, size_t bytes) {
    memcpy(filter + filter_length, part, bytes);
    filter_length += (unsigned short)(bytes / sizeof *part);
}

#define ADD(...) add((const struct sock_filter[]){__VA_ARGS__}, sizeof((const struct sock_filter[]){__VA_ARGS__}))

static void make_filter(void) {
    ADD(FIELD(arch), IS(MACHINE, 1, 0), SAY(SECCOMP_RET_ALLOW), FIELD(nr));
    for (size_t n = 0; n < sizeof unknown / sizeof *unknown; n++)
        ADD(IS(unknown[n], 0, 1), SAY(SECCOMP_RET_ERRNO | ENOSYS));
    for (size_t n = 0; n < sizeof stopped / sizeof *stopped; n++)
        ADD(IS(stopped[n], 0, 6), UNLESS_OURS);
    ADD(IS(SYS_openat, 0, 9), LOW(2), HAS(CHANGES, 1, 0), SAY(SECCOMP_RET_ALLOW), UNLESS_OURS);
#ifdef SYS_open
    ADD(IS(SYS_open, 0, 9), LOW(1), HAS(CHANGES, 1, 0), SAY(SECCOMP_RET_ALLOW), UNLESS_OURS);
#endif
    ADD(IS(SYS_mmap, 0, 9), LOW(2), HAS(PROT_WRITE, 0, 6), LOW(3), HAS(MAP_SHARED, 0, 4), HAS(PASSED, 3, 0), LOW(4),
        IS(-1, 1, 0), SAY(SECCOMP_RET_TRAP), SAY(SECCOMP_RET_ALLOW));
    ADD(SAY(SECCOMP_RET_ALLOW));
}

static void handle(int signal, siginfo_t *info, void *context) {
    (void)signal;
    int before = errno;
    ucontext_t *at = context;
#if defined(__x86_64__)
    greg_t *r = at->uc_mcontext.gregs;
    const long a[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    r[REG_RAX] = traced(info->si_syscall, a);
#else
    unsigned long long *r = at->uc_mcontext.regs;
    const long a[6] = {(long)r[0], (long)r[1], (long)r[2], (long)r[3], (long)r[4], (long)r[5]};
    r[0] = (unsigned long long)traced(info->si_syscall, a);
#endif
    errno = before;
}

/* A system call that is stopped while its signal is blocked ends the process, so nobody may block it. */
static int mask(const char *name, int how, const sigset_t *set, sigset_t *old) {
    int (*next)(int, const sigset_t *, sigset_t *) =
        (int (*)(int, const sigset_t *, sigset_t *))(intptr_t)dlsym(RTLD_NEXT, name);
    sigset_t without;
    if (set != NULL && how != SIG_UNBLOCK) {
        without = *set;
        sigdelset(&without, SIGSYS);
        set = &without;
    }
    return next(how, set, old);
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *old) { return mask("pthread_sigmask", how, set, old); }
int sigprocmask(int how, const sigset_t *set, sigset_t *old) { return mask("sigprocmask", how, set, old); }

/* --- Beginning -------------------------------------------------------------------------------------------------- */

static struct shared *share(const char *path, int flags) {
    char beside[PATH_BYTES];
    snprintf(beside, sizeof beside, "%s.lock", path);
    int file = open(beside, flags | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0 || (flags && ftruncate(file, sizeof(struct shared)) != 0))
        return NULL;
    void *found = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return found == MAP_FAILED ? NULL : found;
}

/* Called by who reads the trace, before the first process. */
int make_trace(const char *path) {
    pthread_mutexattr_t kind;
    struct shared *made = share(path, O_CREAT | O_TRUNC);
    if (made == NULL)
        return errno;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    int result = pthread_mutex_init(&made->lock, &kind);
    munmap(made, sizeof *made);
    return result;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_TRACE"), *below = getenv("POWER_ROOT"), *after = getenv("POWER_KILL");
    if (path == NULL || below == NULL)
        return;
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    sigaction(SIGSYS, &action, NULL);
    root_bytes = (size_t)snprintf(root, sizeof root, "%s", below);
    shared = share(path, 0);
    int file = (int)passing(SYS_openat, AT_FDCWD, (long)path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600, 0, MAGIC);
    if (file < 0 || shared == NULL)
        fail("the trace cannot be opened\n");
    trace = fcntl(file, F_DUPFD_CLOEXEC, 700); /* Where nobody who counts descriptors looks. */
    close(file);
    if (after != NULL) {
        char *rest;
        kill_after = strtol(after, &rest, 10);
        kill_unflushed = *rest == '+';
        unsetenv("POWER_KILL");
    }
    if (getenv("POWER_FILTERED") != NULL)
        return; /* The filter came with the process that started this one. */
    make_filter();
    struct sock_fprog program = {filter_length, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
        fail("system calls cannot be filtered here (seccomp)\n");
    setenv("POWER_FILTERED", "1", 1);
}
