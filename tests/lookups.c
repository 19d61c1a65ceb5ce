/* Preloaded into a process: writes the name of each host that it asks for to the file LOOKUPS, and answers as before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    const char *path = getenv("LOOKUPS");
    if (node && path) {
        int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (file >= 0) {
            char line[300];
            strncpy(line, node, sizeof line - 2);
            line[sizeof line - 2] = 0;
            strcat(line, "\n");
            if (write(file, line, strlen(line)) < 0) abort();
            close(file);
        }
    }
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
}
