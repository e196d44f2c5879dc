"""The command line as a whole, and `status` and `post`: what they print, and what they say when it cannot be."""

import json
import os
import shlex
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.process import BusProcess, engram, engram_here, environment, interrupt, running

COMMANDS = tuple("serve status post tail search lock replay verify backup restore export import repair demo".split())


def test_help_names_every_command_and_every_command_has_help() -> None:
    told = engram("--help").stdout
    assert told == engram_here("--help").stdout
    for command in COMMANDS:
        assert f"│ {command} " in told
        assert f"Usage: engram {command}" in engram_here(command, "-h").stdout


def test_every_command_line_of_the_readme_is_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = readme[readme.index("In a terminal:") :].split("```")[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("engram ")]
    assert {line[1] for line in lines} >= {"post", "tail", "search", "status", "lock", "replay", "verify", "demo"}
    for _, *words in lines:
        own = words[: words.index("--")] if "--" in words else words
        told = engram_here(*own[: 2 if own[0] == "lock" else 1], "--help")
        assert told.exit_code == 0
        for flag in (word for word in own if word.startswith("--")):
            assert f" {flag} " in told.stdout, (own, flag)


def test_help_answers_at_once_because_nothing_heavy_is_loaded() -> None:
    heavy = {"httpx", "websockets", "uvicorn", "starlette", "numpy", "tantivy", "tokenizers"}
    code = f"import sys, engram_bus.cli.app; print(*{heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert loaded.stdout.split() == []


