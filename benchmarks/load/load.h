/* What the programs here share: arguments, the clock, sockets, a log-linear histogram, the mark in a payload. */
#ifndef LOAD_H
#define LOAD_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static inline int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static inline void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
	exit(1);
}

static inline void refused(const char *what, const char *said, size_t size)
{
	fprintf(stderr, "%s: %.*s\n", what, (int)(size < 600 ? size : 600), said);
	exit(1);
}

/* --- Arguments: name=value, in any order ------------------------------------------------------------------------ */

static int argument_count;
static char **arguments;

static inline const char *text(const char *name, const char *otherwise)
{
	size_t size = strlen(name);
	for (int i = 1; i < argument_count; i++)
		if (!strncmp(arguments[i], name, size) && arguments[i][size] == '=')
			return arguments[i] + size + 1;
	return otherwise;
}

static inline double number(const char *name, double otherwise)
{
	const char *given = text(name, NULL);
	return given ? atof(given) : otherwise;
}

/* --- Sockets ---------------------------------------------------------------------------------------------------- */

static inline int connected(const char *host, int port, int receive_bytes)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, host, &address.sin_addr);
	if (receive_bytes)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static inline void write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			fail("write");
		data += n;
		size -= n;
	}
}

static inline void unblock(int fd)
{
	fcntl(fd, F_SETFL, O_NONBLOCK);
}

/* As many files, and so sockets, as the process may have. */
static inline void allow_files(void)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* --- Histogram: 128 steps to each doubling, so within 0.8 percent, from 1 ns to 9 minutes ------------------------- */

#define STEP_BITS 7
#define STEPS (1 << STEP_BITS)
#define BUCKETS ((40 - STEP_BITS) * STEPS)

struct histogram {
	int64_t count[BUCKETS];
	int64_t all, max;
};

static inline int bucket_of(int64_t value)
{
	if (value < STEPS)
		return value < 0 ? 0 : (int)value;
	int shift = 63 - __builtin_clzll(value) - STEP_BITS;
	int bucket = (shift + 1) * STEPS + (int)((value >> shift) - STEPS);
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* The largest value that falls into it. */
static inline int64_t top_of(int bucket)
{
	if (bucket < STEPS)
		return bucket;
	int shift = bucket / STEPS - 1;
	return ((int64_t)(bucket % STEPS + STEPS + 1) << shift) - 1;
}

static inline void record(struct histogram *h, int64_t value, int64_t times)
{
	h->count[bucket_of(value)] += times;
	h->all += times;
	if (value > h->max)
		h->max = value;
}

/* As JSON: the buckets that hold something, as [nanoseconds, count]. */
static inline void print_histogram(const char *name, const struct histogram *h)
{
	const char *between = "";
	printf("\"%s\":[", name);
	for (int i = 0; i < BUCKETS; i++)
		if (h->count[i]) {
			int64_t top = top_of(i);
			printf("%s[%ld,%ld]", between, (long)(top < h->max ? top : h->max), (long)h->count[i]);
			between = ",";
		}
	printf("]");
}

/* How much of a processor this process has used. */
static inline double cpu_seconds(void)
{
	struct rusage use;
	getrusage(RUSAGE_SELF, &use);
	return use.ru_utime.tv_sec + use.ru_stime.tv_sec + (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

/* --- The mark: which unit it is and when it was due, at the beginning of a payload of words ------------------------ */

#define ASIDE "aside"
#define MARK "@due="
#define MARK_BYTES (5 + 16 + 1 + 8)

static inline void put_hex(char *to, uint64_t value, int digits)
{
	while (digits--) {
		to[digits] = "0123456789abcdef"[value & 15];
		value >>= 4;
	}
}

static inline uint64_t take_hex(const char *from, int digits)
{
	uint64_t value = 0;
	for (; digits--; from++)
		value = value << 4 | (*from <= '9' ? *from - '0' : *from - 'a' + 10);
	return value;
}

static inline void put_mark(char *payload, int64_t due, uint32_t index)
{
	memcpy(payload, MARK, 5);
	put_hex(payload + 5, due, 16);
	payload[21] = ',';
	put_hex(payload + 22, index, 8);
}

/* Words, since a text is what a bus has to do with (and to index); one is never like the one before. */
static inline char *made_payload(int bytes)
{
	static const char said[] = " the build of the parser failed since a token was read twice after the merge; "
		"I will revert the change in lexer.py, run its tests again and tell the others what came of it. ";
	char *payload = malloc(bytes + 1);

	if (bytes < MARK_BYTES)
		refused("payload_bytes", "too few for a mark", 18);
	put_mark(payload, 0, 0);
	for (int i = MARK_BYTES; i < bytes; i++)
		payload[i] = said[(i - MARK_BYTES) % (sizeof said - 1)];
	payload[bytes] = 0;
	return payload;
}
#endif
