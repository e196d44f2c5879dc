"""A peer that is not installed is left out, and named."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import Peer

Start = Callable[[Path], AbstractContextManager[Peer | None]]
STARTS: dict[str, Start] = {
    "redis-server": peers.redis,
    "nats-server": peers.nats,
    "centrifugo": peers.centrifugo,
    "etcd": peers.etcd,
}


@pytest.mark.parametrize("program", STARTS)
def test_who_is_not_installed_is_named_once_and_so_is_what_installs_it(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    peers.say_missing.cache_clear()
    with STARTS[program](tmp_path) as one, STARTS[program](tmp_path) as another:
        assert (one, another) == (None, None)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"{program} is not installed and is left out; what installs it: {peers.INSTALLS[program]}"
