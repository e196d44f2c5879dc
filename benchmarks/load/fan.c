/* N subscribers and one publisher in one thread; prints publish-to-delivery times as JSON.
 *
 *   fan wire=ws port=8080 [host=127.0.0.1] [subscribers=100] [frozen=0] [window=1] [per_second=0] [seconds=1]
 *       [payload_bytes=300] [context=bench] [publish=WIRE] [probe=0]
 *
 * Open loop (per_second): every unit carries the time it was due, so a publisher that is held up counts against the
 * server: no coordinated omission. Closed loop: so many units (window) are under way, one being over when the last
 * subscriber has it. A time is taken at every subscriber; `last` holds one for each unit: when the last of them had it.
 * FROZEN further subscribers subscribe and never read. `probe` appends beside it, to a context of its own, one after
 * the other: what a stranger waits for his answer.
 *
 *   fan wire=ws-msgpack port=8080 read=1000000 [context=bench]
 *
 * One subscriber that reads so many units from the beginning of the log.
 */
#include "wires.h"

#define ROOM (1 << 18)
#define TAIL 64
#define RING (1 << 17) /* Units under way, at most. */
#define DRAIN_SECONDS 20
#define READ_SECONDS_MAX 100

struct subscriber {
	int fd;
	char tail[TAIL]; /* What came of a mark that is not whole. */
	size_t tail_bytes;
	int64_t stream_at, last_at, stride; /* Places in all that came: units are mostly as long as the one before. */
	int64_t last_index;
	char *reply; /* Redis: an answer must be whole before the next is asked for. */
	size_t reply_bytes;
};

struct publisher {
	int fd;
	char *answers;
	size_t held;
	int64_t due[RING];
	uint64_t sent, answered;
	struct histogram times;
};

static const struct wire *wire, *publishing;
static struct place place;
static struct histogram late, last;
static int32_t left[RING];
static long delivered, complete, disorder, reading;
static int subscribers;

static inline void heard(struct subscriber *s, const char *mark, int64_t now)
{
	int64_t due = (int64_t)take_hex(mark + 5, 16), index = (int64_t)take_hex(mark + 22, 8);
	delivered++;
	if (reading)
		return;
	if (index != s->last_index + 1)
		disorder++;
	s->last_index = index;
	record(&late, now - due, 1);
	if (!--left[index % RING]) {
		record(&last, now - due, 1);
		complete++;
	}
}

/* Every mark in what came; what may be the beginning of one is kept. */
static void take_marks(struct subscriber *s, char *data, size_t held, int64_t now)
{
	size_t at = 0;

	for (;;) {
		/* Where the next one is likely to be, else the next there is. */
		int64_t likely = s->last_at + s->stride - s->stream_at;
		char *mark = NULL;
		if (s->stride && likely >= (int64_t)at && likely + MARK_BYTES <= (int64_t)held && !memcmp(data + likely, MARK, 5) &&
		    (reading || (int64_t)take_hex(data + likely + 22, 8) == s->last_index + 1))
			mark = data + likely;
		else
			mark = memmem(data + at, held - at, MARK, 5);
		if (!mark || mark + MARK_BYTES > data + held) {
			size_t rest = mark ? (size_t)(data + held - mark) : held - at < 4 ? held - at : 4;
			s->tail_bytes = rest;
			memcpy(s->tail, data + held - rest, rest);
			s->stream_at += held - rest;
			return;
		}
		int64_t stream = s->stream_at + (mark - data);
		s->stride = stream - s->last_at;
		s->last_at = stream;
		heard(s, mark, now);
		at = mark - data + MARK_BYTES;
	}
}

static void take_redis(struct subscriber *s, int64_t now)
{
	char id[64] = "", request[512];
	size_t size;

	while ((size = resp_value(s->reply, s->reply_bytes, 0, 0, id))) {
		for (char *at = s->reply; (at = memmem(at, s->reply + size - at, MARK, 5)); at += MARK_BYTES)
			heard(s, at, now);
		s->reply_bytes -= size;
		memmove(s->reply, s->reply + size, s->reply_bytes);
		write_all(s->fd, request, redis_read(request, &place, id));
	}
}

static void hear(struct subscriber *s)
{
	static char data[TAIL + ROOM];
	ssize_t n;

	if (s->reply) {
		n = read(s->fd, s->reply + s->reply_bytes, ROOM - s->reply_bytes);
	} else {
		memcpy(data, s->tail, s->tail_bytes);
		n = read(s->fd, data + s->tail_bytes, ROOM);
	}
	if (n < 0 && errno == EAGAIN && !reading)
		return;
	if (n <= 0)
		fail("a subscriber heard no more");
	if (s->reply) {
		s->reply_bytes += n;
		take_redis(s, now_ns());
	} else {
		take_marks(s, data, s->tail_bytes + n, now_ns());
	}
}

static void hear_answers(struct publisher *p)
{
	size_t used;
	ssize_t n = read(p->fd, p->answers + p->held, ROOM - p->held);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		fail("a publisher was closed");
	int64_t now = now_ns();
	p->held += n;
	long count = publishing->answers(p->answers, p->held, &used);
	p->held -= used;
	memmove(p->answers, p->answers + used, p->held);
	for (; count; count--)
		record(&p->times, now - p->due[p->answered++ % RING], 1);
}

static void publish(struct publisher *p, const struct place *where, int64_t due, int payload_bytes)
{
	static char *payload, *request;
	if (!payload) {
		payload = made_payload(payload_bytes);
		request = malloc(REQUEST_BYTES_MAX);
	}
	put_mark(payload, due, (uint32_t)p->sent);
	p->due[p->sent++ % RING] = due;
	write_all(p->fd, request, publishing->request(request, where, (int)(p->fd), payload, payload_bytes));
}

