"""Every bound of the bus, with its unit in the name and the reason beside it.

A bound reached is a typed answer (see `errors.py`), never a silent cut.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- One work unit ---------------------------------------------------------------------------------------------------
NAME_BYTES_MAX: Final = 256
"""Context ids, agent ids, kinds, tool paths: long enough for a path, short enough for an LMDB key (511 bytes)."""
PAYLOAD_BYTES_MAX: Final = 1 * MIB
"""A unit is a step of work, not a file: bigger things are stored elsewhere and referred to."""
CONTENT_TYPE_BYTES_MAX: Final = 256
META_ENTRIES_MAX: Final = 64
META_KEY_BYTES_MAX: Final = 128
META_VALUE_BYTES_MAX: Final = 4 * KIB
META_BYTES_MAX: Final = 32 * KIB
"""All keys and values of one meta together: meta is for filters, the payload for content."""
RESOURCES_MAX: Final = 64
RESOURCE_BYTES_MAX: Final = 1 * KIB
RELATIONSHIPS_MAX: Final = 64
IDEMPOTENCY_KEY_BYTES_MAX: Final = 256
TRACEPARENT_BYTES_MAX: Final = 128

# --- One request -----------------------------------------------------------------------------------------------------
BULK_UNITS_MAX: Final = 1_000
BULK_BYTES_MAX: Final = 16 * MIB
"""One bulk is one commit: 16 MiB is what a slow disk flushes in about a tenth of a second."""
UNIT_REQUEST_BYTES_MAX: Final = 2 * MIB
"""One unit as JSON: its payload in base64 (4/3 of 1 MiB), its meta and its names."""
CONTEXT_REQUEST_BYTES_MAX: Final = 2 * MIB
LOCK_REQUEST_BYTES_MAX: Final = 256 * KIB
"""The names of the resources of one lock, escaped, and its reason."""
JSON_DEPTH_MAX: Final = 128
"""Nesting of an application/json payload: readers recurse, and the interpreter's own limit is 1,000."""
PAGE_UNITS_DEFAULT: Final = 100
PAGE_UNITS_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 16 * MIB
"""A page ends early when this much was read for it; `next_page` goes on."""
SCAN_UNITS_MAX: Final = 2_000
"""Units looked at for one filtered page, about 10 ms: it ends early (perhaps empty) rather than hold up all others."""
RELATED_DEPTH_MAX: Final = 8
RELATED_UNITS_MAX: Final = 1_000
RELATED_EDGES_MAX: Final = 2_000
"""Relationships looked at for one answer, each a read: beyond, it ends and says that it was truncated."""
MIN_SEQ_TIMEOUT_MS_DEFAULT: Final = 2_000
MIN_SEQ_TIMEOUT_MS_MAX: Final = 60_000
SEARCH_QUERY_BYTES_MAX: Final = 8 * KIB
"""Text to search for: its first 64 different words count."""
SEARCH_LIMIT_MAX: Final = 200
"""Results on a page: as many as each leg looks at."""
SEARCH_WEIGHT_MAX: Final = 10
"""Of what is added to the score of both legs: beyond, nothing else would count."""
SEARCH_RANK_CONSTANT_MAX: Final = 10_000
"""Beyond, all ranks count alike: each leg has 200."""
SEARCH_HALF_LIFE_MS_MAX: Final = 100 * 365 * 86_400_000
SEARCH_INTEGER_MAX: Final = 2**62
"""Of seqs and tokens: beyond what columns of 64 bits hold there is nothing."""
SEARCH_REQUEST_BYTES_MAX: Final = 1 * MIB
SEARCH_ANSWER_SECONDS_MAX: Final = 8.0
"""How long a search waits for its answer, the start of the process that gives it included: our clients wait 10 seconds
for a request, and are to be told before they give up."""
SEARCHES_MAX: Final = 256
"""Searches that wait for an answer; beyond, BUSY: they are answered one after another, a usual one within 20 ms."""
SEARCH_PAGE_BYTES_MAX: Final = 3 * MIB
"""Of units on a page of search: they are written in one turn of the loop, about 20 ms."""
SEARCH_STEP_BYTES: Final = 256 * KIB
"""Read for an answer in one turn of the loop, about a millisecond: 200 units may be 200 MiB."""
QUERY_BYTES_MAX: Final = 16 * KIB
HEADER_BYTES_MAX: Final = 32 * KIB
HEADER_SECONDS_MAX: Final = 10.0
"""From a connection's first byte to the end of the request's headers: slow-loris."""
BODY_SECONDS_MAX: Final = 60.0
"""From the end of the headers to the end of the body."""
BODY_WIRE_BYTES_MAX: Final = 2 * BULK_BYTES_MAX
"""A body as it comes, chunk headers and all: twice the largest one, so that chunks may be small but not silly."""
KEEP_ALIVE_SECONDS: Final = 75.0
CONNECTIONS_MAX: Final = 20_000
"""Open sockets of one process: the usual file limit of a service."""

