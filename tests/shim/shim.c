/*
 * A disk and a wall clock that misbehave on demand: put between a process and libc by LD_PRELOAD, for tests.
 *
 * It acts on the files below the folder QUORUN_SHIM_DIR only, and is driven through the control file QUORUN_SHIM_CONTROL,
 * which is mapped by the process and written by the test (see the enum below; tests/src/shim.rs is the other side).
 * Calls that change something on disk are numbered. The number, like all counters, starts anew with every process.
 *
 * POWER LOSS. With F_TRACK set before the process starts, everything that is not known to be on disk can be taken back:
 * - of each file the bytes and the length that unsynced writes have replaced; fsync and fdatasync of the file forget them,
 *   sync_file_range does not;
 * - names that were made, changed or removed, until their folder is synced. What is replaced or removed is kept for that
 *   in the folder QUORUN_SHIM_TRASH, by a hard link.
 * Without a seed all of it is taken back. With one, every unsynced sector (512 bytes) becomes, by chance, what it was
 * before or what was last written to it, the length of a file one of those that it had since its last sync, and of the
 * names only the latest changes are taken back, as many as chance has it: file systems keep names in the order in which
 * they were changed.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The fields of the control file: 64-bit integers of this machine, by number. */
enum {
    F_TRACK = 1,         /* keep what power loss takes back; read once, at the start */
    F_SYNC_DELAY = 2,    /* microseconds before each fsync and fdatasync */
    F_FULL = 3,          /* ENOSPC on writes and on new names */
    F_SPACE = 4,         /* 1 + the bytes that may still be written before ENOSPC; 0: no limit */
    F_FAIL_WRITES = 5,   /* EIO on writes */
    F_FAIL_SYNCS = 6,    /* EIO on fsync, fdatasync and sync_file_range */
    F_SHORT_WRITES = 7,  /* write about half of what is asked for */
    F_IGNORE_SYNCS = 8,  /* syncs succeed and do nothing: a disk that lies */
    F_KILL_AT = 9,       /* SIGKILL instead of this call */
    F_POWER_AT = 10,     /* power loss instead of this call */
    F_POWER_NOW = 11,    /* power loss at once */
    F_POWER_SEED = 12,   /* 0: all that is not synced is lost */
    F_CLOCK_OFFSET = 13, /* milliseconds, signed */
    F_CLOCK_RATE = 14,   /* of the wall clock, in millionths; 0: as it is */
    F_CLOCK_FROM = 15,   /* nanoseconds since 1970 from which on the rate counts */

    /* Counters. */
    F_CALLS = 32,       /* calls that change something on disk */
    F_SYNCS = 33,       /* fsync and fdatasync that succeeded */
    F_WRITES = 34,      /* writes that succeeded */
    F_BYTES = 35,       /* what they have written */
    F_FAULTS = 36,      /* calls that were made to fail or to do less */
    F_RANGE_SYNCS = 37, /* sync_file_range */
    F_FIRED = 38,       /* 1: killed, 2: power lost */
    F_UNDONE = 39,      /* sectors and names that power loss has taken back */
    F_PID = 40,         /* the process */

    F_FILTER = 128, /* 256 bytes: if there are any, only files whose path contains them are counted and have faults */
};

#define CONTROL_SIZE 4096
#define SECTOR 512
#define MAX_FDS 65536

/* A write that is not synced yet. */
struct change {
    struct change *next;
    uint64_t number;
    off_t offset;
    size_t length;
    /* The length of the file before. */
    off_t length_before;
    /* What lay there before, `length` bytes; zeros behind the old end. */
    unsigned char old[];
};

/* A file with unsynced writes. */
struct file {
    struct file *next;
    dev_t device;
    ino_t inode;
    /* Our own, open for reading and writing. */
    int fd;
    struct change *oldest, *newest;
};

enum kind { CREATED, RENAMED, UNLINKED, MADE, REMOVED };

/* A name that is not synced yet. */
struct name {
    struct name *before;
    uint64_t number;
    enum kind kind;
    char *path;
    /* Of a rename: what it was called. */
    char *from;
    /* Where what was replaced or removed is kept. */
    char *kept;
};

/* What is known of an open descriptor. */
struct open_fd {
    char *path;
    bool inside, folder;
};