def test_ctrl_c_while_a_command_loads_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("print('loads', flush=True); import signal; signal.pause()")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with running("status", in_front=True, PYTHONPATH=path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loads\n"
        interrupt(process)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (130, "")


def test_a_command_that_asks_a_bus_does_not_load_the_command_line_of_httpx() -> None:
    code = "import atexit, sys, engram_bus.cli; atexit.register(lambda: print(*sys.modules)); engram_bus.cli.main()"
    ask = [sys.executable, "-c", code, "status", "--url", "http://127.0.0.1:1"]
    asked = subprocess.run(ask, capture_output=True, text=True, env=environment())
    assert "no bus answers" in asked.stderr
    loaded = asked.stdout.split()
    assert "httpx" in loaded
    assert not {"click", "pygments", "rich"} & set(loaded)


def test_a_word_it_does_not_know_is_told_with_exit_code_2() -> None:
    for arguments in (["sevre"], ["status", "--jsno"], ["post"]):
        assert engram(*arguments).returncode == 2
    assert engram("--version").stdout.startswith("engram-bus ")


def test_status_for_people_and_for_programs(served: BusProcess) -> None:
    shown = engram("status", ENGRAM_URL=served.url).stdout
    for name in ("head", "epoch", "durability", "fsync", "subscribers", "disk", "waiting", "search"):
        assert name in shown
    status = json.loads(engram("status", "--json", "--url", served.url).stdout)
    assert {"epoch", "head", "cursor", "durability", "subscribers", "disk", "lag_units"} <= status.keys()


def test_a_post_is_there_when_it_returns(served: BusProcess, context: str) -> None:
    posted = engram("post", context, "hällo", "--agent", "ann", "--url", served.url)
    assert posted.stdout.startswith("seq ")
    assert f"version 1 of {context}" in posted.stdout


def test_a_post_with_everything(served: BusProcess, context: str) -> None:
    variables = {"ENGRAM_URL": served.url, "ENGRAM_AGENT": "bob"}
    first = json.loads(
        engram("post", context, "--type", "tool-call", "--kind", "build.run", "--json", **variables).stdout
    )
    answer = ["--reply-to", first["id"], "--meta", "a=1", "--meta", "b==", "--resource", "src/a.py", "--resource", "b"]
    unit = json.loads(
        engram("post", context, "-", "--json-payload", "--json", *answer, said='{"n": [1, "ü"]}', **variables).stdout
    )
    assert (first["type"], first["kind"], first["agent_id"]) == ("TOOL_CALL", "build.run", "bob")
    assert unit["relationships"] == [{"target_id": first["id"], "type": "RESPONDS_TO"}]
    assert (unit["meta"], unit["resources"]) == ({"a": "1", "b": "="}, ["src/a.py", "b"])
    assert (unit["payload"], unit["content_type"]) == ({"n": [1, "ü"]}, "application/json")


def test_bytes_from_stdin_stay_bytes(served: BusProcess, context: str) -> None:
    unit = json.loads(engram("post", context, "-", "--json", "--url", served.url, said=b"\xff\x00").stdout)
    assert (unit["content_type"], unit["payload_base64"]) == ("application/octet-stream", "/wA=")


def test_the_same_key_gives_the_same_unit_and_a_version_that_moved_is_refused(served: BusProcess, context: str) -> None:
    post = ["post", context, "once", "--agent", "ann", "--url", served.url]
    same = {engram(*post, "--idempotency-key", context).stdout for _ in range(2)}
    assert len(same) == 1
    moved = engram(*post, "--expected-version", "0")
    assert (moved.returncode, moved.stdout) == (1, "")
    assert "VERSION_MOVED" in moved.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--type", "poem"], 2, "--type 'poem' is none of unknown, message, reasoning, tool-call, "),
        (["--kind", "Loud"], 2, "not dotted lower case (like build.failed) (field kind)"),
        (["--meta", "novalue"], 2, "--meta 'novalue' is not KEY=VALUE"),
        (["--json-payload"], 2, "is not JSON"),
        (["--agent", ""], 2, "--agent names nobody"),
    ],
)
def test_a_post_that_cannot_be_names_what_is_wrong(
    served: BusProcess, context: str, arguments: list[str], code: int, told: str
) -> None:
    refused = engram("post", context, "x", *arguments, "--url", served.url)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["post", "plan", "x"],
        ["tail"],
        ["search", "x"],
        ["lock", "list"],
        ["lock", "acquire", "x", "--wait", "9"],
        ["lock", "run", "x"],
        ["replay", __file__],
    ],
)
def test_without_a_bus_it_says_so_and_what_to_do(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    if command[0] == "replay":
        file = tmp_path_factory.mktemp("one") / "one.jsonl"
        file.write_text('{"agent": "ann", "text": "hi"}\n')
        command = ["replay", str(file)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    runs = ["--", "true"] if command[:2] == ["lock", "run"] else []
    failed = engram(*command, "--url", f"http://127.0.0.1:{port}", *runs)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert f"no bus answers at http://127.0.0.1:{port}" in failed.stderr
    assert "engram serve" in failed.stderr
    # What lasts asks again for a moment, and says so: its bus may be starting.
    assert failed.stderr.count("\n") == (2 if command[0] == "replay" or runs else 1)


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["post", "plan", "x"],
        ["tail"],
        ["search", "x"],
        ["rebuild"],
        ["lock", "list"],
        ["lock", "acquire", "x"],
        ["lock", "run", "x"],
        ["replay"],
        ["conformance"],
    ],
    ids=" ".join,
)
def test_an_url_that_cannot_be_one_is_told_by_every_command(command: list[str], tmp_path: Path) -> None:
    if command == ["replay"]:
        file = tmp_path / "one.jsonl"
        file.write_text('{"agent": "ann", "text": "hi"}\n')
        command = ["replay", str(file)]
    runs = ["--", "true"] if command[:2] == ["lock", "run"] else []
    failed = engram(*command, "--url", "http://127.0.0.1:99999", *runs)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == (
        "engram: 'http://127.0.0.1:99999' is not a URL: Port out of range 0-65535."
        " Is --url http://127.0.0.1:99999 right?\n"
    )


def test_what_is_asked_wrongly_is_not_put_down_to_the_url() -> None:
    assert engram("post", "plan", "x", "--agent", "ev\x1bil").stderr == (
        "engram: 'ev\\x1bil' is not the name of an agent.\n"
    )
    assert engram("lock", "acquire", "x", "--ttl", "nan").stderr == (
        "engram: ttl_seconds nan is not a number of seconds.\n"
    )


def test_what_is_not_an_url_and_what_is_not_a_bus_is_told() -> None:
    assert "not an http, https, grpc or grpcs URL. Is --url bus right?" in engram("status", "--url", "bus").stderr
    assert "is not a URL: Port could not be cast" in engram("status", "--url", "http://127.0.0.1:80:").stderr

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()
            self.wfile.write(b"<html>\n<p>something else\n")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            for status in (200, 404, 500):
                failed = engram("status", "--url", f"http://127.0.0.1:{server.server_port}/{status}")
                assert failed.returncode == 1
                assert "--url" in failed.stderr
                assert failed.stderr.count("\n") == 1
        finally:
            server.shutdown()
            thread.join()
