/* How each protocol is opened, how it appends a unit, and how it answers. */
#ifndef WIRES_H
#define WIRES_H
#include "load.h"

struct place {
	const char *host;
	int port;
	const char *context; /* Stream, subject or channel. */
	const char *path;    /* Of an HTTP GET. */
};

struct wire {
	const char *name;
	/* What opens a connection that appends; `number` tells connections apart. */
	size_t (*opening)(char *to, const struct place *place, int number);
	/* Whether what came says that it is open. */
	int (*is_open)(const char *said, size_t held);
	size_t (*request)(char *to, const struct place *place, int number, const char *payload, int payload_bytes);
	/* Whole answers at the start of what came; `used` is set to the bytes they take. A refusal ends the program. */
	long (*answers)(char *said, size_t held, size_t *used);
	/* What opens a connection that listens; NULL where it cannot. */
	size_t (*listening)(char *to, const struct place *place);
	/* Between what `listening` says and what `is_listening` waits for. */
	int (*is_listening)(const char *said, size_t held);
};

#define REQUEST_BYTES_MAX ((2 << 20) + 4096)

/* --- WebSocket frames ------------------------------------------------------------------------------------------- */

/* The size of a frame's head, 0 while it is not all there; `size` is set to that of its payload. */
static inline size_t frame_head(const char *at, size_t held, uint64_t *size)
{
	const unsigned char *frame = (const unsigned char *)at;
	size_t head = 2;

	if (held < 2)
		return 0;
	*size = frame[1] & 127;
	if (*size == 126) {
		head = 4;
		if (held < head)
			return 0;
		*size = frame[2] << 8 | frame[3];
	} else if (*size == 127) {
		head = 10;
		if (held < head)
			return 0;
		*size = 0;
		for (int i = 2; i < 10; i++)
			*size = *size << 8 | frame[i];
	}
	if (frame[1] & 128)
		head += 4;
	return held < head ? 0 : head;
}

static const char mask[4] = {0x37, (char)0xfa, 0x21, 0x3d};

/* A masked frame of what stands at `to + 14`, moved to `to`. */
static inline size_t client_frame(char *to, int opcode, size_t size)
{
	size_t head = 2;
	to[0] = (char)(0x80 | opcode);
	if (size < 126) {
		to[1] = (char)(0x80 | size);
	} else if (size < 65536) {
		to[1] = (char)(0x80 | 126);
		to[2] = (char)(size >> 8);
		to[3] = (char)size;
		head = 4;
	} else {
		to[1] = (char)(0x80 | 127);
		for (int i = 0; i < 8; i++)
			to[2 + i] = (char)(size >> (56 - 8 * i));
		head = 10;
	}
	memcpy(to + head, mask, 4);
	head += 4;
	for (size_t i = 0; i < size; i++)
		to[head + i] = to[14 + i] ^ mask[i & 3];
	return head + size;
}

static inline size_t upgrade(char *to, const struct place *place, const char *path, const char *protocol)
{
	return sprintf(to,
		"GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
		path, place->host, place->port, *protocol ? "Sec-WebSocket-Protocol: " : "", protocol, *protocol ? "\r\n" : "");
}

/* The head of an HTTP answer and one whole frame behind it that holds `word`. */
static inline int has_frame(const char *said, size_t held, const char *word)
{
	const char *body = memmem(said, held, "\r\n\r\n", 4);
	uint64_t size;

	if (!body)
		return 0;
	body += 4;
	size_t left = said + held - body, head = frame_head(body, left, &size);
	if (!head || left < head + size)
		return 0;
	if (!memmem(body + head, size, word, strlen(word)))
		refused("not opened", said, held);
	return 1;
}

/* --- The bus over WebSocket ------------------------------------------------------------------------------------- */

static size_t ws_opening(char *to, const struct place *place, int number)
{
	(void)number;
	return upgrade(to, place, "/stream", "engram.v1.json");
}

static size_t wsm_opening(char *to, const struct place *place, int number)
{
	(void)number;
	return upgrade(to, place, "/stream", "engram.v1.msgpack");
}

static size_t ws_listening(char *to, const struct place *place)
{
	char path[512];
	snprintf(path, sizeof path, "/stream?context=%s%s", place->context, place->path);
	return upgrade(to, place, path, "engram.v1.json");
}

