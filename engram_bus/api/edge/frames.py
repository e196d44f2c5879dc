"""What a client's WebSocket frames are, read from their bytes: whole messages at once, and where all others end."""

try:
    from websockets.speedups import apply_mask
except ImportError:  # Where there is no wheel for the machine.
    from websockets.utils import apply_mask

from engram_bus.limits import WEBSOCKET_MESSAGE_BYTES_MAX

HEAD_BYTES_MAX = 14
"""Two bytes, a length of eight, a mask of four (RFC 6455, 5.2)."""

FIN_TEXT = 0x81
FIN_BINARY = 0x82
_MASKED_16_BITS = 0x80 | 126

assert WEBSOCKET_MESSAGE_BYTES_MAX > 0xFFFF, "what is read here is never too large"


def whole_message(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The message at `at` and where it ends, if it is of one frame of up to 64 KiB that is there whole; None for
    everything else: what is long, cut, fragmented, a control frame, or wrong."""
    if len(data) < at + 6 or data[at] not in (FIN_TEXT, FIN_BINARY):
        return None
    size = data[at + 1]
    if 0x80 <= size < _MASKED_16_BITS:
        size -= 0x80
        mask_at = at + 2
    elif size == _MASKED_16_BITS:
        size = data[at + 2] << 8 | data[at + 3]
        mask_at = at + 4
    else:
        return None
    start = mask_at + 4
    end = start + size
    if end > len(data):
        return None
    return apply_mask(data[start:end], data[mask_at:start]), end


class FrameEnd:
    """Where the frame that is under way ends, however its bytes are cut into pieces."""

    __slots__ = ("_head", "_left", "is_reached")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self.is_reached = True
        """Whether no frame is under way: the next byte begins one."""

    def find(self, data: bytes, at: int) -> int:
        """Where in `data` the frame ends whose bytes go on (or begin) at `at`; the end of `data` if not in it."""
        if not self._left:
            head = self._head + data[at : at + HEAD_BYTES_MAX]
            size = _frame_bytes(head)
            if size is None:
                self._head, self.is_reached = head, False
                return len(data)
            self._left = size - len(self._head)
            self._head = b""
        end = min(at + self._left, len(data))
        self._left -= end - at
        self.is_reached = not self._left
        return end


def _frame_bytes(head: bytes) -> int | None:
    """The bytes of the frame that begins like this; None where that is not enough to tell."""
    if len(head) < 2:
        return None
    size, mask_bytes = head[1] & 0x7F, 4 if head[1] & 0x80 else 0
    if size < 126:
        return 2 + mask_bytes + size
    length_bytes = 2 if size == 126 else 8
    if len(head) < 2 + length_bytes:
        return None
    return 2 + length_bytes + mask_bytes + int.from_bytes(head[2 : 2 + length_bytes], "big")
