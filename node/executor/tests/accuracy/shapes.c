/* Programs of several shapes: what they use is known beforehand, as far as that is possible. Without an argument, nothing. */
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void touch(size_t mebibytes) {
    /* volatile: what nobody reads would not be written */
    volatile char *memory = malloc(mebibytes << 20);
    if (!memory)
        exit(3);
    for (size_t at = 0; at < mebibytes << 20; at += 512)
        memory[at] = 1;
}

static int used(long milliseconds) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000 >= milliseconds;
}

static void compute(long milliseconds) {
    volatile unsigned long value = 1;
    while (!used(milliseconds))
        for (int i = 0; i < 100000; i++)
            value = value * 6364136223846793005UL + 1442695040888963407UL;
}

static void call(long milliseconds) {
    while (!used(milliseconds))
        for (int i = 0; i < 1000; i++)
            syscall(SYS_getppid);
}

static void children(int number) {
    for (int i = 0; i < number; i++) {
        if (fork() == 0) {
            touch(40);
            compute(400);
            _exit(0);
        }
    }
    while (wait(NULL) > 0)
        ;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 0;
    long number = atol(argv[2]);
    if (!strcmp(argv[1], "touch"))
        touch(number);
    else if (!strcmp(argv[1], "compute"))
        compute(number);
    else if (!strcmp(argv[1], "call"))
        call(number);
    else if (!strcmp(argv[1], "children"))
        children(number);
    else
        return 2;
    return 0;
}
