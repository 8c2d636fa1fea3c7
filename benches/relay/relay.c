// A bare epoll byte relay, one thread, no parsing: the floor under every proxy's CPU per request.
//   cc -O2 -o relay relay.c && ./relay LISTEN-PORT TARGET-PORT        (both on 127.0.0.1)
// One connection to the target per connection of a caller; level-triggered; what cannot be written at once closes the
// pair, because the bench's messages are far smaller than a socket's buffer.
#define _GNU_SOURCE // accept4
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 65536, EVENTS = 256 };

static int other[MOST]; // the partner of a descriptor, 0 for none

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int poll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

static void quick(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void close_pair(int fd) {
    int partner = other[fd];
    other[fd] = 0;
    close(fd);
    if (partner) {
        other[partner] = 0;
        close(partner);
    }
}

static void pair(int poll, int listener, const struct sockaddr_in *target) {
    int caller = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (caller < 0) return;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (caller >= MOST || server < 0 || server >= MOST || connect(server, (const void *)target, sizeof *target) < 0) {
        close(caller);
        if (server >= 0) close(server);
        return;
    }
    quick(caller);
    quick(server);
    other[caller] = server;
    other[server] = caller;
    watch(poll, caller);
    watch(poll, server);
}

int main(int count, char **words) {
    if (count != 3) {
        fprintf(stderr, "usage: relay LISTEN-PORT TARGET-PORT\n");
        return 2;
    }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in target = here;
    target.sin_port = htons((uint16_t)atoi(words[2]));
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (poll < 0 || bind(listener, (void *)&here, sizeof here) < 0 || listen(listener, 512) < 0) fail("listen");
    watch(poll, listener);

    static char block[16384];
    struct epoll_event ready[EVENTS];
    for (;;) {
        int found = epoll_wait(poll, ready, EVENTS, -1);
        for (int n = 0; n < found; n++) {
            int fd = ready[n].data.fd;
            if (fd == listener) {
                pair(poll, listener, &target);
                continue;
            }
            if (!other[fd]) continue; // closed with its partner in this round
            ssize_t size = recv(fd, block, sizeof block, MSG_DONTWAIT);
            if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (size <= 0 || send(other[fd], block, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) != size) close_pair(fd);
        }
    }
}
