"""How long to wait before trying again, and when to stop: counts failures, knows no clock and no dice."""

from engram_client.errors import EngramConnectionError, EngramError
from engram_client.limits import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, RETRY_AFTER_SECONDS_MAX


class Backoff:
    """Failures in a row. `max_retries` None means for ever."""

    def __init__(self, max_retries: int | None) -> None:
        self._max_retries = max_retries
        self._failures = 0

    def worked(self) -> None:
        """Something was achieved: counting starts again."""
        self._failures = 0

    def seconds(self, error: EngramError, *, chance: float, for_ever: bool = False) -> float:
        """The wait after `error`, `chance` being random in [0, 1). Raises where trying again makes no sense.

        `for_ever` counts this failure, but does not give up over it.
        """
        if not error.retryable:
            raise error
        self._failures += 1
        if self._max_retries is not None and self._failures > self._max_retries and not for_ever:
            raise _gave_up(error, self._failures)
        asked = min(error.retry_after_seconds or 0.0, RETRY_AFTER_SECONDS_MAX)
        return asked + chance * min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(self._failures, 30))


def _gave_up(error: EngramError, attempts: int) -> EngramError:
    if isinstance(error, EngramConnectionError) and attempts > 1:
        error.message = f"{error.message} ({attempts} attempts)"
    return error