# --- gRPC ------------------------------------------------------------------------------------------------------------
GRPC_ANSWER_BYTES_MAX: Final = 3 * MIB
"""Of units or contexts in one answer, beyond the first: clients out of the box read messages of up to 4 MiB."""
GRPC_MESSAGE_BYTES_MAX: Final = 256
"""Of a status's own text, which triples where it is no ASCII."""
GRPC_ERROR_BYTES_MAX: Final = 4 * KIB
"""Of the error in a status: clients out of the box refuse metadata of more than 8 KiB, and take no trailer apart."""
GRPC_ITEM_ERROR_BYTES_MAX: Final = 1 * KIB
"""Of the error of one unit of a batch."""

# --- One context -----------------------------------------------------------------------------------------------------
CONTEXT_AGENTS_MAX: Final = 10_000
CONTEXT_PINS_MAX: Final = 1_000
CONTEXT_FENCES_MAX: Final = 64
CONTEXT_FENCES_BYTES_MAX: Final = 2 * KIB
"""All fences together: matching costs up to this times the bytes of a resource, for every unit, in the loop."""
CONTEXT_CHANGES_MAX: Final = 1_000
"""Names in one list of one update (add_agents, pin_units, ...)."""
DISPLAY_NAME_BYTES_MAX: Final = 1 * KIB

# --- Locks -----------------------------------------------------------------------------------------------------------
LOCK_TTL_MS_MIN: Final = 100
"""Below, a lease would run out while its holder's refresh is under way."""
LOCK_TTL_MS_MAX: Final = 86_400_000
LOCK_TTL_MS_DEFAULT: Final = 30_000
LOCK_WAIT_MS_MAX: Final = 3_600_000
LOCK_RESOURCES_MAX: Final = 64
"""Resources of one lock: as many as one unit can touch."""
LOCK_DEPTH_MAX: Final = 64
"""Segments of a locked resource: each is looked at in every decision."""
LOCK_REASON_BYTES_MAX: Final = 1 * KIB
LOCKS_PER_AGENT_MAX: Final = 10_000
LOCKS_MAX: Final = 250_000
"""All agents together; one with a name of 50 characters takes about 2 KB in memory."""
LOCK_NAMES_PER_AGENT_MAX: Final = 32 * MIB
"""Characters of the names of one agent's locks and waits, each with all that is above it: 10,000 of any usual path."""
LOCK_NAMES_MAX: Final = 256 * MIB
"""Of all agents together."""
LOCK_WAITS_PER_AGENT_MAX: Final = 1_000
LOCK_WAITS_MAX: Final = 20_000
LOCK_QUEUE_SHOWN_MAX: Final = 100
"""Waits named when one looks at a resource; their number is always told."""
LOCK_GRAPH_WAITS_MAX: Final = 2_000
"""Waits that one search for a circle looks at, about 8 ms: beyond, the wait is let in, and its deadline ends it."""
LOCK_GRAPH_LOOKS_MAX: Final = 20_000
"""Holders that it looks at."""
LOCK_LOOKS_AT_ONCE_MAX: Final = 64
"""Waits looked at again when what they watch is gone: a larger crowd is, some in each commit."""
LOCK_LOOKS_MAX: Final = 1_000
"""Of one commit, about 5 ms."""
LOCK_HOLDERS_SHOWN_MAX: Final = 1_000
LOCK_TEND_UNITS_MAX: Final = 512
"""Of one commit, for leases that ran out and waits that end: a mass of them does not hold up who appends."""
LOCK_TEND_STEP_UNITS: Final = 64
"""Decided at once, after which the commit's bytes are looked at: a unit may name 64 resources of 1 KiB."""
LOCK_TIMER_SECONDS_MAX: Final = 1.0
"""How long the writer sleeps at most while a lease or a wait may run out."""
LOCK_BREAK_MAX: Final = 1_000
"""Holders that one break takes a resource from; a further one takes the rest."""
LOCK_BREAK_BYTES_MAX: Final = 16 * MIB
"""Of the units that say so, likewise: a holder may have 64 names of 1 KiB, and each stands in a unit twice."""
LOCK_SESSION_GRACE_SECONDS: Final = 5.0
"""After a connection ended, how long its locks wait for the agent to come back and ask for them again."""