static struct publisher *publisher(int poll)
{
	static char opening[4096];
	struct publisher *p = calloc(1, sizeof *p);
	p->fd = connected(place.host, place.port, 0);
	p->answers = malloc(ROOM);
	open_with(p->fd, opening, publishing->opening(opening, &place, p->fd), publishing->is_open);
	unblock(p->fd);
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)(uintptr_t)p | 1};
	epoll_ctl(poll, EPOLL_CTL_ADD, p->fd, &e);
	return p;
}

static void subscribe(struct subscriber *s, int receive_bytes)
{
	static char opening[4096];
	s->fd = connected(place.host, place.port, receive_bytes);
	s->last_index = -1;
	open_with(s->fd, opening, wire->listening(opening, &place), wire->is_listening);
	if (!strcmp(wire->name, "redis"))
		s->reply = malloc(ROOM);
}

static void wait_for_events(int poll, int wait_ms)
{
	static struct epoll_event events[256];
	int n = epoll_wait(poll, events, 256, wait_ms);
	for (int i = 0; i < n; i++) {
		if (events[i].data.u64 & 1)
			hear_answers((struct publisher *)(uintptr_t)(events[i].data.u64 & ~1ULL));
		else
			hear(events[i].data.ptr);
	}
}

static int read_all(long units)
{
	struct subscriber s = {0};
	char opening[4096];

	place.path = "&after=0";
	s.fd = connected(place.host, place.port, 4 << 20);
	struct timeval patience = {.tv_sec = DRAIN_SECONDS};
	setsockopt(s.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	int64_t start = now_ns();
	write_all(s.fd, opening, wire->listening(opening, &place));
	for (reading = units; delivered < units && now_ns() < start + READ_SECONDS_MAX * SECOND;)
		hear(&s);
	if (delivered < units)
		fail("so many units did not come");
	double seconds = (double)(now_ns() - start) / SECOND;
	printf("{\"units\":%ld,\"seconds\":%.4f,\"per_second\":%.1f,\"load_cpu_share\":%.3f}\n", delivered, seconds,
		delivered / seconds, cpu_seconds() / seconds);
	return 0;
}

int main(int argc, char **argv)
{
	argument_count = argc, arguments = argv;
	allow_files();
	place = (struct place){text("host", "127.0.0.1"), (int)number("port", 0), text("context", "bench"), ""};
	struct place aside = place;
	aside.context = ASIDE;
	wire = wire_named(text("wire", "ws"));
	publishing = wire_named(text("publish", wire->name));
	if (number("read", 0))
		return read_all((long)number("read", 0));

	int frozen = (int)number("frozen", 0), payload_bytes = (int)number("payload_bytes", 300);
	long window = (long)number("window", 1), all_due;
	double per_second = number("per_second", 0);
	subscribers = (int)number("subscribers", 100);
	struct subscriber *all = calloc(subscribers, sizeof *all);
	int poll = epoll_create1(0);

	for (int i = 0; i < frozen; i++) {
		struct subscriber never = {0};
		subscribe(&never, 4096);
	}
	for (int i = 0; i < subscribers; i++) {
		subscribe(all + i, 0);
		unblock(all[i].fd);
		struct epoll_event e = {.events = EPOLLIN, .data.ptr = all + i};
		epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &e);
	}
	struct publisher *main_one = publisher(poll), *probe = number("probe", 0) ? publisher(poll) : NULL;
	if (!strcmp(wire->name, "redis"))
		usleep(100000); /* A blocked XREAD says nothing. */

	int64_t start = now_ns() + SECOND / 100, until = start + (int64_t)(number("seconds", 1) * SECOND), now;
	int64_t interval = per_second ? (int64_t)(SECOND / per_second) : 0, give_up = until + DRAIN_SECONDS * SECOND;
	double cpu = cpu_seconds();
	all_due = per_second ? (until - start) / interval : 0;
	while ((now = now_ns()) < give_up) {
		long sent = (long)main_one->sent;
		int64_t next = per_second ? start + sent * interval : start;
		int done = per_second ? sent == all_due : now >= until;
		if (done && complete == sent)
			break;
		if (!done && now >= next && sent - complete < (per_second ? RING : window)) {
			int64_t due = per_second ? next : now;
			left[sent % RING] = subscribers;
			publish(main_one, &place, due, payload_bytes);
			if (per_second || sent + 1 - complete < window)
				continue;
		}
		if (probe && !done && now >= start && probe->sent == probe->answered)
			publish(probe, &aside, now, payload_bytes);
		wait_for_events(poll, done || !per_second ? now < start ? 0 : 100 : next > now + 1000000 ? (int)((next - now) / 1000000) : 0);
	}
	double seconds = (double)(now - start) / SECOND;
	long sent = (long)main_one->sent, lost = sent * subscribers - delivered;
	printf("{\"subscribers\":%d,\"frozen\":%d,\"units\":%ld,\"delivered\":%ld,\"lost\":%ld,\"disorder\":%ld,"
	       "\"seconds\":%.4f,\"per_second\":%.1f,\"load_cpu_share\":%.3f,", subscribers, frozen, sent, delivered, lost,
	       disorder, seconds, delivered / seconds, (cpu_seconds() - cpu) / (seconds + 0.01));
	print_histogram("late_ns", &late);
	printf(",");
	print_histogram("last_ns", &last);
	printf(",");
	print_histogram("answer_ns", &main_one->times);
	if (probe) {
		printf(",");
		print_histogram("probe_ns", &probe->times);
	}
	printf("}\n");
	return lost || disorder ? 1 : 0;
}
