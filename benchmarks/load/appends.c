/* Durable appends over K connections, as fast as they are answered or at a pace; prints rate and times as JSON.
 *
 *   appends wire=ws port=8080 [host=127.0.0.1] [clients=1] [in_flight=1] [per_second=0] [seconds=1] [warm_seconds=0.1]
 *           [payload_bytes=300] [context=bench] [path=/]
 *
 * Closed loop (per_second=0): each connection has so many under way, and sends the next when one is answered; a time is
 * from sending to answer. Open loop: units are due at a pace whatever the server does, and a time is from when a unit
 * was due, so that a server which holds up its clients cannot hide it; what is not answered counts as late as it is.
 */
#include "wires.h"

#define TIMES (1 << 16) /* Under way on one connection, at most. */
#define ANSWER_BYTES (1 << 21)
#define REPEAT 32 /* Requests in one write. */
#define DRAIN_SECONDS 5

struct connection {
	int fd;
	char *requests, *answers;
	size_t request_bytes, held;
	uint64_t queued, written; /* Bytes; what is sent is one request over and over. */
	uint32_t sent, answered;
	int64_t *due;
	int waits;
};

static int poll_fd;
static const struct wire *wire;
static struct histogram times;

static void flush(struct connection *c)
{
	while (c->written < c->queued) {
		size_t at = c->written % c->request_bytes, size = REPEAT * c->request_bytes - at;
		if (size > c->queued - c->written)
			size = c->queued - c->written;
		ssize_t n = write(c->fd, c->requests + at, size);
		if (n < 0 && errno != EAGAIN)
			fail("write");
		if (n > 0)
			c->written += n;
		if (n < (ssize_t)size)
			break;
	}
	int waits = c->written < c->queued;
	if (waits != c->waits) {
		struct epoll_event e = {.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = c};
		epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
		c->waits = waits;
	}
}

static void begin(struct connection *c, int64_t due, long count)
{
	for (long i = 0; i < count; i++)
		c->due[c->sent++ % TIMES] = due;
	c->queued += count * c->request_bytes;
}

/* Take the answers that are there; gives how many. */
static long take(struct connection *c, int64_t from)
{
	size_t used;
	ssize_t n = read(c->fd, c->answers + c->held, ANSWER_BYTES - c->held);
	if (n <= 0) {
		if (n < 0 && errno == EAGAIN)
			return 0;
		fail("the server closed the connection");
	}
	int64_t now = now_ns();
	c->held += n;
	long count = wire->answers(c->answers, c->held, &used);
	c->held -= used;
	if (c->held)
		memmove(c->answers, c->answers + used, c->held);
	for (long i = 0; i < count; i++) {
		int64_t due = c->due[c->answered++ % TIMES];
		if (due >= from)
			record(&times, now - due, 1);
	}
	return count;
}

int main(int argc, char **argv)
{
	argument_count = argc, arguments = argv;
	allow_files();
	struct place place = {text("host", "127.0.0.1"), (int)number("port", 0), text("context", "bench"), text("path", "/")};
	int clients = (int)number("clients", 1), payload_bytes = (int)number("payload_bytes", 300);
	long in_flight = (long)number("in_flight", 1), answered = 0, unanswered = 0;
	double per_second = number("per_second", 0);
	char *payload = made_payload(payload_bytes), *opening = malloc(REQUEST_BYTES_MAX);
	struct connection *all = calloc(clients, sizeof *all);
	struct epoll_event events[256];

	wire = wire_named(text("wire", "ws"));
	poll_fd = epoll_create1(0);
	for (int i = 0; i < clients; i++) {
		struct connection *c = all + i;
		c->fd = connected(place.host, place.port, 0);
		open_with(c->fd, opening, wire->opening(opening, &place, i), wire->is_open);
		c->due = calloc(TIMES, sizeof *c->due);
		c->answers = malloc(ANSWER_BYTES);
		c->request_bytes = wire->request(opening, &place, i, payload, payload_bytes);
		c->requests = malloc(REPEAT * c->request_bytes);
		for (int r = 0; r < REPEAT; r++)
			memcpy(c->requests + r * c->request_bytes, opening, c->request_bytes);
		unblock(c->fd);
		struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
		epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e);
	}

	int64_t start = now_ns(), from = start + (int64_t)(number("warm_seconds", 0.1) * SECOND);
	int64_t until = from + (int64_t)(number("seconds", 1) * SECOND), over = per_second ? until + DRAIN_SECONDS * SECOND : until;
	int64_t interval = per_second ? (int64_t)(SECOND / per_second) : 0, now = start, ended = until;
	uint64_t due_count = 0, all_due = per_second ? (uint64_t)((until - start) / interval) : 0, all_answered = 0;
	double cpu = cpu_seconds();

	if (!per_second)
		for (int i = 0; i < clients; i++) {
			begin(all + i, now, in_flight);
			flush(all + i);
		}
	while ((now = now_ns()) < over) {
		int wait_ms = 100;
		if (per_second) {
			for (; due_count < all_due && now >= start + (int64_t)due_count * interval; due_count++) {
				struct connection *c = all + due_count % clients;
				if (c->sent - c->answered >= TIMES)
					refused("overload", "too many under way on one connection", 36);
				begin(c, start + due_count * interval, 1);
				flush(c);
			}
			if (due_count == all_due && all_answered == all_due)
				break;
			/* The last millisecond is waited for with the eyes open. */
			int64_t due = start + due_count * interval;
			wait_ms = due_count == all_due ? 10 : due > now + 1000000 ? (int)((due - now) / 1000000) : 0;
		}
		int n = epoll_wait(poll_fd, events, 256, wait_ms);
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			long count = events[i].events & ~EPOLLOUT ? take(c, from) : 0;
			all_answered += count;
			if (!per_second && count)
				begin(c, now_ns(), count);
			flush(c);
		}
	}
	if (per_second)
		ended = now_ns();
	for (int i = 0; i < clients; i++)
		while (per_second && all[i].answered != all[i].sent) {
			record(&times, ended - all[i].due[all[i].answered++ % TIMES], 1);
			unanswered++;
		}
	answered = times.all - unanswered;
	/* A closed loop is counted to its end; an open one over the time in which its units were due. */
	double seconds = (double)(until - from) / SECOND;
	printf("{\"units\":%ld,\"unanswered\":%ld,\"seconds\":%.4f,\"per_second\":%.1f,\"load_cpu_share\":%.3f,", answered,
		unanswered, seconds, answered / seconds, (cpu_seconds() - cpu) / ((double)(ended - start) / SECOND));
	print_histogram("histogram_ns", &times);
	printf("}\n");
	return 0;
}
