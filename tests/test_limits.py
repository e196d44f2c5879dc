"""Limits: each is named with its unit, and each is used, and they fit one another."""

import re
from pathlib import Path

import pytest

from engram_bus import limits
from engram_client.limits import TIMEOUT_SECONDS

SOURCES = Path(limits.__file__).parent
NAMES = [name for name in vars(limits) if name.isupper()]
ENDINGS = ("BYTES", "UNITS", "SECONDS", "MS", "DIVISOR", "DEFAULT", "MAX", "MIN", "KIB", "MIB", "GIB")


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_says_its_unit_and_is_positive(name: str) -> None:
    assert name.endswith(ENDINGS)
    assert getattr(limits, name) > 0


def test_every_limit_is_kept_somewhere() -> None:
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*.py") if path.name != "limits.py")
    own = (SOURCES / "limits.py").read_text()
    unused = [name for name in NAMES if not re.search(rf"\b{name}\b", text) and own.count(name) < 2]
    assert unused == []


def test_what_is_written_as_json_fits_its_request() -> None:
    """A payload in base64 with all that may surround it."""
    around = limits.META_BYTES_MAX * 2 + limits.RESOURCES_MAX * limits.RESOURCE_BYTES_MAX + 64 * limits.KIB
    assert limits.PAYLOAD_BYTES_MAX * 4 // 3 + around < limits.UNIT_REQUEST_BYTES_MAX


def test_a_heartbeat_comes_before_a_proxy_loses_patience_and_a_stall_is_noticed_after_one() -> None:
    assert limits.HEARTBEAT_SECONDS < limits.SOCKET_STALL_SECONDS < 60


def test_who_searches_is_answered_before_a_client_gives_up() -> None:
    assert limits.SEARCH_ANSWER_SECONDS_MAX < TIMEOUT_SECONDS