static size_t wsm_listening(char *to, const struct place *place)
{
	char path[512];
	snprintf(path, sizeof path, "/stream?context=%s%s", place->context, place->path);
	return upgrade(to, place, path, "engram.v1.msgpack");
}

static int ws_is_open(const char *said, size_t held)
{
	return has_frame(said, held, "subscribed");
}

static size_t ws_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	(void)number;
	size_t size = sprintf(to + 14,
		"{\"op\":\"append\",\"id\":1,\"unit\":{\"context_id\":\"%s\",\"agent_id\":\"load\",\"payload\":\"%.*s\"}}",
		place->context, payload_bytes, payload);
	return client_frame(to, 1, size);
}

static size_t pack_text(char *to, const char *text)
{
	size_t size = strlen(text);
	to[0] = (char)0xd9;
	to[1] = (char)size;
	memcpy(to + 2, text, size);
	return 2 + size;
}

static size_t wsm_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	char *at = to + 14;
	(void)number;
	*at++ = (char)0x83;
	at += pack_text(at, "op");
	at += pack_text(at, "append");
	at += pack_text(at, "id");
	*at++ = 1;
	at += pack_text(at, "unit");
	*at++ = (char)0x83;
	at += pack_text(at, "context_id");
	at += pack_text(at, place->context);
	at += pack_text(at, "agent_id");
	at += pack_text(at, "load");
	at += pack_text(at, "payload");
	*at++ = (char)0xc6;
	for (int shift = 24; shift >= 0; shift -= 8)
		*at++ = (char)(payload_bytes >> shift);
	memcpy(at, payload, payload_bytes);
	return client_frame(to, 2, at + payload_bytes - (to + 14));
}

static long ws_answers(char *said, size_t held, size_t *used)
{
	size_t at = 0, head;
	uint64_t size;
	long count = 0;

	while ((head = frame_head(said + at, held - at, &size)) && held - at >= head + size) {
		char *body = said + at + head;
		/* The kind of event stands at the beginning. */
		if (memmem(body, size < 32 ? size : 32, "appended", 8))
			count++;
		else if ((said[at] & 15) == 8 || memmem(body, size < 32 ? size : 32, "error", 5))
			refused("refused", body, size);
		at += head + size;
	}
	*used = at;
	return count;
}

/* --- The bus over HTTP ------------------------------------------------------------------------------------------ */

static size_t no_opening(char *to, const struct place *place, int number)
{
	(void)to, (void)place, (void)number;
	return 0;
}

static size_t http_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	char context[300];
	(void)number;
	size_t body = sprintf(context, "{\"context_id\":\"%s\",\"agent_id\":\"load\",\"payload\":\"", place->context);
	return sprintf(to,
		"POST /workunit HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n"
		"%s%.*s\"}",
		place->host, place->port, body + payload_bytes + 2, context, payload_bytes, payload);
}

static size_t get_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	(void)number, (void)payload, (void)payload_bytes;
	return sprintf(to, "GET %s HTTP/1.1\r\nHost: %s:%d\r\n\r\n", place->path, place->host, place->port);
}

static long http_answers(char *said, size_t held, size_t *used)
{
	size_t at = 0;
	long count = 0;
	char *end;

	while ((end = memmem(said + at, held - at, "\r\n\r\n", 4))) {
		end[2] = 0;
		char *length = strcasestr(said + at, "\r\ncontent-length:");
		size_t size = (length ? strtoul(length + 17, NULL, 10) : 0) + (end + 4 - (said + at));
		end[2] = '\r';
		if (said[at + 9] != '2')
			refused("refused", said + at, held - at);
		if (held - at < size)
			break;
		at += size;
		count++;
	}
	*used = at;
	return count;
}

/* --- The bus over server-sent events: it listens alone ---------------------------------------------------------- */

static size_t sse_listening(char *to, const struct place *place)
{
	return sprintf(to, "GET /stream-sse?context=%s HTTP/1.1\r\nHost: %s:%d\r\n\r\n", place->context, place->host,
		place->port);
}

static int sse_is_listening(const char *said, size_t held)
{
	if (held > 9 && said[9] != '2')
		refused("refused", said, held);
	return memmem(said, held, "subscribed", 10) != NULL;
}

