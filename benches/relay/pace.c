/* An open-loop HTTP/1.1 load: pace PORT RATE SECONDS CONNECTIONS.
 *
 * A request is due every 1/RATE seconds whether or not earlier ones were answered, and its time counts from when it was
 * due, so that a stall counts for all that waited behind it. Answers are taken to have a Content-Length. Prints the
 * number of answers, then p50, p99 and p99.9 in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static const char ask[] = "GET / HTTP/1.1\r\nHost: server\r\n\r\n";

struct conn {
    int fd, busy;
    int64_t due;
    size_t have;
    char buf[4096];
};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Whether a whole answer has arrived; it must be a 200. */
static int answered(struct conn *c) {
    c->buf[c->have] = 0;
    char *end = strstr(c->buf, "\r\n\r\n"), *length = strcasestr(c->buf, "\r\ncontent-length:");
    if (!end) return 0;
    if (strncmp(c->buf, "HTTP/1.1 200 ", 13) || !length || length > end) {
        fprintf(stderr, "pace: %s\n", c->buf);
        exit(1);
    }
    return c->have >= (size_t)(end + 4 - c->buf) + strtoul(length + 17, NULL, 10);
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "pace PORT RATE SECONDS CONNECTIONS\n"), 2;
    int64_t rate = atoll(argv[2]), total = rate * atoll(argv[3]), sent = 0, done = 0;
    int count = atoi(argv[4]), ep = epoll_create1(0), one = 1;
    struct conn *all = calloc(count, sizeof *all), **idle = calloc(count, sizeof *idle);
    int64_t *took = calloc(total, sizeof *took);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int free_ones = 0;
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[i].fd, (struct sockaddr *)&to, sizeof to)) die("connect");
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &event);
        idle[free_ones++] = &all[i];
    }
    int64_t begin = now();
    while (done < total) {
        int64_t due = begin + sent * 1000000000ll / rate, wait = due - now();
        while (sent < total && wait <= 0 && free_ones) {
            struct conn *c = idle[--free_ones];
            c->due = due, c->have = 0, c->busy = 1;
            if (write(c->fd, ask, sizeof ask - 1) != sizeof ask - 1) die("write");
            sent++;
            due = begin + sent * 1000000000ll / rate, wait = due - now();
        }
        if (sent == total || !free_ones || wait < 0) wait = 1000000000;
        struct timespec pause = {wait / 1000000000, wait % 1000000000};
        struct epoll_event events[64];
        int ready = epoll_pwait2(ep, events, 64, &pause, NULL);
        if (ready == 0 && now() - begin > (atoll(argv[3]) + 20) * 1000000000ll) return fprintf(stderr, "pace: no answer\n"), 1;
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            ssize_t got = read(c->fd, c->buf + c->have, sizeof c->buf - 1 - c->have);
            if (got <= 0 || !c->busy) return fprintf(stderr, "pace: a connection was closed\n"), 1;
            c->have += got;
            if (!answered(c)) continue;
            took[done++] = now() - c->due;
            c->busy = 0, idle[free_ones++] = c;
        }
    }
    qsort(took, total, sizeof *took, by_size);
    printf("%lld %.1f %.1f %.1f\n", (long long)done, took[total / 2] / 1e3, took[total * 99 / 100] / 1e3, took[total * 999 / 1000] / 1e3);
    return 0;
}
