/* Loaded into a program (LD_PRELOAD) whose clock is to jump, or whose disk is to be slow.

   FAULTS_CONTROL names a file of two 64-bit numbers, which may change at any time: nanoseconds that are added to the
   wall clock, and microseconds that each fsync takes longer. Clocks that count from the boot stay as they are, as they
   do when a machine's clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *page = mmap(NULL, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        control = page;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

int clock_gettime(clockid_t clock, struct timespec *moment)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))next("clock_gettime");
    int answer = real(clock, moment);
    if (answer == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = moment->tv_nsec + control[0] % 1000000000;
        moment->tv_sec += control[0] / 1000000000;
        if (ns < 0) {
            ns += 1000000000;
            moment->tv_sec--;
        } else if (ns >= 1000000000) {
            ns -= 1000000000;
            moment->tv_sec++;
        }
        moment->tv_nsec = ns;
    }
    return answer;
}

time_t time(time_t *where)
{
    struct timespec moment;
    clock_gettime(CLOCK_REALTIME, &moment);
    if (where)
        *where = moment.tv_sec;
    return moment.tv_sec;
}

int gettimeofday(struct timeval *restrict where, void *restrict zone)
{
    struct timespec moment;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &moment);
    where->tv_sec = moment.tv_sec;
    where->tv_usec = moment.tv_nsec / 1000;
    return 0;
}

static void dawdle(void)
{
    if (control && control[1] > 0)
        usleep((useconds_t)control[1]);
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))next("fsync");
    dawdle();
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))next("fdatasync");
    dawdle();
    return real(fd);
}
