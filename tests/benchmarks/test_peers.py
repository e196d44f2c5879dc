"""The peers that are installed take the loads that they are measured with; one that is not is left out, and named."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import native, peers
from benchmarks.bench_brokers import APPENDS, DELIVERIES
from benchmarks.harness import in_memory
from benchmarks.peers import Peer

Start = Callable[[Path], AbstractContextManager[Peer | None]]
SECONDS = 0.15
FANS = {name: load for name, load in DELIVERIES.items() if load["subscribers"] == 100}


class Kind(NamedTuple):
    """A peer, and the wire of the loads that it takes."""

    program: str
    start: Start
    wire: str


KINDS = (
    Kind("redis-server", peers.redis, "redis"),
    Kind("nats-server", peers.nats, "nats"),
    Kind("centrifugo", peers.centrifugo, "centrifugo"),
)
VARIANTS = (
    Kind("redis-server", partial(peers.redis, fsync="everysec"), "redis"),
    Kind("nats-server", partial(peers.nats, sync="always"), "nats"),
)
STARTS: Mapping[str, Start] = {kind.program: kind.start for kind in KINDS} | {"etcd": peers.etcd}


def _program(kind: Kind) -> str:
    return kind.program


@pytest.fixture(scope="module", params=KINDS, ids=_program)
def peer(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """The wire and the port of one that runs."""
    with _loaded(request.param) as found:
        yield found


@contextmanager
def _loaded(kind: Kind) -> Iterator[tuple[str, int]]:
    """With memory for a disk: nothing is waited for but its answers."""
    if shutil.which("cc") is None:
        pytest.skip("the load is C")
    with in_memory() as directory, _started(kind.program, kind.start, directory) as found:
        yield kind.wire, found.port


@contextmanager
def _started(program: str, start: Start, directory: Path) -> Iterator[Peer]:
    if peers.installed(program) is None:
        pytest.skip(f"{program} is not installed; what installs it: {peers.INSTALLS[program]}")
    with start(directory) as found:
        assert found is not None, f"{program} is installed"
        yield found


@pytest.mark.parametrize("load", APPENDS.values(), ids=APPENDS)
def test_a_peer_answers_what_is_appended(peer: tuple[str, int], load: Mapping[str, float]) -> None:
    wire, port = peer
    run = native.appends(wire, port, **load, seconds=SECONDS, warm_seconds=0)
    assert len(run.times) == SECONDS * load["per_second"] if "per_second" in load else len(run.times) > 0
    assert run.unanswered == 0


@pytest.mark.parametrize("kind", VARIANTS, ids=_program)
def test_a_peer_that_flushes_at_another_time_answers_too(kind: Kind) -> None:
    with _loaded(kind) as (wire, port):
        run = native.appends(wire, port, clients=64, seconds=SECONDS, warm_seconds=0)
    assert len(run.times) > 0


@pytest.mark.parametrize("load", FANS.values(), ids=FANS)
def test_a_peer_delivers_all_to_each_in_order(peer: tuple[str, int], load: Mapping[str, float]) -> None:
    wire, port = peer
    run = native.fan(wire, port, **load, seconds=SECONDS)
    assert len(run.last) == run.units > 0
    assert len(run.late) == run.units * load["subscribers"]
    assert (run.lost, run.disorder) == (0, 0)


def test_etcd_grants_a_lease(tmp_path: Path) -> None:
    with _started("etcd", peers.etcd, tmp_path) as found:
        assert int(peers.etcd_lease(found.address)) > 0


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
