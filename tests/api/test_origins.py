"""A page from elsewhere neither reads nor writes a bus on loopback; a page of this machine does both."""

import json
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from engram_bus.api.origins import LOOPBACK, Origins
from engram_bus.errors import ForbiddenOrigin
from engram_bus.settings import SettingsError, load
from tests.live import LiveBus
from tests.wire import Wire, request

EVIL = "https://evil.example"
NAMED = Origins(frozenset({"https://app.example:8443", "vscode-webview://abc"}))
UNIT = {"context_id": "plan", "agent_id": "ann"}


@pytest.mark.parametrize(
    "host",
    ["", "127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "localhost.", "app.localhost:80", "[::1]:8080",
     "[::1]", "192.168.1.5:8080", "app.example:8443", "APP.example"],
)  # fmt: skip
def test_the_bus_answers_to_addresses_and_to_its_names(host: str) -> None:
    NAMED.check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "a"]
)
def test_a_name_that_could_be_anyones_is_refused_on_loopback_only(host: str) -> None:
    with pytest.raises(ForbiddenOrigin) as refused:
        NAMED.check_host(host)
    assert refused.value.field == "Host"
    Origins(on_loopback=False).check_host(host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost:3000", "127.0.0.1:8080"),
        ("https://localhost", "127.0.0.1:8080"),
        ("http://127.9.9.9:1", "127.0.0.1:8080"),
        ("http://[::1]:3000", "127.0.0.1:8080"),
        ("http://app.localhost:3000", "127.0.0.1:8080"),
        ("tauri://localhost", "127.0.0.1:8080"),
        ("http://10.0.0.7:8080", "10.0.0.7:8080"),
        ("https://app.example:8443", "127.0.0.1:8080"),
        ("vscode-webview://abc", "127.0.0.1:8080"),
    ],
)
def test_pages_of_the_bus_of_this_machine_and_of_named_places_are_let_in(origin: str, host: str) -> None:
    NAMED.check_origin(origin, host=host)


@pytest.mark.parametrize(
    "origin",
    ["null", "", "https://", EVIL, "https://app.example", "http://app.example:8443", "http://localhost.evil.example",
     "http://127.0.0.1.evil.example", "http://10.0.0.7:8080", "http://127.0.0.1@evil.example", "file://", "localhost"],
)  # fmt: skip
def test_every_other_page_is_not(origin: str) -> None:
    with pytest.raises(ForbiddenOrigin) as refused:
        NAMED.check_origin(origin, host="127.0.0.1:8080")
    assert refused.value.field == "Origin"


@pytest.mark.parametrize(
    ("environment", "file"),
    [
        ({"ENGRAM_ALLOW_ORIGINS": "https://a.example, vscode-webview://b"}, None),
        ({}, "allow_origins: [https://a.example, 'vscode-webview://b']"),
        ({}, "allow_origins: https://a.example,vscode-webview://b,"),
    ],
)
def test_the_operator_names_them_as_text_or_as_a_list(environment: dict[str, str], file: str | None) -> None:
    settings = load(flags={}, environment=environment, file=file)
    assert settings.allow_origins == ("https://a.example", "vscode-webview://b")


@pytest.mark.parametrize(
    "name", ["example.org", "*", "https://", "https://example.org/", "HTTPS://example.org", "null"]
)
def test_what_is_no_origin_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(SettingsError, match="allow_origins"):
        load(flags={"allow_origins": name}, environment={})


# --- Over the wire ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bus() -> Iterator[LiveBus]:
    with LiveBus() as bus:
        bus.append("secret")
        yield bus


@pytest.mark.parametrize("path", ["/workunits/secret", "/stream-sse?context=*&after=0", "/status", "/docs", "/nowhere"])
def test_a_page_from_elsewhere_reads_nothing(bus: LiveBus, path: str) -> None:
    response = bus.http.get(path, headers={"origin": EVIL})
    assert (response.status_code, response.json()["code"]) == (403, "FORBIDDEN_ORIGIN")
    assert "access-control-allow-origin" not in response.headers
    assert "secret" not in response.text


def test_a_page_from_elsewhere_writes_nothing(bus: LiveBus) -> None:
    head = bus.http.get("/status").json()["head"]
    # Without a content type it is a request that browsers send without asking first.
    response = bus.http.post("/workunit", content=json.dumps(UNIT), headers={"origin": EVIL})
    assert response.status_code == 403
    asked = bus.http.options("/workunit", headers={"origin": EVIL, "access-control-request-method": "POST"})
    assert asked.status_code == 403
    assert bus.http.get("/status").json()["head"] == head