# --- The writer ------------------------------------------------------------------------------------------------------
BATCH_UNITS_MAX: Final = 2_048
"""Units of one commit: keeps a commit's stall of the loop in single milliseconds."""
BATCH_BYTES_MAX: Final = 32 * MIB
QUEUE_COMMANDS_MAX: Final = 16_384
"""Commands waiting for the writer; beyond, BUSY."""
QUEUE_BYTES_MAX: Final = 64 * MIB
GATHER_TURNS_MAX: Final = 256
"""Turns of the loop that a commit is put off for commands that come one in a turn: 3 ms at most."""
GATHER_IDLE_TURNS_MAX: Final = 32
"""Of those, turns in a row that bring none, about 0.2 ms: a flush takes as long."""
SNAPSHOT_UNITS: Final = 100_000
"""A start folds at most this many units after the newest snapshot."""
SEGMENT_BYTES: Final = 1 * MIB
"""Of the file that makes a commit durable: a larger commit goes to LMDB itself."""
NEWEST_UNITS_MAX: Final = 256
"""Last units of a context that was read lately, which are kept in memory with their encodings."""
NEWEST_BYTES_MAX: Final = 16 * MIB
"""Of all such contexts together; their JSON takes as much again."""
TAIL_UNITS_MAX: Final = 512
"""Newest units that LMDB has not taken over yet: it takes them at once, in single milliseconds."""
TAIL_BYTES_MAX: Final = 512 * KIB
SETTLE_QUIET_SECONDS: Final = 0.02
"""After the last append, when LMDB takes over what there is: who reads the log beside the bus hears of it then."""
SETTLE_SECONDS: Final = 0.1
"""The same while appends go on: whoever appends meanwhile waits for it, so it is to be one in a hundred and fewer."""
STAMP_TELLS_SECONDS: Final = 0.1
"""Between two writes of a file, so that its times differ: the clock that they are taken from ticks in 10 ms or less."""
STORAGE_RETRY_SECONDS: Final = 0.5
"""How often a full disk is asked for room again."""
RETRY_AFTER_SECONDS: Final = 1
"""When to come back after a refusal that may pass."""
DISK_RESERVE_BYTES: Final = 64 * MIB
"""Appends stop while less is free, so that indexes, snapshots and the operator have room to work."""
DISK_RESERVE_DIVISOR: Final = 16
"""On a small disk the reserve is this fraction of it instead."""
LOG_SIZE_BYTES_MAX: Final = 64 * GIB
"""The sparse map of one log; its indexes get as much."""

# --- Several processes -----------------------------------------------------------------------------------------------
WORKERS_MAX: Final = 64
"""Each holds the state of the log in memory and hears of every unit."""
WORKERS_BY_ITSELF_MAX: Final = 4
"""Where their number is not given: every unit is decoded and folded once in each."""
FLUSH_TRIALS_MAX: Final = 32
"""Flushes of the disk measured at a start, of which half are faster than the figure told."""
FLUSH_TRIAL_SECONDS_MAX: Final = 0.5
"""After this no more are begun: a slow disk shows soon enough."""
FLUSH_SLOW_US_MIN: Final = 1_000
"""From here on a commit is left to a log process: one at a time, each would hold up reads, fan-out and new requests for
as long as a page of catching up takes, and the way to another process and back costs a tenth of it."""
WORKER_LINE_BYTES: Final = 4 * MIB
"""Records on their way to a worker: beyond, it is behind, and the log is its queue, as for every subscriber."""
WORKER_STALL_SECONDS: Final = 10.0
"""A worker that takes nothing of what it is behind by for this long is cut off and started again."""
WORKER_CATCH_UP_SECONDS_MAX: Final = 1.0
"""How long a read may hold up a worker's loop for records that another worker's client was told of already: they are
under way."""
WORKER_TALLY_SECONDS: Final = 0.5
"""How often processes tell one another what they count."""
LOG_SILENT_SECONDS: Final = 5.0
"""A worker that has heard nothing of the log process for so long takes no appends and is not ready, until it does."""
WORKER_RESTART_SECONDS: Final = 0.1
"""Before a worker that died is started again; doubled each time, unless it lived for a while."""
WORKER_RESTART_SECONDS_MAX: Final = 5.0
PROCESS_END_SECONDS_MAX: Final = 15.0
"""After it was told to stop; then it is killed. A worker drains in less."""

# --- Backups ---------------------------------------------------------------------------------------------------------
BACKUP_SEGMENT_BYTES: Final = 64 * MIB
"""A segment that has reached this is not added to any more: only the last is read again by the next run."""
BACKUP_FLUSH_BYTES: Final = 8 * MIB
"""Written between two flushes: a larger one would hold up the commits of a bus on the same disk."""
EXPORT_LINE_BYTES_MAX: Final = 8 * MIB
"""One exported unit as JSON: a payload of control characters takes six times its bytes."""

