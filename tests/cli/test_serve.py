"""`engram serve`: it says where it is, stops when told, and says in one line why it cannot start."""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import httpx
import msgspec
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from engram_bus.settings import GRPC_PORT, Settings
from tests.process import BusProcess, engram, engram_here, interrupt, running


def test_it_says_where_it_is_and_closes_its_log_when_it_is_told_to_stop(tmp_path: Path) -> None:
    for how in (signal.SIGTERM, signal.SIGINT):
        with running("serve", "--port", "0", "--data-dir", str(tmp_path / "data")) as bus:
            assert bus.stdout is not None
            assert bus.stdout.readline().startswith("The bus is at http://127.0.0.1:")
            bus.send_signal(how)
            _, told = bus.communicate(timeout=20)
            assert "the bus has stopped at head 0" in told
            assert bus.returncode == 0


def test_ctrl_c_while_the_search_process_begins_ends_both_without_a_traceback(tmp_path: Path) -> None:
    begins = "import signal, sys; print('begins', file=sys.stderr, flush=True); signal.pause()"
    (tmp_path / "tantivy.py").write_text(begins)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    serve = ("serve", "--port", "0", "--no-grpc", "--data-dir", str(tmp_path / "data"), "--log-level", "warning")
    with running(*serve, "--search", in_front=True, PYTHONPATH=path) as bus:
        assert bus.stdout is not None
        assert bus.stderr is not None
        assert bus.stdout.readline().startswith("The bus is at")
        assert bus.stderr.readline() == "begins\n"
        interrupt(bus)
        _, told = bus.communicate(timeout=20)
    assert (bus.returncode, told) == (0, "")


def test_a_broken_page_that_ends_it_is_not_the_end_without_words(tmp_path: Path) -> None:
    with running("serve", "--port", "0", "--data-dir", str(tmp_path / "data"), "--search") as bus:
        assert bus.stdout is not None
        bus.stdout.readline()
        bus.send_signal(signal.SIGBUS)
        _, told = bus.communicate(timeout=20)
    assert "Fatal Python error: Bus error" in told


def test_every_setting_is_a_flag() -> None:
    told = engram_here("serve", "--help").stdout
    for field in msgspec.structs.fields(Settings):
        assert f"--{field.name.replace('_', '-')} " in told
        if not isinstance(field.default, bool | None):
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default or "none")
            assert f"({default})" in told


def test_every_setting_can_be_a_variable_or_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "engram.yaml"
    file.write_text(f"port: 0\ndata_dir: {tmp_path / 'unused'}\nheartbeat_seconds: 7\n")
    variables = {"ENGRAM_DATA_DIR": str(tmp_path / "data"), "ENGRAM_CONFIG": str(file), "ENGRAM_LOG_LEVEL": "error"}
    with running("serve", "--stall-seconds", "9", **variables) as bus:
        assert bus.stdout is not None
        assert "http://" in bus.stdout.readline()
        bus.terminate()
        assert bus.communicate(timeout=20)[1] == ""
    assert (tmp_path / "data").exists()
    assert not (tmp_path / "unused").exists()


def test_a_second_bus_on_the_same_directory_or_port_is_refused(served: BusProcess, tmp_path: Path) -> None:
    second = engram("serve", "--port", "0", "--data-dir", str(served.data_dir))
    assert second.returncode == 2
    assert "is in use by process" in second.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        second = engram("serve", "--port", port, "--data-dir", str(tmp_path))
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.stderr


def ready(bus: BusProcess) -> dict[str, object]:
    told: dict[str, object] = httpx.get(f"{bus.url}/readyz").json()
    return told


def services(bus: BusProcess) -> list[str]:
    with grpc.insecure_channel(f"127.0.0.1:{ready(bus)['grpc_port']}") as channel:
        return list(ProtoReflectionDescriptorDatabase(channel).get_services())


def test_grpc_is_served_where_it_is_asked_for_and_tells_its_services_on_loopback(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data", "--grpc-port", "0") as bus:
        assert "engram.v1.EngramBus" in services(bus)
        assert ready(bus)["grpc_detail"] is None
    with BusProcess(tmp_path / "data", "--grpc-port", "0", "--no-grpc-reflection") as bus:
        with pytest.raises(grpc.RpcError) as refused:
            services(bus)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with BusProcess(tmp_path / "data", "--no-grpc") as bus:
        assert (ready(bus)["grpc_port"], ready(bus)["grpc_detail"]) == (None, "gRPC is off")


def test_a_taken_port_is_no_grpc_and_said_so_unless_it_was_asked_for(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        # (Another bus may have it already.)
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", GRPC_PORT)))
        with BusProcess(tmp_path / "data") as bus:
            assert ready(bus)["ready"] is True
            assert (ready(bus)["grpc_port"], ready(bus)["grpc_detail"]) == (None, f"port {GRPC_PORT} is taken")
        refused = engram("serve", "--port", "0", "--grpc-port", str(GRPC_PORT), "--data-dir", str(tmp_path / "data"))
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{GRPC_PORT}: Address already in use. Choose another with --grpc-port" in (
        refused.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (["--host", "0.0.0.0"], {}, "--allow-unauthenticated"),
        (["--port", "70000"], {}, "port 70000 is not 0 to 65535"),
        (["--grpc-port", "70000"], {}, "grpc_port 70000 is not 0 to 65535"),
        (["--port", "8123", "--grpc-port", "8123"], {}, "grpc_port 8123 is that of HTTP"),
        ([], {"ENGRAM_PORT": "many"}, "port: Expected `int`, got `str`"),
        (["--log-level", "loud"], {}, "'loud' is not one of debug, info, warning, error"),
        (["--stall-seconds", "0"], {}, "stall_seconds 0.0 is not 1 to 3600"),
        (["--log-size-gib", "0"], {}, "log_size_gib 0 is not 1 to 16384"),
        (["--config", "missing.yaml"], {}, "missing.yaml cannot be read: [Errno 2]"),
        (["--data-dir", "/proc/engram"], {}, "/proc/engram"),
    ],
)
def test_what_it_cannot_do_is_one_line(arguments: list[str], variables: dict[str, str], told: str) -> None:
    refused = engram("serve", *arguments, **variables)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_file_that_sets_what_is_not_known_is_refused_with_what_is(tmp_path: Path) -> None:
    for text, told in [("prot: 1", "sets prot, which is not known; known: host, port"), ("[", "is not YAML")]:
        file = tmp_path / "engram.yaml"
        file.write_text(text)
        refused = engram("serve", "--config", str(file))
        assert refused.returncode == 2
        assert told in refused.stderr
