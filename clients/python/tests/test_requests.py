"""Requests say what was meant, and are sent again where that is safe and makes sense."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from engram_client import Client, Draft, EngramConnectionError, EngramError, Lock, WorkUnit
from engram_client.errors import InvalidRequest, MinSeqTimeout, SearchBuilding, VersionMoved, WaitEnded

BUSY = {"code": "BUSY", "detail": "full", "retryable": True}


def query(target: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(target).query)


async def test_an_append_is_sent_again_under_one_key_until_it_is_answered(answering: Any) -> None:
    busy = answering.json(429, BUSY, "Retry-After: 0")
    url, requests = await answering.start(None, busy, answering.json(503, {}), answering.unit(7))
    async with Client(url, agent_id="bob") as bus:
        assert (await bus.append("plan", "hi")).seq == 7
    bodies = [msgspec.msgpack.decode(request.body) for request in requests]
    assert len({body["idempotency_key"] for body in bodies}) == 1
    assert [(request.method, request.target, request.headers["x-agent-id"]) for request in requests] == [
        ("POST", "/workunit", "bob")
    ] * 4


async def test_two_appends_are_two(answering: Any) -> None:
    url, requests = await answering.start(answering.unit())
    async with Client(url, agent_id="bob") as bus:
        await bus.append("plan", "hi")
        await bus.append("plan", "hi")
        await bus.append("plan", "hi", idempotency_key="mine", agent_id="eve")
    bodies = [msgspec.msgpack.decode(request.body) for request in requests]
    assert len({body["idempotency_key"] for body in bodies}) == 3
    assert [body["agent_id"] for body in bodies] == ["bob", "bob", "eve"]
    assert bodies[2]["idempotency_key"] == "mine"


async def test_what_will_not_pass_is_raised_at_once(answering: Any) -> None:
    moved = {"code": "VERSION_MOVED", "detail": "3, not 2", "retryable": False, "current_version": 3}
    url, requests = await answering.start(answering.json(412, moved))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(VersionMoved) as told:
            await bus.append("plan", "hi", expected_version=2)
    assert told.value.details == {"current_version": 3}
    assert len(requests) == 1


async def test_a_wait_for_min_seq_that_ran_out_is_not_waited_for_again(answering: Any) -> None:
    url, requests = await answering.start(answering.json(503, {"code": "MIN_SEQ_TIMEOUT", "retryable": True}))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(MinSeqTimeout):
            await bus.get("u1", min_seq=9, timeout_ms=10)
    assert [query(request.target) for request in requests] == [[("min_seq", "9"), ("timeout_ms", "10")]]


@pytest.mark.parametrize("timeout_ms", [float("nan"), float("inf")])
async def test_a_read_waits_for_a_number_of_milliseconds(closed_url: str, timeout_ms: Any) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest) as told:
            await bus.list("plan", min_seq=1, timeout_ms=timeout_ms)
    assert told.value.field == "timeout_ms"


async def test_no_bus_is_told_after_all_retries(closed_url: str) -> None:
    async with Client(closed_url, agent_id="bob", max_retries=3) as bus:
        with pytest.raises(EngramConnectionError, match="4 attempts"):
            await bus.status()


async def test_a_bus_that_does_not_answer_is_told(answering: Any) -> None:
    url, _ = await answering.start(b"")
    async with Client(url, agent_id="bob", max_retries=0, timeout_seconds=0.05) as bus:
        with pytest.raises(EngramConnectionError, match=r"no answer for 0\.05 s"):
            await bus.status()


async def test_an_answer_that_comes_bit_by_bit_is_waited_for_no_longer_than_any() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Client(url, agent_id="bob", max_retries=0, timeout_seconds=0.2) as bus:
            with pytest.raises(EngramConnectionError, match=r"no answer for 0\.2 s"):
                await bus.status()


async def test_who_waits_while_the_client_is_closed_is_let_go(answering: Any, caplog: pytest.LogCaptureFixture) -> None:
    url, requests = await answering.start(b"")
    async with Client(url, agent_id="bob") as bus:
        waiting = asyncio.create_task(bus.status())
        while not requests:
            await asyncio.sleep(0.01)
    with pytest.raises(EngramConnectionError, match="closed"):
        await waiting
    assert "again" not in caplog.text


async def test_a_closed_client_says_so(closed_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        pass
    with pytest.raises(EngramConnectionError, match="the client is closed") as told:
        await bus.status()
    assert (told.value.retryable, caplog.text) == (False, "")


async def test_a_bulk_has_a_key_for_each_draft_or_one_for_all(answering: Any) -> None:
    url, requests = await answering.start(answering.json(201, {"results": [], "applied_seq": 1}))
    async with Client(url, agent_id="bob") as bus:
        await bus.append_bulk([Draft("plan", "a"), Draft("plan", "b", idempotency_key="own")], idempotency_key="k")
        await bus.append_bulk([Draft("plan", "a"), Draft("plan", "b")], atomic=True, idempotency_key="k")
    each, one = [[item.get("idempotency_key") for item in msgspec.json.decode(request.body)] for request in requests]
    assert (each, one) == (["k-0", "own"], [None, None])
    assert [request.headers.get("idempotency-key") for request in requests] == [None, "k"]
    assert [request.target for request in requests] == ["/workunits", "/workunits?atomic=true"]


async def test_a_list_asks_for_what_is_named_only(answering: Any) -> None:
    url, requests = await answering.start(answering.json(200, {"work_units": [], "next_page": None, "applied_seq": 1}))
    async with Client(url + "/", agent_id="bob") as bus:
        await bus.list("repo/a b?#%/../x")
        await bus.list("plan", limit=5, page="p", reverse=True, after="e1.3", before=9)
        await bus.list("plan", type="ERROR", agent=["ann"], kind=["a.*", "b"])
    assert [query(request.target) for request in requests] == [
        [("context_id", "repo/a b?#%/../x")],
        [
            ("context_id", "plan"),
            ("limit", "5"),
            ("page", "p"),
            ("reverse", "true"),
            ("after", "e1.3"),
            ("before", "9"),
        ],
        [("context_id", "plan"), ("type", "ERROR"), ("agent", "ann"), ("kind", "a.*"), ("kind", "b")],
    ]


async def test_units_reads_page_after_page_over_empty_ones(answering: Any) -> None:
    def page(seqs: list[int], next_page: str | None) -> bytes:
        units = [msgspec.json.decode(answering.unit(seq).partition(b"\r\n\r\n")[2]) for seq in seqs]
        found: bytes = answering.json(200, {"work_units": units, "next_page": next_page, "applied_seq": 9})
        return found

    url, requests = await answering.start(page([1, 2], "p1"), page([], "p2"), page([3], None))
    async with Client(url, agent_id="bob") as bus:
        assert [unit.seq async for unit in bus.units("plan", limit=2)] == [1, 2, 3]
    assert [dict(query(request.target)).get("page") for request in requests] == [None, "p1", "p2"]


async def test_a_context_is_changed_by_what_is_named_only(answering: Any) -> None:
    context = {"id": "plan", "version": 1, "created_at": "t", "updated_at": "t", "agent_ids": ["bob"]}
    url, requests = await answering.start(answering.json(200, context))
    async with Client(url, agent_id="bob") as bus:
        changed = await bus.update_context("plan", add_agents=["bob"], meta={"old": None}, closed=False)
    assert (changed.agent_ids, requests[0].method, requests[0].target) == (
        ["bob"],
        "PATCH",
        "/contexts?context_id=plan",
    )
    body = msgspec.json.decode(requests[0].body)
    assert body.pop("idempotency_key")
    assert body == {"add_agents": ["bob"], "meta": {"old": None}, "closed": False, "agent_id": "bob"}


async def test_one_name_stands_for_a_list_and_a_list_for_names(answering: Any) -> None:
    context = {"id": "plan", "version": 1, "created_at": "t", "updated_at": "t", "agent_ids": ["bob"]}
    url, requests = await answering.start(answering.json(200, context), answering.json(201, ON_PLAN))
    async with Client(url, agent_id="bob") as bus:
        await bus.update_context("plan", add_agents="bob")
        await bus.acquire_lock(["plan.md", "a.md"], "b.md")
        for wrong in ((5,), (["a", None],), ([],)):
            with pytest.raises(InvalidRequest) as refused:
                await bus.acquire_lock(*wrong)  # type: ignore[arg-type]
            assert refused.value.field == "resources"
        with pytest.raises(InvalidRequest) as refused:
            await bus.update_context("plan", pin_units=[5])  # type: ignore[list-item]
        assert refused.value.field == "pin_units"
    bodies = [msgspec.json.decode(request.body) for request in requests]
    assert (bodies[0]["add_agents"], bodies[1]["resources"]) == (["bob"], ["plan.md", "a.md", "b.md"])


async def test_names_need_not_be_ascii(answering: Any) -> None:
    url, requests = await answering.start(answering.unit())
    async with Client(url, agent_id="Zo\u00eb") as bus:
        assert isinstance(await bus.append("pl\u00e4n", "hi"), WorkUnit)
    assert requests[0].headers["x-agent-id"] == "Zo\u00eb"
    assert msgspec.msgpack.decode(requests[0].body)["agent_id"] == "Zo\u00eb"


def test_only_http_is_a_url() -> None:
    with pytest.raises(ValueError, match="not an http"):
        Client("127.0.0.1:8080", agent_id="bob")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("://127.0.0.1:99999", "Port out of range"),
        ("://127.0.0.1:x", "Port could not be cast"),
        ("://127.0.0.1:0", "port 0"),
        ("://", "no host"),
        ("://:8080", "no host"),
        ("://[::1", "Invalid IPv6"),
        ("://one host:8080", "a blank"),
        ("://127.0.0.1:80\n80", "control character"),
        ("://a..b:8080", "label empty"),
        (f"://{'a' * 64}.example:8080", "too long"),
        ("://127.0.0.1:8080?a=b", "a query"),
        ("://127.0.0.1:8080#a", "a fragment"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
def test_what_cannot_be_a_url_is_refused_by_what_is_wrong_with_it(scheme: str, url: str, fault: str) -> None:
    with pytest.raises(InvalidRequest, match=fault) as told:
        Client(scheme + url, agent_id="bob")
    assert told.value.field == "url"


@pytest.mark.parametrize("url", [None, 5, b"http://127.0.0.1:8080"])
def test_a_url_is_a_text(url: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a URL"):
        Client(url, agent_id="bob")


async def test_a_scheme_in_capitals_is_the_same(answering: Any) -> None:
    url, requests = await answering.start(answering.unit())
    async with Client(url.replace("http:", "HTTP:"), agent_id="bob") as bus:
        assert (await bus.append("plan", "hi")).seq == 1
        assert bus.url == url
    assert len(requests) == 1


@pytest.mark.parametrize("agent_id", ["", "a\r\nX-Admin: yes", "\0", 5, None, b"bob"])
def test_an_agent_has_a_name_that_fits_a_header(agent_id: Any) -> None:
    with pytest.raises(ValueError, match="not the name") as told:
        Client(agent_id=agent_id)
    assert isinstance(told.value, InvalidRequest)
    assert told.value.field == "agent_id"


def test_patience_is_a_number_of_seconds() -> None:
    with pytest.raises(InvalidRequest, match="timeout_seconds"):
        Client(agent_id="bob", timeout_seconds=float("nan"))


# --- Search

NOTHING = {"results": [], "total": 0, "applied_seq": 1, "next_page": None}


async def test_a_search_asks_for_what_is_named_only(answering: Any) -> None:
    url, requests = await answering.start(answering.json(200, NOTHING))
    async with Client(url, agent_id="bob") as bus:
        await bus.search("who has the parser?")
        await bus.search("parser", agent_id="")
        await bus.search(
            "parser",
            mode="keyword",
            limit=5,
            context_id="plan",
            agent_id=["ann", "bob"],
            type=("ERROR",),
            meta={"run": "7"},
            after_seq=0,
            after_ts=datetime(2026, 1, 31, 12, tzinfo=UTC),
            before_ts="2026-02-01T00:00:00Z",
            facets=True,
            include="units",
            min_seq=3,
            vector_weight=0.5,
            half_life_ms=60_000,
            neighbour_weight=0.2,
            distinct=True,
            stale=True,
        )
    assert [(request.method, request.target) for request in requests] == [("POST", "/search")] * 3
    assert [msgspec.json.decode(request.body) for request in requests] == [
        {"query": "who has the parser?"},
        {"query": "parser", "agent_id": [""]},
        {
            "query": "parser",
            "mode": "keyword",
            "limit": 5,
            "context_id": ["plan"],
            "agent_id": ["ann", "bob"],
            "type": ["ERROR"],
            "meta": {"run": "7"},
            "after_seq": 0,
            "after_ts": "2026-01-31T12:00:00Z",
            "before_ts": "2026-02-01T00:00:00Z",
            "facets": True,
            "include": "units",
            "vector_weight": 0.5,
            "half_life_ms": 60000,
            "neighbour_weight": 0.2,
            "distinct": True,
            "stale": True,
            "min_seq": 3,
        },
    ]


@pytest.mark.parametrize("code", ["SEARCH_BUILDING", "SEARCH_UNAVAILABLE"])
async def test_an_index_that_is_not_ready_is_asked_again_but_not_for_ever(answering: Any, code: str) -> None:
    refused = answering.json(503, {"code": code, "retryable": True, "taken_seq": 3, "head": 9}, "Retry-After: 0")
    url, requests = await answering.start(refused, refused, answering.json(200, NOTHING), refused)
    async with Client(url, agent_id="bob", max_retries=2) as bus:
        assert len(await bus.search("parser")) == 0
        with pytest.raises(EngramError) as told:
            await bus.search("parser")
    assert (told.value.code, len(requests)) == (code, 3 + 3)
    if isinstance(told.value, SearchBuilding):
        assert (told.value.taken_seq, told.value.head) == (3, 9)


@pytest.mark.parametrize("asked", [{"query": "\ud800"}, {"query": "parser", "context_id": "\ud800"}])
async def test_what_is_no_text_is_refused_here(closed_url: str, asked: dict[str, Any]) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest):
            await bus.search(**asked)


# --- Names

NAMES = {
    "list": ("type", "agent", "kind"),
    "related": ("type",),
    "search": ("context_id", "agent_id", "type", "kind", "resource", "related_to"),
}
no_names = pytest.mark.parametrize("names", [[], (), 5, [5], ["ann", None], b"ann", [["ann"]]], ids=repr)


@no_names
@pytest.mark.parametrize(("verb", "field"), [(verb, field) for verb, fields in NAMES.items() for field in fields])
async def test_what_names_nothing_or_is_no_name_is_refused_before_anything_is_asked(
    closed_url: str, verb: str, field: str, names: Any
) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest) as told:
            await getattr(bus, verb)("plan", **{field: names})
    assert told.value.field == field


@no_names
@pytest.mark.parametrize("field", ["type", "kind", "agent", "exclude_agent", "resource"])
async def test_a_subscription_by_what_names_nothing_is_refused_at_once(closed_url: str, field: str, names: Any) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest) as told:
            bus.subscribe("plan", **{field: names})
    assert told.value.field == field


@pytest.mark.parametrize("contexts", [([],), ("plan", ()), (5,), (None,), (["plan", 5],), ("plan", None)], ids=repr)
async def test_a_subscription_to_what_is_no_context_is_refused_at_once(
    closed_url: str, contexts: tuple[Any, ...]
) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest) as told:
            bus.subscribe(*contexts)
    assert told.value.field == "context"


@pytest.mark.parametrize("meta", [5, "run", ["run"], {"run": 7}, {7: "run"}, {"run": None}], ids=repr)
async def test_meta_that_is_not_of_texts_is_refused_at_once(closed_url: str, meta: Any) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest) as told:
            bus.subscribe("plan", meta=meta)
        assert told.value.field == "meta"
        with pytest.raises(InvalidRequest) as told:
            await bus.search("parser", meta=meta)
        assert told.value.field == "meta"


# --- Locks

ON_PLAN = {
    "lock_id": "l1",
    "resource": "plan.md",
    "holder_agent": "bob",
    "mode": "exclusive",
    "fencing_token": 7,
    "granted_at": "2026-01-01T00:00:00.000000Z",
    "expires_at": "2026-01-01T00:00:30.000000Z",
    "remaining_seconds": 30.0,
}
WAIT_ENDED = {"code": "WAIT_ENDED", "detail": "the bus was restarted", "retryable": True}


@pytest.mark.parametrize("field", ["ttl_seconds", "wait_seconds"])
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), float("-inf"), 10**400, "5"])
async def test_what_is_no_number_of_seconds_is_refused_before_anything_is_asked(
    closed_url: str, field: str, seconds: Any
) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest, match="not a number of seconds") as told:
            await bus.acquire_lock("plan.md", **{field: seconds})
        assert told.value.field == field
        with pytest.raises(InvalidRequest, match="not a number of seconds") as told:
            bus.lock("plan.md", **{field: seconds})
        assert told.value.field == field


async def test_a_refresh_for_no_number_of_seconds_is_refused_too(closed_url: str) -> None:
    lock = msgspec.convert({**ON_PLAN, "resources": ["plan.md"]}, Lock)
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(InvalidRequest, match="not a number of seconds"):
            await bus.refresh_lock(lock, float("inf"))


async def test_a_wait_that_ended_is_waited_on_for_what_is_left_of_it(answering: Any) -> None:
    ended = answering.json(503, WAIT_ENDED)
    url, requests = await answering.start(ended, None, answering.json(429, BUSY), answering.json(200, ON_PLAN))
    async with Client(url, agent_id="bob", max_retries=0) as bus:
        lock = await bus.acquire_lock("plan.md", wait_seconds=60)
    assert (lock.resources, lock.fencing_token, lock.extended) == (["plan.md"], 7, True)
    waits = [msgspec.json.decode(request.body)["wait_seconds"] for request in requests]
    assert waits[0] == 60
    assert waits == sorted(waits, reverse=True)
    assert len(waits) == 4


async def test_a_wait_that_is_over_is_given_up_as_any_request(answering: Any) -> None:
    url, requests = await answering.start(answering.json(503, WAIT_ENDED))
    async with Client(url, agent_id="bob", max_retries=3) as bus:
        with pytest.raises(WaitEnded):
            await bus.acquire_lock("plan.md", wait_seconds=0.001)
    waits = [msgspec.json.decode(request.body)["wait_seconds"] for request in requests]
    assert waits[-1] == 0


@pytest.mark.parametrize("code", ["LOCK_HELD", "DEADLOCK"])
async def test_a_refused_lock_is_not_asked_for_again(answering: Any, code: str) -> None:
    url, requests = await answering.start(answering.json(409, {"code": code, "retryable": False}))
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramError) as told:
            await bus.acquire_lock("plan.md", wait_seconds=60)
    assert (told.value.code, len(requests)) == (code, 1)


async def test_a_break_is_not_said_twice_where_the_first_may_have_worked(answering: Any) -> None:
    busy = answering.json(429, BUSY, "Retry-After: 0")
    url, requests = await answering.start(busy, None)
    async with Client(url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError):
            await bus.break_lock("a b", reason="why", lock_id="l1")
    said = [("resource", "a b"), ("break", "true"), ("reason", "why"), ("lock_id", "l1"), ("agent_id", "bob")]
    assert [query(request.target) for request in requests] == [said] * 2


@pytest.mark.usefixtures("refreshed_soon")
async def test_a_refresh_that_is_not_answered_is_tried_again_in_time(answering: Any) -> None:
    granted = answering.json(201, {**ON_PLAN, "remaining_seconds": 5.0})
    url, requests = await answering.start(granted, b"", answering.json(200, ON_PLAN))
    async with Client(url, agent_id="bob") as bus, bus.lock("plan.md", ttl_seconds=5) as lease:
        while lease.lock.remaining_seconds < 30:
            await asyncio.sleep(0.01)
    assert [request.method for request in requests[:3]] == ["POST", "PATCH", "PATCH"]
