/* N WebSocket subscribers and one open-loop publisher in one thread; prints publish-to-delivery times as JSON.
 *
 *   fan HOST PORT SUBSCRIBERS FROZEN UNITS PER_SECOND PAYLOAD_BYTES
 *
 * Every unit carries the time it was due to be sent (CLOCK_MONOTONIC, ns), so a publisher that is held up counts
 * against the bus: no coordinated omission. A time is taken for every delivery at every healthy subscriber. FROZEN
 * further subscribers open their socket, subscribe, and never read it.
 */
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
#include <time.h>
#include <unistd.h>

#define BUFFER (4 << 20)
#define MARK "due="

struct subscriber {
	int fd;
	char *buffer;
	size_t held;
	long units;
	long last_seq_index;
	long disorder;
};

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_socket(const char *host, int port, const char *path, int receive_bytes)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	char request[512], answer[4096];
	size_t held = 0;

	inet_pton(AF_INET, host, &address.sin_addr);
	if (receive_bytes)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	int size = snprintf(request, sizeof request,
		"GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
		"Sec-WebSocket-Protocol: engram.v1.json\r\n\r\n", path, host, port);
	if (write(fd, request, size) != size)
		fail("handshake");
	/* The answer and the `subscribed` frame: both are small, and nothing else comes before a publish. */
	while (held < sizeof answer - 1) {
		ssize_t n = read(fd, answer + held, sizeof answer - 1 - held);
		if (n <= 0)
			fail("handshake answer");
		held += n;
		answer[held] = 0;
		char *body = strstr(answer, "\r\n\r\n");
		if (body && strstr(body, "\"subscribed\"") && answer[held - 1] == '}')
			return fd;
	}
	fprintf(stderr, "no subscribed frame\n");
	exit(1);
}

/* Whole WebSocket frames in the buffer; control frames are passed over, answered by nobody. */
static size_t take_frames(struct subscriber *s, int64_t received, int64_t *times, long *count, long room)
{
	size_t at = 0;

	while (s->held - at >= 2) {
		unsigned char *frame = (unsigned char *)s->buffer + at;
		uint64_t size = frame[1] & 127;
		size_t head = 2;
		if (size == 126) {
			if (s->held - at < 4)
				break;
			size = frame[2] << 8 | frame[3];
			head = 4;
		} else if (size == 127) {
			if (s->held - at < 10)
				break;
			size = 0;
			for (int i = 2; i < 10; i++)
				size = size << 8 | frame[i];
			head = 10;
		}
		if (s->held - at < head + size)
			break;
		if ((frame[0] & 15) == 8) {
			fprintf(stderr, "a healthy subscriber was closed\n");
			exit(1);
		}
		char *text = (char *)frame + head, *end = text + size;
		while ((text = memmem(text, end - text, MARK, sizeof MARK - 1))) {
			long index;
			int64_t due;
			text += sizeof MARK - 1;
			if (sscanf(text, "%ld,%ld", &due, &index) == 2) {
				if (index != s->last_seq_index + 1)
					s->disorder++;
				s->last_seq_index = index;
				s->units++;
				if (*count < room)
					times[(*count)++] = received - due;
			}
		}
		at += head + size;
	}
	return at;
}

static void publish(int fd, long index, int64_t due, int payload_bytes)
{
	static char unit[1 << 20], frame[(1 << 20) + 16];
	char filler[payload_bytes + 1];
	int size, head;

	memset(filler, 'x', payload_bytes);
	filler[payload_bytes] = 0;
	size = snprintf(unit, sizeof unit,
		"{\"op\":\"append\",\"id\":%ld,\"unit\":{\"context_id\":\"bench\",\"agent_id\":\"load\","
		"\"payload\":\"" MARK "%ld,%ld %s\"}}", index, due, index, filler);
	frame[0] = (char)0x81;
	if (size < 126) {
		frame[1] = (char)(0x80 | size);
		head = 2;
	} else {
		frame[1] = (char)(0x80 | 126);
		frame[2] = size >> 8;
		frame[3] = size & 255;
		head = 4;
	}
	memset(frame + head, 0, 4); /* Masking key 0: the same bytes. */
	memcpy(frame + head + 4, unit, size);
	if (write(fd, frame, head + 4 + size) != head + 4 + size)
		fail("publish");
}