# --- The subscription ------------------------------------------------------------------------------------------------
RING_UNITS_MAX: Final = 8_192
RING_BYTES_MAX: Final = 16 * MIB
"""Recent units kept encoded, counted as they lie in the log; as values and as JSON they take about three times that.
Who is further behind reads the log, which the operating system still has in memory."""
CATCH_UP_UNITS: Final = 256
CATCH_UP_BYTES: Final = 256 * KIB
"""One page of catching up: one turn of the loop, about a millisecond."""
FRAME_BYTES_MAX: Final = 256 * KIB
"""Units joined in one frame (their MessagePack; JSON may be more); one larger unit goes alone. WebSocket clients out of
the box take messages of up to 1 MiB."""
FILTER_VALUES_MAX: Final = 1_000
"""Contexts, agents, types, kinds ... named in one filter."""
FILTER_GLOB_BYTES_MAX: Final = 2 * KIB
"""All globs of one field together: matching costs up to this times the bytes of a name, for every unit, in the loop."""
SOCKET_BUFFER_BYTES: Final = 256 * KIB
"""High-water mark of a subscriber's socket: beyond, it is behind, and the log is its queue."""
SOCKET_STALL_SECONDS: Final = 30.0
"""A socket that takes nothing for this long is closed with a code that says: resume after your cursor."""
PEER_SILENT_SECONDS: Final = 120.0
"""What was sent and not acknowledged by the peer's TCP for this long ends the connection: the peer is gone.
Longer than a stall and its grace, which are told by a close code."""
HEARTBEAT_SECONDS: Final = 15.0
"""Below the idle timeout of common proxies (60 s), often enough for a narrow filter's cursor to stay fresh."""
WEBSOCKET_MESSAGE_BYTES_MAX: Final = 2 * MIB
STREAM_PENDING_MAX: Final = 1_024
"""Appends of one socket or AppendStream call that wait for their answer; beyond, it is not read."""
STREAM_PENDING_BYTES_MAX: Final = 16 * MIB
WEBSOCKET_SUBSCRIPTIONS_MAX: Final = 256
CORRELATION_BYTES_MAX: Final = 128
"""The `id` of a WebSocket operation."""
LEAVE_SECONDS_MAX: Final = 3.0
"""After a refusal or a close frame, how long the other side has to read it before the connection is cut."""
DRAIN_SECONDS_MAX: Final = 5.0
"""After goaway, how long a stop waits for subscribers to leave by themselves."""
GOAWAY_RETRY_MS_MIN: Final = 100
GOAWAY_RETRY_MS_MAX: Final = 2_000
SSE_RETRY_MS: Final = 1_000

assert 2 * DRAIN_SECONDS_MAX < PROCESS_END_SECONDS_MAX, "who drains is not killed"
assert BULK_UNITS_MAX <= BATCH_UNITS_MAX, "one bulk is one commit"
assert BULK_BYTES_MAX <= BATCH_BYTES_MAX <= QUEUE_BYTES_MAX, "one bulk fits a commit, one commit fits the queue"
assert BATCH_UNITS_MAX <= RING_UNITS_MAX, "one commit must fit the ring"
assert PAYLOAD_BYTES_MAX * 4 // 3 + META_BYTES_MAX < UNIT_REQUEST_BYTES_MAX <= WEBSOCKET_MESSAGE_BYTES_MAX
assert CATCH_UP_BYTES <= FRAME_BYTES_MAX, "one page of catching up is one frame"
assert LEAVE_SECONDS_MAX < DRAIN_SECONDS_MAX, "who is told to go is cut before the stop gives up waiting"
assert 2 * SOCKET_STALL_SECONDS < PEER_SILENT_SECONDS
assert PAGE_UNITS_MAX <= SCAN_UNITS_MAX
assert PAYLOAD_BYTES_MAX < GRPC_ANSWER_BYTES_MAX
assert SEARCH_PAGE_BYTES_MAX <= GRPC_ANSWER_BYTES_MAX
assert BULK_UNITS_MAX * GRPC_ITEM_ERROR_BYTES_MAX < GRPC_ANSWER_BYTES_MAX, "a batch may be refused unit by unit"
assert SEARCH_STEP_BYTES <= SEARCH_PAGE_BYTES_MAX <= PAGE_BYTES_MAX
assert TAIL_BYTES_MAX < SEGMENT_BYTES, "a tail fits the segment"
assert LOCK_TEND_UNITS_MAX <= BATCH_UNITS_MAX - BULK_UNITS_MAX, "beside it, one bulk still fits a commit"
assert LOCK_BREAK_MAX <= BULK_UNITS_MAX
assert LOCK_BREAK_BYTES_MAX <= BULK_BYTES_MAX
assert STORAGE_RETRY_SECONDS <= RETRY_AFTER_SECONDS, "who comes back finds that the disk was asked again"
assert RESOURCES_MAX <= LOCK_RESOURCES_MAX, "one lock can cover what one unit touches"