def test_a_page_from_elsewhere_opens_no_socket(bus: LiveBus) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(bus.stream_url("?context=*"), origin=Origin(EVIL))
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["code"] == "FORBIDDEN_ORIGIN"
    with connect(bus.stream_url("?context=*"), origin=Origin("http://localhost:3000")) as socket:
        assert json.loads(socket.recv(10))["event"] == "subscribed"


def test_a_name_that_was_made_to_resolve_here_is_refused(bus: LiveBus) -> None:
    for target in ("/workunits/secret", "/stream?context=*"):
        with Wire(bus.address) as wire:
            wire.send(f"GET {target} HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n".encode())
            problem = wire.answer().problem
        assert (problem["status"], problem["code"], problem["field"]) == (403, "FORBIDDEN_ORIGIN", "Host")
    with Wire(bus.address) as wire:
        assert wire.send(b"GET /healthz HTTP/1.0\r\n\r\n").answer().status == 200


def test_a_page_of_a_development_server_reads_and_writes(bus: LiveBus) -> None:
    page = {"origin": "http://localhost:5173"}
    asked = bus.http.options(
        "/workunit",
        headers=page | {"access-control-request-method": "POST", "access-control-request-headers": "content-type"},
    )
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == page["origin"]
    assert {"POST", "PATCH", "DELETE"} <= set(asked.headers["access-control-allow-methods"].split(", "))
    allowed = set(asked.headers["access-control-allow-headers"].split(", "))
    assert allowed == {"Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "X-Agent-ID"}
    written = bus.http.post("/workunit", json=UNIT, headers=page)
    assert written.status_code == 201
    assert written.headers["access-control-allow-origin"] == page["origin"]
    assert {"ETag", "Engram-Applied-Seq"} <= set(written.headers["access-control-expose-headers"].split(", "))
    assert written.headers["vary"] == "origin"


def test_a_page_of_a_development_server_holds_and_releases_locks(bus: LiveBus) -> None:
    page = {"origin": "http://localhost:5173"}
    asked = bus.http.options("/locks/plan.md", headers=page | {"access-control-request-method": "DELETE"})
    assert asked.status_code == 204
    assert "DELETE" in asked.headers["access-control-allow-methods"]
    lock = bus.http.post("/locks", json={"resource": "plan.md", "agent_id": "ann"}, headers=page)
    named = {"agent_id": "ann", "lock_id": lock.json()["lock_id"]}
    released = bus.http.delete("/locks/plan.md", params=named, headers=page)
    assert (lock.status_code, released.status_code) == (201, 200)
    assert released.headers["access-control-allow-origin"] == page["origin"]
    elsewhere = bus.http.delete("/locks/plan.md", params=named, headers={"origin": EVIL})
    assert elsewhere.status_code == 403


def test_refusals_and_streams_can_be_read_by_that_page_too(bus: LiveBus) -> None:
    page = {"origin": "http://localhost:5173"}
    assert bus.http.get("/nowhere", headers=page).headers["access-control-allow-origin"] == page["origin"]
    with bus.http.stream("GET", "/stream-sse", params={"context": "*"}, headers=page) as response:
        assert response.headers["access-control-allow-origin"] == page["origin"]


def test_without_an_origin_nothing_is_said_of_any(bus: LiveBus) -> None:
    response = bus.http.get("/status")
    assert not [name for name in response.headers if name.startswith("access-control") or name == "vary"]
    assert bus.http.options("/workunit").status_code == 405


def test_origins_named_by_the_operator_are_let_in() -> None:
    with LiveBus(origins=NAMED) as bus:
        assert bus.http.get("/status", headers={"origin": "https://app.example:8443"}).status_code == 200
        with Wire(bus.address) as wire:
            assert wire.send(b"GET /status HTTP/1.1\r\nHost: app.example\r\n\r\n").answer().status == 200


def test_an_agent_named_in_bytes_that_are_no_text_opens_no_socket(bus: LiveBus) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with Wire(bus.address) as wire:
        head = request("GET", "/stream", b"", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==").strip()
        answer = wire.send(head + b"\r\nX-Agent-ID: \xff\r\n\r\n").answer()
    assert (answer.status, answer.problem["field"]) == (400, "x-agent-id")


def test_the_usual_bus_lets_in_no_one_by_name() -> None:
    assert Origins() == LOOPBACK == Origins(frozenset(), on_loopback=True)