static int ascending(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc != 8) {
		fprintf(stderr, "usage: fan HOST PORT SUBSCRIBERS FROZEN UNITS PER_SECOND PAYLOAD_BYTES\n");
		return 2;
	}
	const char *host = argv[1];
	int port = atoi(argv[2]), subscribers = atoi(argv[3]), frozen = atoi(argv[4]);
	long units = atol(argv[5]);
	double per_second = atof(argv[6]);
	int payload_bytes = atoi(argv[7]);
	long room = units * subscribers, count = 0, sent = 0, closed = 0;
	int64_t *times = malloc((room ? room : 1) * sizeof *times);
	struct subscriber *all = calloc(subscribers, sizeof *all);
	struct epoll_event events[256];
	char drop[65536];
	int poll = epoll_create1(0);

	for (int i = 0; i < frozen; i++)
		open_socket(host, port, "/stream?context=bench", 4096);
	for (int i = 0; i < subscribers; i++) {
		all[i].fd = open_socket(host, port, "/stream?context=bench", 0);
		all[i].buffer = malloc(BUFFER);
		all[i].last_seq_index = -1;
		fcntl(all[i].fd, F_SETFL, O_NONBLOCK);
		struct epoll_event e = {.events = EPOLLIN, .data.ptr = &all[i]};
		epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &e);
	}
	int publisher = open_socket(host, port, "/stream", 0);
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
	epoll_ctl(poll, EPOLL_CTL_ADD, publisher, &e);

	int64_t start = now_ns() + 10000000, interval = (int64_t)(1e9 / per_second), give_up = 0;
	while (count < room) {
		int64_t now = now_ns();
		while (sent < units && now >= start + sent * interval) {
			publish(publisher, sent, start + sent * interval, payload_bytes);
			sent++;
		}
		if (sent == units && !give_up)
			give_up = now + 20000000000LL;
		if (give_up && now > give_up)
			break;
		int64_t due = start + sent * interval;
		int wait_ms = sent == units ? 100 : due > now + 1000000 ? (int)((due - now) / 1000000) : 0;
		int n = epoll_wait(poll, events, 256, wait_ms);
		for (int i = 0; i < n; i++) {
			struct subscriber *s = events[i].data.ptr;
			if (!s) {
				if (read(publisher, drop, sizeof drop) <= 0)
					fail("publisher");
				continue;
			}
			ssize_t got = read(s->fd, s->buffer + s->held, BUFFER - s->held);
			if (got <= 0) {
				if (got < 0 && errno == EAGAIN)
					continue;
				closed++;
				epoll_ctl(poll, EPOLL_CTL_DEL, s->fd, NULL);
				continue;
			}
			s->held += got;
			size_t used = take_frames(s, now_ns(), times, &count, room);
			memmove(s->buffer, s->buffer + used, s->held - used);
			s->held -= used;
		}
	}
	long disorder = 0;
	for (int i = 0; i < subscribers; i++)
		disorder += all[i].disorder;
	qsort(times, count, sizeof *times, ascending);
#define AT(q) (count ? times[(long)((count - 1) * (q))] / 1e6 : 0.0)
	printf("{\"subscribers\":%d,\"frozen\":%d,\"units\":%ld,\"per_second\":%.0f,\"deliveries\":%ld,\"lost\":%ld,"
	       "\"disorder\":%ld,\"closed\":%ld,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,"
	       "\"max_ms\":%.3f}\n", subscribers, frozen, sent, per_second, count, room - count, disorder, closed,
	       AT(.5), AT(.9), AT(.99), AT(.999), AT(1));
	return count == room && !disorder ? 0 : 1;
}
