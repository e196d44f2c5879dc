"""What every client made from the proto files alone is told in one conversation on an empty bus in memory.

`ann` appends and takes a lock; `bob` cannot have it; she writes under her fence, and he cannot; he appends a stream, of
which one unit names no context; what was said is searched, and read from the beginning.
"""

from base64 import b64encode
from typing import Any


def _heard(seq: int, agent: str, payload: bytes) -> list[Any]:
    return [seq, agent, b64encode(payload).decode()]


TOLD: dict[str, Any] = {
    "appended": [1, 1, "ann", "MESSAGE", "I take the parser", "memory"],
    "granted": ["repo/src", "ann", 2],  # The fencing token is the seq of the grant.
    "held": ["FAILED_PRECONDITION", "LOCK_HELD", "ann"],
    "fenced": 3,
    "stale": ["FAILED_PRECONDITION", "FENCE_STALE"],
    "streamed": [[1, 4], [2, 5], [3, "INVALID_REQUEST"], [4, 6]],
    "found": ["I take the parser"],
    "heard": [
        _heard(1, "ann", b"I take the parser"),
        _heard(3, "ann", b"\x00\xff"),
        _heard(4, "bob", b"the lexer is done"),
        _heard(5, "bob", b"the tests pass"),
        _heard(6, "bob", b"so I go home"),
    ],
    "health": "SERVING",
    "services": ["engram.v1.EngramBus", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"],
}
