"""Commands in a directory that is somebody's project: what lies there is never taken for a module of ours."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.process import environment

_NAMES = "random types logging platform token copy select struct shutil json numpy".split()
_MODULE = "raise SystemExit('code of the current directory was executed')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    (path / "engram_bus").mkdir(parents=True)
    for name in (*(f"{name}.py" for name in _NAMES), "engram_bus/__init__.py"):
        (path / name).write_text(_MODULE)
    return path


def command(*arguments: str) -> list[str]:
    """As the installed `engram`, which does not look for modules in the current directory either."""
    return [sys.executable, "-P", "-m", "engram_bus.cli", *arguments]


def engram_in(project: Path, *arguments: str, code: int = 0) -> str:
    ended = subprocess.run(command(*arguments), cwd=project, env=environment(), capture_output=True, timeout=60)
    assert ended.returncode == code, ended.stderr.decode()
    return ended.stdout.decode()


@contextmanager
def bus_in(project: Path, *flags: str) -> Iterator[str]:
    """Its URL."""
    serve = command("serve", "--port", "0", "--no-grpc", "--data-dir", "data", "--log-level", "warning", *flags)
    with subprocess.Popen(serve, cwd=project, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rpartition(" ")[2].strip()
        finally:
            process.terminate()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bus_in_a_project_answers_and_searches(project: Path, workers: str) -> None:
    with bus_in(project, "--workers", workers) as url:
        said = {"context_id": "plan", "agent_id": "ann", "payload": "I take the parser"}
        httpx.post(f"{url}/workunit", json=said).raise_for_status()
        found = httpx.post(f"{url}/search", json={"query": "parser"}, timeout=60)
        assert found.json()["total"] == 1


def test_a_log_in_a_project_is_verified_backed_up_and_repaired(project: Path) -> None:
    with bus_in(project) as url:
        httpx.post(f"{url}/workunit", json={"context_id": "plan", "agent_id": "ann"}).raise_for_status()
    assert "1 of 1 unit whole, in 1 context" in engram_in(project, "verify", "data")
    assert "everything up to" in engram_in(project, "backup", "data", "../backup")
    assert engram_in(project, "export", "data").count("\n") == 3
    assert "whole" in engram_in(project, "restore", "../backup", "../restored")
    (project / "data" / "tenants" / "default" / "identity").unlink()
    engram_in(project, "verify", "data", code=1)
    assert "repaired: the identity of the log" in engram_in(project, "repair", "data")


def test_a_demo_in_a_project_plays_all_of_it(project: Path) -> None:
    assert "277 by 4 agents" in engram_in(project, "demo", "airline", "--seconds", "0")