static volatile int64_t *control;
static char given_dir[PATH_MAX], real_dir[PATH_MAX], trash[PATH_MAX];
static bool tracking;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct open_fd fds[MAX_FDS];
static struct file *files;
static struct name *names;
static uint64_t numbers;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

/* The calls themselves, without this library in between. */
#define RAW(call, ...) syscall(SYS_##call, __VA_ARGS__)

static int64_t field(int number) {
    return control ? __atomic_load_n(&control[number], __ATOMIC_SEQ_CST) : 0;
}

static void set(int number, int64_t value) {
    __atomic_store_n(&control[number], value, __ATOMIC_SEQ_CST);
}

static int64_t count(int number, int64_t by) {
    return __atomic_add_fetch(&control[number], by, __ATOMIC_SEQ_CST);
}

static int fail(int error) {
    count(F_FAULTS, 1);
    errno = error;
    return -1;
}

/* --- Which files --- */

static bool is_below(const char *path, const char *dir) {
    size_t length = strlen(dir);
    return length > 0 && strncmp(path, dir, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static bool is_inside(const char *path) {
    return is_below(path, given_dir) || is_below(path, real_dir);
}

/* The absolute path of what a call names, in `into` (PATH_MAX). */
static bool resolve(int at, const char *path, char *into) {
    if (!path) return false;
    size_t length = 0;
    if (path[0] != '/') {
        if (at == AT_FDCWD) {
            if (!getcwd(into, PATH_MAX)) return false;
            length = strlen(into);
        } else {
            char link[64] = "/proc/self/fd/", digits[16];
            int n = 0, value = at;
            if (at < 0) return false;
            do digits[n++] = (char)('0' + value % 10); while ((value /= 10) > 0);
            size_t end = strlen(link);
            while (n > 0) link[end++] = digits[--n];
            link[end] = 0;
            ssize_t got = RAW(readlinkat, AT_FDCWD, link, into, PATH_MAX - 1);
            if (got < 0) return false;
            length = (size_t)got;
        }
        if (length + 1 >= PATH_MAX) return false;
        into[length++] = '/';
    }
    size_t rest = strlen(path);
    while (rest > 1 && path[rest - 1] == '/') rest--;
    if (length + rest >= PATH_MAX) return false;
    memcpy(into + length, path, rest);
    into[length + rest] = 0;
    return true;
}

/* Whether a call on this path is ours; then its absolute path is in `into`. */
static bool ours(int at, const char *path, char *into) {
    return control && resolve(at, path, into) && is_inside(into);
}

static bool is_filtered(const char *path) {
    const char *filter = (const char *)(control + F_FILTER);
    return filter[0] != 0 && strstr(path, filter) == NULL;
}

static struct open_fd *inside_fd(int fd) {
    return control && fd >= 0 && fd < MAX_FDS && fds[fd].inside ? &fds[fd] : NULL;
}

/* --- Power loss --- */

static uint64_t random_state;

static uint64_t random_number(void) {
    random_state += 0x9e3779b97f4a7c15u;
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void write_all(int fd, const unsigned char *bytes, size_t length, off_t offset) {
    while (length > 0) {
        ssize_t done = RAW(pwrite64, fd, bytes, length, offset);
        if (done <= 0) {
            if (done < 0 && errno == EINTR) continue;
            return;
        }
        bytes += done;
        length -= (size_t)done;
        offset += done;
    }
}

/* Removes a folder and all that is in it. */
static void remove_tree(const char *path) {
    DIR *dir = opendir(path);
    if (dir) {
        struct dirent *entry;
        while ((entry = readdir(dir))) {
            char below[PATH_MAX];
            if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
            size_t length = strlen(path), rest = strlen(entry->d_name);
            if (length + 1 + rest >= PATH_MAX) continue;
            memcpy(below, path, length);
            below[length] = '/';
            memcpy(below + length + 1, entry->d_name, rest + 1);
            if (RAW(unlinkat, AT_FDCWD, below, 0) < 0 && (errno == EISDIR || errno == EPERM)) remove_tree(below);
        }
        closedir(dir);
    }
    RAW(unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

/* Takes back the writes to one file: all, or by chance. */
static void undo_writes(struct file *file, bool by_chance) {
    if (!file->oldest) return;
    off_t length = file->oldest->length_before;
    if (by_chance) {
        struct stat now;
        off_t choice = fstat(file->fd, &now) == 0 ? now.st_size : length;
        uint64_t seen = 1;
        for (struct change *change = file->oldest; change; change = change->next)
            if (random_number() % ++seen == 0) choice = change->length_before;
        length = choice;
    }
    /* The newest first: what a sector was before the oldest change is written last. */
    struct change *stack = NULL;
    for (struct change *change = file->oldest, *next; change; change = next) {
        next = change->next;
        change->next = stack;
        stack = change;
    }
    for (struct change *change = stack; change; change = change->next) {
        size_t at = 0;
        while (at < change->length) {
            off_t place = change->offset + (off_t)at;
            size_t size = SECTOR - (size_t)(place % SECTOR);
            if (size > change->length - at) size = change->length - at;
            if (!by_chance || random_number() % 2) {
                write_all(file->fd, change->old + at, size, place);
                count(F_UNDONE, 1);
            }
            at += size;
        }
    }
    RAW(ftruncate, file->fd, length);
}

static void undo_name(struct name *name) {
    switch (name->kind) {
    case CREATED: RAW(unlinkat, AT_FDCWD, name->path, 0); break;
    case RENAMED: RAW(renameat, AT_FDCWD, name->path, AT_FDCWD, name->from); break;
    case UNLINKED: break;
    case MADE: remove_tree(name->path); break;
    case REMOVED: RAW(mkdirat, AT_FDCWD, name->path, 0755); break;
    }
    if (name->kept) RAW(renameat, AT_FDCWD, name->kept, AT_FDCWD, name->path);
    count(F_UNDONE, 1);
}

/* The lock is held, and never let go. */
static void lose_power(void) __attribute__((noreturn));
static void lose_power(void) {
    uint64_t seed = (uint64_t)field(F_POWER_SEED);
    bool by_chance = seed != 0;
    random_state = seed;
    set(F_FIRED, 2);
    set(F_POWER_AT, 0);
    set(F_POWER_NOW, 0);
    for (struct file *file = files; file; file = file->next) undo_writes(file, by_chance);
    uint64_t pending = 0;
    for (struct name *name = names; name; name = name->before) pending++;
    uint64_t undone = by_chance ? random_number() % (pending + 1) : pending;
    for (struct name *name = names; undone > 0; name = name->before, undone--) undo_name(name);
    _exit(137);
}

/* Numbers a call, and ends the process where the test wants it. */
static void step(void) {
    int64_t number = count(F_CALLS, 1);
    int64_t kill_at = field(F_KILL_AT), power_at = field(F_POWER_AT);
    if (kill_at && number >= kill_at) {
        pthread_mutex_lock(&lock);
        set(F_FIRED, 1);
        set(F_KILL_AT, 0);
        for (;;) kill(getpid(), SIGKILL);
    }
    if (field(F_POWER_NOW) || (power_at && number >= power_at)) {
        pthread_mutex_lock(&lock);
        lose_power();
    }
}

static void *watch(void *unused) {
    (void)unused;
    for (;;) {
        struct timespec pause = {0, 2000000};
        nanosleep(&pause, NULL);
        if (field(F_POWER_NOW)) {
            pthread_mutex_lock(&lock);
            lose_power();
        }
    }
    return NULL;
}

/* --- Keeping what power loss takes back; the lock is held --- */

static struct file *find_file(int fd, const struct stat *is) {
    for (struct file *file = files; file; file = file->next)
        if (file->device == is->st_dev && file->inode == is->st_ino) return file;
    struct file *file = calloc(1, sizeof *file);
    char link[64] = "/proc/self/fd/", digits[16];
    int n = 0, value = fd;
    if (!file) abort();
    do digits[n++] = (char)('0' + value % 10); while ((value /= 10) > 0);
    size_t end = strlen(link);
    while (n > 0) link[end++] = digits[--n];
    link[end] = 0;
    file->fd = (int)RAW(openat, AT_FDCWD, link, O_RDWR | O_CLOEXEC, 0);
    if (file->fd < 0) {
        free(file);
        return NULL;
    }
    file->device = is->st_dev;
    file->inode = is->st_ino;
    file->next = files;
    files = file;
    return file;
}

/* Keeps what lies where something will be written, or cut off. */
static void keep_bytes(int fd, off_t offset, size_t length) {
    struct stat is;
    if (!tracking || fstat(fd, &is) < 0 || !S_ISREG(is.st_mode)) return;
    struct file *file = find_file(fd, &is);
    struct change *change = calloc(1, sizeof *change + length);
    if (!file || !change) abort();
    change->number = ++numbers;
    change->offset = offset;
    change->length = length;
    change->length_before = is.st_size;
    size_t have = 0;
    while (have < length) {
        ssize_t got = RAW(pread64, file->fd, change->old + have, length - have, offset + (off_t)have);
        if (got <= 0) break;
        have += (size_t)got;
    }
    if (file->newest) file->newest->next = change;
    else file->oldest = change;
    file->newest = change;
}

/* All changes of a file up to a number are on disk. */
static void forget_bytes(int fd, uint64_t number) {
    struct stat is;
    if (fstat(fd, &is) < 0) return;
    for (struct file **link = &files, *file; (file = *link); link = &file->next) {
        if (file->device != is.st_dev || file->inode != is.st_ino) continue;
        while (file->oldest && file->oldest->number <= number) {
            struct change *change = file->oldest;
            file->oldest = change->next;
            free(change);
        }
        if (!file->oldest) {
            *link = file->next;
            RAW(close, file->fd);
            free(file);
        }
        return;
    }
}

static char *copy(const char *text) {
    char *copied = text ? strdup(text) : NULL;
    if (text && !copied) abort();
    return copied;
}

/* A second name of a file that is about to be replaced or removed. */
static char *keep_file(const char *path) {
    struct stat is;
    if (!tracking || RAW(newfstatat, AT_FDCWD, path, &is, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(is.st_mode)) return NULL;
    char kept[PATH_MAX];
    uint64_t number = ++numbers;
    size_t length = strlen(trash);
    memcpy(kept, trash, length);
    kept[length++] = '/';
    for (int shift = 60; shift >= 0; shift -= 4) kept[length++] = "0123456789abcdef"[(number >> shift) & 15];
    kept[length] = 0;
    if (RAW(linkat, AT_FDCWD, path, AT_FDCWD, kept, 0) < 0) abort();
    return copy(kept);
}

static void keep_name(enum kind kind, const char *path, const char *from, char *kept) {
    /* The folder itself stays: the one that it lies in is not ours, and its syncs are not seen. */
    if (!tracking || !strcmp(path, given_dir) || !strcmp(path, real_dir)) return;
    struct name *name = calloc(1, sizeof *name);
    if (!name) abort();
    name->number = ++numbers;
    name->kind = kind;
    name->path = copy(path);
    name->from = copy(from);
    name->kept = kept;
    name->before = names;
    names = name;
}

static bool is_parent(const char *folder, const char *path) {
    size_t length = strlen(folder);
    return strncmp(folder, path, length) == 0 && path[length] == '/' && !strchr(path + length + 1, '/');
}

/* All names in a folder up to a number are on disk. */
static void forget_names(const char *folder, uint64_t number) {
    for (struct name **link = &names, *name; (name = *link);) {
        if (name->number <= number && is_parent(folder, name->path)) {
            if (name->kept) RAW(unlinkat, AT_FDCWD, name->kept, 0);
            *link = name->before;
            free(name->path);
            free(name->from);
            free(name->kept);
            free(name);
        } else {
            link = &name->before;
        }
    }
}

/* --- Start --- */

static void empty_trash(void) {
    remove_tree(trash);
    RAW(mkdirat, AT_FDCWD, trash, 0700);
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("QUORUN_SHIM_DIR"), *path = getenv("QUORUN_SHIM_CONTROL"), *bin = getenv("QUORUN_SHIM_TRASH");
    if (dir && path && bin && strlen(dir) < PATH_MAX && strlen(bin) < PATH_MAX - 32) {
        strcpy(given_dir, dir);
        strcpy(trash, bin);
        /* The folder itself need not be there yet. */
        char parent[PATH_MAX], real_parent[PATH_MAX];
        strcpy(parent, dir);
        char *slash = strrchr(parent, '/');
        if (slash && slash != parent) {
            *slash = 0;
            if (realpath(parent, real_parent) && strlen(real_parent) + strlen(slash + 1) + 2 < PATH_MAX) {
                strcpy(real_dir, real_parent);
                strcat(real_dir, "/");
                strcat(real_dir, slash + 1);
            }
        }
        int fd = (int)RAW(openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, CONTROL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd >= 0) RAW(close, fd);
        if (mapped == MAP_FAILED) {
            static const char complaint[] = "shim: the control file cannot be mapped\n";
            if (RAW(write, 2, complaint, sizeof complaint - 1) < 0) { /* then nobody listens */ }
            _exit(1);
        }
        volatile int64_t *fields = mapped;
        for (int number = F_CALLS; number <= F_PID; number++) fields[number] = 0;
        tracking = fields[F_TRACK] != 0;
        if (tracking) empty_trash();
        control = fields;
        set(F_PID, getpid());
        pthread_t thread;
        if (tracking && pthread_create(&thread, NULL, watch, NULL) != 0) abort();
    }
    /* It is for this process only. */
    unsetenv("LD_PRELOAD");
    unsetenv("QUORUN_SHIM_DIR");
    unsetenv("QUORUN_SHIM_CONTROL");
    unsetenv("QUORUN_SHIM_TRASH");
}

/* --- Names --- */

static bool exists(const char *path) {
    struct stat is;
    int before = errno;
    bool there = RAW(newfstatat, AT_FDCWD, path, &is, AT_SYMLINK_NOFOLLOW) == 0;
    errno = before;
    return there;
}

static bool no_room(const char *path) {
    return !is_filtered(path) && (field(F_FULL) || field(F_SPACE) == 1);
}

static int open_any(int at, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    bool mine = ours(at, path, full);
    if (!mine) {
        int fd = (int)RAW(openat, at, path, flags, mode);
        if (fd >= 0 && fd < MAX_FDS && fds[fd].inside) {
            pthread_mutex_lock(&lock);
            fds[fd].inside = false;
            pthread_mutex_unlock(&lock);
        }
        return fd;
    }
    bool creates = (flags & O_CREAT) && !exists(full);
    bool cuts = !creates && (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY;
    if (!is_filtered(full) && (creates || cuts)) step();
    if (creates && no_room(full)) return fail(ENOSPC);
    pthread_mutex_lock(&lock);
    if (cuts && tracking) {
        int old = (int)RAW(openat, AT_FDCWD, full, O_RDWR | O_CLOEXEC, 0);
        struct stat is;
        if (old >= 0) {
            if (fstat(old, &is) == 0 && is.st_size > 0) keep_bytes(old, 0, (size_t)is.st_size);
            RAW(close, old);
        }
    }
    int fd = (int)RAW(openat, at, path, flags, mode);
    int error = errno;
    if (fd >= 0) {
        if (creates) keep_name(CREATED, full, NULL, NULL);
        if (fd < MAX_FDS) {
            struct stat is;
            free(fds[fd].path);
            fds[fd].path = copy(full);
            fds[fd].folder = fstat(fd, &is) == 0 && S_ISDIR(is.st_mode);
            fds[fd].inside = true;
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_any(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_any(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_any(at, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    if (inside_fd(fd)) {
        pthread_mutex_lock(&lock);
        fds[fd].inside = false;
        pthread_mutex_unlock(&lock);
    }
    return (int)RAW(close, fd);
}

int renameat2(int old_at, const char *old_path, int new_at, const char *new_path, unsigned flags) {
    char from[PATH_MAX], to[PATH_MAX];
    if (!ours(old_at, old_path, from) || !ours(new_at, new_path, to))
        return (int)RAW(renameat2, old_at, old_path, new_at, new_path, flags);
    if (!is_filtered(to)) step();
    pthread_mutex_lock(&lock);
    char *kept = keep_file(to);
    int result = (int)RAW(renameat2, old_at, old_path, new_at, new_path, flags);
    int error = errno;
    if (result == 0) keep_name(RENAMED, to, from, kept);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int renameat(int old_at, const char *old_path, int new_at, const char *new_path) {
    return renameat2(old_at, old_path, new_at, new_path, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int at, const char *path, int flags) {
    char full[PATH_MAX];
    if (!ours(at, path, full)) return (int)RAW(unlinkat, at, path, flags);
    if (!is_filtered(full)) step();
    pthread_mutex_lock(&lock);
    bool folder = (flags & AT_REMOVEDIR) != 0;
    char *kept = folder ? NULL : keep_file(full);
    int result = (int)RAW(unlinkat, at, path, flags);
    int error = errno;
    if (result == 0) keep_name(folder ? REMOVED : UNLINKED, full, NULL, kept);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!ours(at, path, full)) return (int)RAW(mkdirat, at, path, mode);
    if (!exists(full)) {
        if (!is_filtered(full)) step();
        if (no_room(full)) return fail(ENOSPC);
    }
    pthread_mutex_lock(&lock);
    int result = (int)RAW(mkdirat, at, path, mode);
    int error = errno;
    if (result == 0) keep_name(MADE, full, NULL, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* --- Bytes --- */

/* How much of a write may be done: less than asked for, or -1 with errno. */
static ssize_t allowed(const char *path, size_t length) {
    if (is_filtered(path) || length == 0) return (ssize_t)length;
    if (field(F_FAIL_WRITES)) return fail(EIO);
    if (field(F_FULL)) return fail(ENOSPC);
    if (field(F_SHORT_WRITES) && length > 1) {
        count(F_FAULTS, 1);
        length = (length + 1) / 2;
    }
    int64_t space = field(F_SPACE);
    while (space > 0) {
        size_t left = (size_t)(space - 1);
        if (left == 0) return fail(ENOSPC);
        size_t now = length < left ? length : left;
        if (__atomic_compare_exchange_n(&control[F_SPACE], &space, space - (int64_t)now, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
            if (now < length) count(F_FAULTS, 1);
            return (ssize_t)now;
        }
    }
    return (ssize_t)length;
}

/* A write at an offset, or at the place of the descriptor (-1). */
static ssize_t write_any(int fd, const void *bytes, size_t length, off_t offset) {
    struct open_fd *is = inside_fd(fd);
    if (is->folder) return RAW(write, fd, bytes, length);
    bool counted = !is_filtered(is->path);
    if (counted) step();
    ssize_t most = allowed(is->path, length);
    if (most < 0) return -1;
    pthread_mutex_lock(&lock);
    off_t place = offset;
    if (place < 0 && tracking) {
        struct stat now;
        int flags = (int)RAW(fcntl, fd, F_GETFL);
        place = (flags & O_APPEND) && fstat(fd, &now) == 0 ? now.st_size : RAW(lseek, fd, 0, SEEK_CUR);
    }
    if (place >= 0) keep_bytes(fd, place, (size_t)most);
    ssize_t done = offset < 0 ? RAW(write, fd, bytes, (size_t)most) : RAW(pwrite64, fd, bytes, (size_t)most, offset);
    int error = errno;
    pthread_mutex_unlock(&lock);
    if (done >= 0 && counted) {
        count(F_WRITES, 1);
        count(F_BYTES, done);
    }
    errno = error;
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    return inside_fd(fd) ? write_any(fd, bytes, length, -1) : RAW(write, fd, bytes, length);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return inside_fd(fd) ? write_any(fd, bytes, length, offset) : RAW(pwrite64, fd, bytes, length, offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) { return pwrite(fd, bytes, length, offset); }

/* Of several buffers the first that holds something is written: fewer bytes than asked for are always allowed. */
static const struct iovec *first_full(const struct iovec *vectors, int number) {
    for (int i = 0; i < number; i++)
        if (vectors[i].iov_len > 0) return &vectors[i];
    return NULL;
}
ssize_t writev(int fd, const struct iovec *vectors, int number) {
    if (!inside_fd(fd)) return RAW(writev, fd, vectors, number);
    const struct iovec *first = first_full(vectors, number);
    return first ? write_any(fd, first->iov_base, first->iov_len, -1) : 0;
}
ssize_t pwritev(int fd, const struct iovec *vectors, int number, off_t offset) {
    if (!inside_fd(fd)) return RAW(pwritev, fd, vectors, number, offset, 0);
    const struct iovec *first = first_full(vectors, number);
    return first ? write_any(fd, first->iov_base, first->iov_len, offset) : 0;
}
ssize_t pwritev64(int fd, const struct iovec *vectors, int number, off64_t offset) {
    return pwritev(fd, vectors, number, offset);
}

/* Callers then copy by reading and writing. */
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags) {
    if (inside_fd(to)) {
        errno = ENOSYS;
        return -1;
    }
    return RAW(copy_file_range, from, from_at, to, to_at, length, flags);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t length) {
    if (inside_fd(to)) {
        errno = ENOSYS;
        return -1;
    }
    return RAW(sendfile, to, from, offset, length);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t length) { return sendfile(to, from, offset, length); }

int ftruncate(int fd, off_t length) {
    struct open_fd *is = inside_fd(fd);
    if (!is) return (int)RAW(ftruncate, fd, length);
    if (!is_filtered(is->path)) {
        step();
        if (field(F_FAIL_WRITES)) return fail(EIO);
    }
    pthread_mutex_lock(&lock);
    struct stat now;
    if (tracking && fstat(fd, &now) == 0) {
        if (length < now.st_size) keep_bytes(fd, length, (size_t)(now.st_size - length));
        else if (length > now.st_size) keep_bytes(fd, now.st_size, 0);
    }
    int result = (int)RAW(ftruncate, fd, length);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (inside_fd(fd)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)RAW(fallocate, fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

/* --- Syncs --- */

static void wait_like_a_slow_disk(void) {
    int64_t waited = 0;
    while (waited < field(F_SYNC_DELAY)) {
        int64_t left = field(F_SYNC_DELAY) - waited;
        int64_t now = left < 10000 ? left : 10000;
        struct timespec pause = {0, now * 1000};
        nanosleep(&pause, NULL);
        waited += now;
    }
}

static int sync_any(int fd, bool data_only) {
    struct open_fd *is = inside_fd(fd);
    if (!is) return (int)(data_only ? RAW(fdatasync, fd) : RAW(fsync, fd));
    bool counted = !is_filtered(is->path);
    if (counted) {
        step();
        wait_like_a_slow_disk();
        if (field(F_FAIL_SYNCS)) return fail(EIO);
        if (field(F_IGNORE_SYNCS)) {
            count(F_FAULTS, 1);
            return 0;
        }
    }
    pthread_mutex_lock(&lock);
    uint64_t covered = numbers;
    pthread_mutex_unlock(&lock);
    int result = (int)(data_only ? RAW(fdatasync, fd) : RAW(fsync, fd));
    if (result < 0) return result;
    if (tracking) {
        pthread_mutex_lock(&lock);
        if (is->folder) forget_names(is->path, covered);
        else forget_bytes(fd, covered);
        pthread_mutex_unlock(&lock);
    }
    if (counted) count(F_SYNCS, 1);
    return 0;
}
int fsync(int fd) { return sync_any(fd, false); }
int fdatasync(int fd) { return sync_any(fd, true); }

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    struct open_fd *is = inside_fd(fd);
    if (is && !is_filtered(is->path)) {
        step();
        count(F_RANGE_SYNCS, 1);
        if (field(F_FAIL_SYNCS)) return fail(EIO);
    }
    return (int)RAW(sync_file_range, fd, offset, length, flags);
}

/* --- The wall clock --- */

static void bend(int64_t *seconds, int64_t *nanoseconds) {
    int64_t offset = field(F_CLOCK_OFFSET), rate = field(F_CLOCK_RATE), from = field(F_CLOCK_FROM);
    if (offset == 0 && rate == 0) return;
    __int128 now = (__int128)*seconds * 1000000000 + *nanoseconds;
    if (rate != 0 && now > from) now = from + (now - from) * rate / 1000000;
    now += (__int128)offset * 1000000;
    if (now < 0) now = 0;
    *seconds = (int64_t)(now / 1000000000);
    *nanoseconds = (int64_t)(now % 1000000000);
}

static int read_clock(clockid_t clock, struct timespec *time) {
    if (!real_clock_gettime) *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    return real_clock_gettime ? real_clock_gettime(clock, time) : (int)RAW(clock_gettime, clock, time);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = read_clock(clock, time);
    if (result == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t seconds = time->tv_sec, nanoseconds = time->tv_nsec;
        bend(&seconds, &nanoseconds);
        time->tv_sec = seconds;
        time->tv_nsec = nanoseconds;
    }
    return result;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) < 0) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *into) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) < 0) return -1;
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