/* --- Redis: XADD and XREAD over RESP ---------------------------------------------------------------------------- */

/* The size of a whole value, 0 while it is not all there. The newest entry's id (of XREAD) goes to `id`. */
static inline size_t resp_value(const char *from, size_t held, int depth, int place, char *id)
{
	const char *end = memchr(from, '\n', held);
	if (!end)
		return 0;
	size_t at = end + 1 - from;
	long count = strtol(from + 1, NULL, 10);
	if (*from == '-')
		refused("refused", from, at);
	if (*from == '$') {
		if (count < 0)
			return at;
		if (held < at + count + 2)
			return 0;
		if (id && depth == 4 && place == 0 && count < 64) {
			memcpy(id, from + at, count);
			id[count] = 0;
		}
		return at + count + 2;
	}
	if (*from == '*')
		for (long i = 0; i < count; i++) {
			size_t size = resp_value(from + at, held - at, depth + 1, (int)i, id);
			if (!size)
				return 0;
			at += size;
		}
	return at;
}

static size_t redis_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	(void)number;
	return sprintf(to, "*5\r\n$4\r\nXADD\r\n$%zu\r\n%s\r\n$1\r\n*\r\n$1\r\nu\r\n$%d\r\n%.*s\r\n", strlen(place->context),
		place->context, payload_bytes, payload_bytes, payload);
}

static long redis_answers(char *said, size_t held, size_t *used)
{
	size_t at = 0, size;
	long count = 0;
	while ((size = resp_value(said + at, held - at, 0, 0, NULL))) {
		at += size;
		count++;
	}
	*used = at;
	return count;
}

static inline size_t redis_read(char *to, const struct place *place, const char *after)
{
	return sprintf(to,
		"*8\r\n$5\r\nXREAD\r\n$5\r\nBLOCK\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n$4\r\n1000\r\n$7\r\nSTREAMS\r\n$%zu\r\n%s\r\n"
		"$%zu\r\n%s\r\n", strlen(place->context), place->context, strlen(after), after);
}

static size_t redis_listening(char *to, const struct place *place)
{
	return redis_read(to, place, "$");
}

static int at_once(const char *said, size_t held)
{
	(void)said, (void)held;
	return 1;
}

/* --- NATS: JetStream publish with ack, core subscription --------------------------------------------------------- */

#define NATS_CONNECT "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"c\",\"version\":\"1\"}\r\n"

static size_t nats_opening(char *to, const struct place *place, int number)
{
	(void)place;
	return sprintf(to, NATS_CONNECT "SUB _INBOX.%d.%d 1\r\nPING\r\n", (int)getpid(), number);
}

static size_t nats_listening(char *to, const struct place *place)
{
	return sprintf(to, NATS_CONNECT "SUB %s 1\r\nPING\r\n", place->context);
}

static int nats_is_open(const char *said, size_t held)
{
	return memmem(said, held, "PONG\r\n", 6) != NULL;
}

static size_t nats_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	return sprintf(to, "PUB %s _INBOX.%d.%d %d\r\n%.*s\r\n", place->context, (int)getpid(), number, payload_bytes,
		payload_bytes, payload);
}

static long nats_answers(char *said, size_t held, size_t *used)
{
	size_t at = 0;
	long count = 0;
	char *end;

	while ((end = memchr(said + at, '\n', held - at))) {
		size_t line = end + 1 - (said + at);
		if (!strncmp(said + at, "MSG ", 4)) {
			char *size_at = end;
			while (size_at[-1] != ' ')
				size_at--;
			size_t size = strtoul(size_at, NULL, 10);
			if (held - at < line + size + 2)
				break;
			if (!memmem(said + at + line, size, "\"seq\"", 5))
				refused("refused", said + at, line + size);
			line += size + 2;
			count++;
		} else if (said[at] == '-') {
			refused("refused", said + at, line);
		}
		at += line; /* A PING of the server comes after minutes: these runs are shorter. */
	}
	*used = at;
	return count;
}

/* --- Centrifugo: its JSON protocol over WebSocket ----------------------------------------------------------------- */

