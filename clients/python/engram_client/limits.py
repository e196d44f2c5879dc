"""Every bound of the client, with its unit in the name and the reason beside it."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

TIMEOUT_SECONDS: Final = 10.0
"""One request, from sending it to the last byte of its answer, where nothing else is asked."""
WAIT_MS_DEFAULT: Final = 2_000
"""How long the bus waits for `min_seq` when not told; a request that waits gets this much longer."""

# --- Trying again ----------------------------------------------------------------------------------------------------
REQUEST_RETRIES: Final = 6
"""Requests: 5 seconds on average, time enough for a bus to start again."""
PIPELINE_RETRIES: Final = 20
"""Pipelines: most of a minute without a single acknowledgement."""
BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
"""The n-th wait is random between 0 and MIN * 2^n, at most MAX: full jitter, so that a restart is not met by all
clients at once."""
RETRY_AFTER_SECONDS_MAX: Final = 60.0
"""A bus that asks for a longer pause than this gets this one."""
STEADY_SECONDS: Final = 5.0
"""A connection that lived this long was a good one: counting failures starts again."""

# --- Locks -----------------------------------------------------------------------------------------------------------
LEASE_SECONDS: Final = 30.0
"""How long a lock is held unless it is refreshed, where nothing else is asked."""
LEASE_REFRESHED_AT: Final = 1 / 3
LEASE_SPREAD: Final = 0.2
"""A lease is refreshed when a third of it is over, or up to a fifth of that earlier: two thirds are left for a bus that
is away, and leases of one moment do not meet again."""
LEASE_PAUSE_SECONDS_MAX: Final = 1.0
"""Between two tries to refresh. Shorter than for other requests: there is something to lose."""
LEASE_RELEASE_SECONDS: Final = 3.0
"""How long giving back may take; then the lease runs out by itself."""
SESSION_GRACE_SECONDS: Final = 5.0
"""How long the bus keeps a lock whose session has ended for a new session to take over."""
SESSION_PING_SECONDS: Final = 1.0
"""How often a session asks for a sign of life: without one, the grace may have begun."""
SESSION_ANSWER_SECONDS: Final = 2.0
"""How long it waits for one, before it tries another session."""

# --- Streams ---------------------------------------------------------------------------------------------------------
HEARTBEAT_SECONDS: Final = 15.0
"""How often the bus says something on a quiet subscription."""
SILENCE_SECONDS: Final = 2.5 * HEARTBEAT_SECONDS
"""Two heartbeats lost and one half late: the connection is dead, even if nobody has said so."""
FRAME_BYTES_MAX: Final = 16 * MIB
"""The bus joins units up to 1 MiB; one large unit goes alone."""
SSE_EVENT_BYTES_MAX: Final = FRAME_BYTES_MAX
FRAMES_QUEUED: Final = 4
"""Frames of a socket taken in before they are read."""
PENDING_UNITS: Final = 1_024
PENDING_BYTES: Final = 8 * MIB
"""Units (and their payloads) taken in ahead of the reader; beyond either, the socket is not read: the log is the
queue."""
QUERY_BYTES_MAX: Final = 8 * KIB
"""A longer filter goes into a frame instead of the URL: half of what the bus reads, and what proxies let through."""
CLOSE_SECONDS: Final = 1.0
"""How long a closing handshake may take; nothing depends on it."""

# --- gRPC ------------------------------------------------------------------------------------------------------------
ANSWER_BYTES_MAX: Final = 64 * MIB
"""One message. The bus fills pages of 16 MiB."""
METADATA_BYTES_MAX: Final = 1 * MIB
"""What comes with an answer, among it the details of a refusal: names and reasons of a whole circle of waits."""
KEEPALIVE_SECONDS: Final = 15.0
KEEPALIVE_ANSWER_SECONDS: Final = 10.0
"""While a call is under way, a quiet connection is asked for a sign of life that often, and given up without one."""
RECONNECT_SECONDS_MIN: Final = 0.1
RECONNECT_SECONDS_MAX: Final = 1.0
"""Between two tries to connect; within them, calls fail at once. Short: how often calls come, `backoff` says."""

# --- The pipeline ----------------------------------------------------------------------------------------------------
WINDOW_UNITS: Final = 256
"""Appends sent and not yet acknowledged."""
WINDOW_BYTES_MAX: Final = 16 * MIB
"""The same in bytes; what the bus takes in from one socket."""
APPEND_FRAME_BYTES_MAX: Final = 2 * MIB
"""What the bus reads as one message; a larger one would cost the connection."""
BATCH_BYTES: Final = 1 * MIB
BATCH_UNITS_MAX: Final = 1_000
"""Appends are joined to one message until it has so many bytes (one append more is let in), or units: more the bus does
not read at once."""
PING_SECONDS: Final = 15.0
"""A socket that only publishes gets no heartbeats, so it asks."""
FAILURES_KEPT: Final = 1_000
"""Refused appends whose receipts nobody has looked at yet."""

CONNECTIONS_MAX: Final = 64
"""Requests of one client at the same time; more wait their turn."""
CHUNK_UNITS: Final = 100
"""Units carried from the loop's thread to another at once."""

assert APPEND_FRAME_BYTES_MAX < WINDOW_BYTES_MAX, "one append must fit the window"
assert SILENCE_SECONDS > 2 * HEARTBEAT_SECONDS, "one lost heartbeat is no reason to leave"
assert 0 < LEASE_REFRESHED_AT < 1, "a lease is refreshed before it is over"
assert SESSION_PING_SECONDS + SESSION_ANSWER_SECONDS + LEASE_PAUSE_SECONDS_MAX < SESSION_GRACE_SECONDS, (
    "who hears nothing more tries another session in time"
)
