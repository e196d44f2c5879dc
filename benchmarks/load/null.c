/* A server that answers every append at once, in any of the protocols: the ceiling of the load, and of C.
 *
 *   null wire=ws [port=0]      prints its port and serves until it is killed
 *
 * Nothing is kept or decided. Over WebSocket, what is appended goes to all who listen, one write of one frame each.
 */
#include "wires.h"

#define BUFFER (1 << 21)
#define ACK_WS "{\"event\":\"appended\",\"id\":1,\"unit_id\":\"01985b2e-7d1c-7000-8000-000000000000\",\"context_id\":" \
	"\"bench\",\"seq\":1000000,\"version\":1000000,\"durability\":\"fsync\"}"
#define SUBSCRIBED "{\"event\":\"subscribed\",\"cursor\":\"1.1\",\"head\":1}"
#define ACK_REDIS "$15\r\n1700000000000-0\r\n"
#define ACK_NATS "{\"stream\":\"bench\",\"seq\":1000000}"

struct client {
	int fd, open, number;
	char *in, *out;
	size_t held, said;
};

static struct client *listeners[65536];
static int listening;
static const char *protocol;
static char ack_http[2048];

static void say(struct client *c, const char *what, size_t size)
{
	if (c->said + size > BUFFER) {
		write_all(c->fd, c->out, c->said);
		c->said = 0;
	}
	memcpy(c->out + c->said, what, size);
	c->said += size;
}

static size_t server_frame(char *to, const char *body, size_t size)
{
	size_t head = 2;
	to[0] = (char)0x81;
	if (size < 126) {
		to[1] = (char)size;
	} else {
		to[1] = 126;
		to[2] = (char)(size >> 8);
		to[3] = (char)size;
		head = 4;
	}
	memcpy(to + head, body, size);
	return head + size;
}

static void tell(char *body, size_t size, const char *key)
{
	static char frame[BUFFER];
	for (size_t i = 0; i < size; i++)
		body[i] ^= key[i & 3];
	if (memmem(body, size, ASIDE, sizeof ASIDE - 1))
		return; /* The context of a probe, which nobody listens to. */
	size_t whole = server_frame(frame, body, size);
	for (int i = 0; i < listening; i++)
		write_all(listeners[i]->fd, frame, whole);
}

/* Take one request at the start of what came; gives its size, 0 while it is not all there. */
static size_t take_ws(struct client *c, char *from, size_t held)
{
	char frame[512];
	uint64_t size;

	if (!c->open) {
		char *end = memmem(from, held, "\r\n\r\n", 4);
		if (!end)
			return 0;
		/* No Sec-WebSocket-Accept: nobody but these loads connects here. */
		say(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 77);
		say(c, frame, server_frame(frame, SUBSCRIBED, sizeof SUBSCRIBED - 1));
		c->open = 1;
		if (memmem(from, end - from, "context=", 8))
			listeners[listening++] = c;
		return end + 4 - from;
	}
	size_t head = frame_head(from, held, &size);
	if (!head || held < head + size)
		return 0;
	if (listening)
		tell(from + head, size, from + head - 4);
	say(c, frame, server_frame(frame, ACK_WS, sizeof ACK_WS - 1));
	return head + size;
}

static size_t take_http(struct client *c, char *from, size_t held)
{
	char *end = memmem(from, held, "\r\n\r\n", 4);
	if (!end)
		return 0;
	end[2] = 0;
	char *length = strcasestr(from, "\r\ncontent-length:");
	size_t size = (length ? strtoul(length + 17, NULL, 10) : 0) + (end + 4 - from);
	if (held < size) {
		end[2] = '\r';
		return 0;
	}
	say(c, ack_http, strlen(ack_http));
	return size;
}

static size_t take_redis(struct client *c, char *from, size_t held)
{
	size_t size = resp_value(from, held, 0, 0, NULL);
	if (size)
		say(c, ACK_REDIS, sizeof ACK_REDIS - 1);
	return size;
}

static size_t take_nats(struct client *c, char *from, size_t held)
{
	char *end = memchr(from, '\n', held), subject[200], inbox[200], answer[512];
	size_t size;
	if (!end)
		return 0;
	size_t line = end + 1 - from;
	if (!strncmp(from, "PING", 4))
		say(c, "PONG\r\n", 6);
	if (strncmp(from, "PUB ", 4))
		return line;
	if (sscanf(from, "PUB %199s %199s %zu", subject, inbox, &size) != 3)
		refused("PUB", from, line);
	if (held < line + size + 2)
		return 0;
	say(c, answer, sprintf(answer, "MSG %s 1 %zu\r\n" ACK_NATS "\r\n", inbox, sizeof ACK_NATS - 1));
	return line + size + 2;
}

static void leave(struct client *c)
{
	for (int i = 0; i < listening; i++)
		if (listeners[i] == c)
			listeners[i--] = listeners[--listening];
	close(c->fd);
	free(c->in);
	free(c->out);
	free(c);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof address;
	struct epoll_event events[256], e = {.events = EPOLLIN};
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);

	argument_count = argc, arguments = argv;
	allow_files();
	protocol = text("wire", "ws");
	size_t (*take)(struct client *, char *, size_t) = !strncmp(protocol, "http", 4) ? take_http
		: !strcmp(protocol, "redis") ? take_redis : !strcmp(protocol, "nats") ? take_nats : take_ws;
	char body[600];
	snprintf(body, sizeof body, "{\"seq\":1000000,\"id\":\"01985b2e-7d1c-7000-8000-000000000000\",\"payload\":\"%.420s\"}",
		made_payload(420));
	sprintf(ack_http, "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
		strlen(body), body);
	address.sin_port = htons((int)number("port", 0));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096))
		fail("listen");
	getsockname(listener, (struct sockaddr *)&address, &size);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e);
	for (;;) {
		int n = epoll_wait(poll, events, 256, -1);
		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;
			if (!c) {
				c = calloc(1, sizeof *c);
				c->fd = accept(listener, NULL, NULL);
				c->in = malloc(BUFFER);
				c->out = malloc(BUFFER);
				setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				unblock(c->fd);
				struct epoll_event come = {.events = EPOLLIN, .data.ptr = c};
				epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &come);
				if (take == take_nats)
					write_all(c->fd, "INFO {}\r\n", 9);
				continue;
			}
			ssize_t got = read(c->fd, c->in + c->held, BUFFER - c->held);
			if (got <= 0) {
				if (got == 0 || errno != EAGAIN)
					leave(c);
				continue;
			}
			size_t at = 0, used;
			c->held += got;
			while (at < c->held && (used = take(c, c->in + at, c->held - at)))
				at += used;
			c->held -= at;
			memmove(c->in, c->in + at, c->held);
			if (c->said) {
				write_all(c->fd, c->out, c->said);
				c->said = 0;
			}
		}
	}
}