static size_t cent_frames(char *to, const char *const *said, int count)
{
	size_t at = 0;
	for (int i = 0; i < count; i++) {
		size_t size = sprintf(to + at + 14, "%s", said[i]);
		at += client_frame(to + at, 1, size);
	}
	return at;
}

static size_t cent_opening(char *to, const struct place *place, int number)
{
	static const char *const said[] = {"{\"id\":1,\"connect\":{}}"};
	(void)number;
	size_t at = upgrade(to, place, "/connection/websocket", "");
	return at + cent_frames(to + at, said, 1);
}

static size_t cent_listening(char *to, const struct place *place)
{
	char subscribe[300];
	const char *said[] = {"{\"id\":1,\"connect\":{}}", subscribe};
	snprintf(subscribe, sizeof subscribe, "{\"id\":2,\"subscribe\":{\"channel\":\"%s\"}}", place->context);
	size_t at = upgrade(to, place, "/connection/websocket", "");
	return at + cent_frames(to + at, said, 2);
}

static int cent_is_open(const char *said, size_t held)
{
	return has_frame(said, held, "connect");
}

static int cent_is_listening(const char *said, size_t held)
{
	if (memmem(said, held, "\"error\"", 7))
		refused("refused", said, held);
	return memmem(said, held, "\"subscribe\":", 12) != NULL;
}

static size_t cent_request(char *to, const struct place *place, int number, const char *payload, int payload_bytes)
{
	(void)number;
	size_t size = sprintf(to + 14, "{\"id\":3,\"publish\":{\"channel\":\"%s\",\"data\":\"%.*s\"}}", place->context,
		payload_bytes, payload);
	return client_frame(to, 1, size);
}

static long cent_answers(char *said, size_t held, size_t *used)
{
	size_t at = 0, head;
	uint64_t size;
	long count = 0;

	while ((head = frame_head(said + at, held - at, &size)) && held - at >= head + size) {
		char *body = said + at + head, *end = body + size;
		if ((said[at] & 15) == 8 || memmem(body, size, "\"error\"", 7))
			refused("refused", body, size);
		/* Answers that are ready together share a frame. */
		for (char *found = body; (found = memmem(found, end - found, "\"publish\"", 9)); found += 9)
			count++;
		at += head + size;
	}
	*used = at;
	return count;
}

static const struct wire wires[] = {
	{"ws", ws_opening, ws_is_open, ws_request, ws_answers, ws_listening, ws_is_open},
	{"ws-msgpack", wsm_opening, ws_is_open, wsm_request, ws_answers, wsm_listening, ws_is_open},
	{"http", no_opening, NULL, http_request, http_answers, NULL, NULL},
	{"http-get", no_opening, NULL, get_request, http_answers, NULL, NULL},
	{"sse", no_opening, NULL, NULL, NULL, sse_listening, sse_is_listening},
	{"redis", no_opening, NULL, redis_request, redis_answers, redis_listening, at_once},
	{"nats", nats_opening, nats_is_open, nats_request, nats_answers, nats_listening, nats_is_open},
	{"centrifugo", cent_opening, cent_is_open, cent_request, cent_answers, cent_listening, cent_is_listening},
};

static inline const struct wire *wire_named(const char *name)
{
	for (size_t i = 0; i < sizeof wires / sizeof *wires; i++)
		if (!strcmp(wires[i].name, name))
			return wires + i;
	refused("no such wire", name, strlen(name));
	return NULL;
}

/* Say what opens a connection, and wait until it is. Nothing is said behind an upgrade before that is answered. */
static inline void open_with(int fd, const char *said, size_t size, int (*is_open)(const char *, size_t))
{
	char answer[65536];
	const char *end = memmem(said, size, "\r\n\r\n", 4);
	size_t held = 0, first = end ? (size_t)(end + 4 - said) : size;

	if (!size)
		return;
	write_all(fd, said, first);
	for (int upgraded = first == size; !upgraded || !is_open(answer, held);) {
		ssize_t n = read(fd, answer + held, sizeof answer - held);
		if (n <= 0)
			refused("not opened", answer, held);
		held += n;
		if (!upgraded && memmem(answer, held, "\r\n\r\n", 4)) {
			write_all(fd, said + first, size - first);
			upgraded = 1;
		}
	}
}
#endif
