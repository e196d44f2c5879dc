"""Other servers beside the bus, each in a process of its own on a port of loopback; None where one is not installed,
which is said once on stderr.
"""

import contextlib
import functools
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT
from benchmarks.native import SERVER_CORE, on_core

INSTALLED = ROOT / ".benchmarks" / "peers"
START_SECONDS_MAX = 20
INSTALLS: Mapping[str, str] = {
    "redis-server": "make tools-peers",
    "nats-server": "make tools-peers, where there is a Go",
    "centrifugo": "make tools-peers, where there is a Go",
    "etcd": "Debian's etcd-server (apt-get install etcd-server)",
}
"""What installs each program."""


class Peer(NamedTuple):
    """Where one is, and what it calls its version."""

    host: str
    port: int
    pid: int
    version: str

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


@contextlib.contextmanager
def redis(directory: Path, *, fsync: str = "always") -> Iterator[Peer | None]:
    """Redis with its append-only file, flushed `always` (before it answers) or `everysec`. No rewrite interferes."""
    program, port, data = _found("redis-server"), free_port(), directory / f"redis-{fsync}"
    if program is None:
        yield None
        return
    data.mkdir()
    durable = ["--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--auto-aof-rewrite-percentage", "0"]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), *durable]
    with _running(command, port, version=_lines(program, "--version")[0]) as peer:
        yield peer


@contextlib.contextmanager
def nats(directory: Path, *, sync: str | None = None) -> Iterator[Peer | None]:
    """NATS with a file stream of JetStream over the subject `bench`: as installed it answers before anything is
    flushed; `sync="always"` flushes first."""
    program, port = _found("nats-server"), free_port()
    if program is None:
        yield None
        return
    data = directory / f"nats-{sync or 'default'}"
    data.mkdir()
    interval = f", sync_interval: {sync}" if sync else ""
    config = data / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{store_dir: "{data}"{interval}}}\n')
    with _running([program, "-c", str(config)], port, version=_built_from(program)) as peer:
        _make_stream(peer.address)
        yield peer


@contextlib.contextmanager
def centrifugo(directory: Path) -> Iterator[Peer | None]:
    """Centrifugo with its engine in memory: fan-out alone, nothing is kept."""
    program, port = _found("centrifugo"), free_port()
    if program is None:
        yield None
        return
    config = directory / "centrifugo.json"
    allowed = {"allow_subscribe_for_client": True, "allow_publish_for_client": True}
    allowed |= {"allow_subscribe_for_anonymous": True, "allow_publish_for_anonymous": True}
    settings = {
        "http_server": {"address": "127.0.0.1", "port": port},
        "client": {"insecure": True, "allow_anonymous_connect_without_token": True, "allowed_origins": ["*"]},
        "channel": {"without_namespace": allowed},
        "log": {"level": "error"},
    }
    config.write_text(json.dumps(settings))
    with _running([program, "-c", str(config)], port, version=_built_from(program)) as peer:
        yield peer


@contextlib.contextmanager
def etcd(directory: Path) -> Iterator[Peer | None]:
    """One member, its own leader."""
    program, port, other = _found("etcd"), free_port(), f"http://127.0.0.1:{free_port()}"
    if program is None:
        yield None
        return
    url = f"http://127.0.0.1:{port}"
    command = [program, "--data-dir", str(directory / "etcd"), "--log-level", "error"]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", other]
    command += ["--initial-advertise-peer-urls", other, "--initial-cluster", f"default={other}"]
    with _running(command, port, version=_lines(program, "--version")[0]) as peer:
        etcd_lease(peer.address)  # Answered only once it has a leader: itself.
        yield peer


def etcd_lease(address: tuple[str, int]) -> str:
    """One that holds for the length of a benchmark."""
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}/v3/lease/grant", data=b'{"TTL":600}')
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(json.load(answer)["ID"])


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def installed(program: str) -> str | None:
    """Where one is: among those of `make tools-peers`, else on the PATH."""
    return shutil.which(program, path=str(INSTALLED)) or shutil.which(program)


def _found(program: str) -> str | None:
    found = installed(program)
    if found is None:
        say_missing(program)
    return found


@functools.cache
def say_missing(program: str) -> None:
    """Once for each, however many benchmarks of a run would have it."""
    print(f"{program} is not installed and is left out; what installs it: {INSTALLS[program]}", file=sys.stderr)


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def _built_from(program: str) -> str:
    """What a program of Go says it was built from, where there is a Go to ask."""
    go = shutil.which("go")
    built = _lines(go, "version", "-m", program) if go else []
    modules = [line.split() for line in built if line.startswith("\tmod\t")]
    return " ".join(modules[0][1:3]) if modules else Path(program).name


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, *, version: str) -> Iterator[Peer]:
    process = subprocess.Popen([*on_core(SERVER_CORE), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_SECONDS_MAX
        while not _listens(port):
            assert process.poll() is None, f"{command[0]} ended"
            assert time.monotonic() < until, f"{command[0]} does not listen"
            time.sleep(0.05)
        yield Peer("127.0.0.1", port, process.pid, version)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _make_stream(address: tuple[str, int]) -> None:
    asked = json.dumps({"name": "bench", "subjects": ["bench"], "storage": "file", "retention": "limits"})
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b'CONNECT {"verbose":false}\r\nSUB made 1\r\n')
        connection.sendall(f"PUB $JS.API.STREAM.CREATE.bench made {len(asked)}\r\n{asked}\r\n".encode())
        answer = b""
        while b'"created"' not in answer:
            said = connection.recv(65_536)
            assert said, answer
            assert b'"error"' not in said, said
            answer += said
