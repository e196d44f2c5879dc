"""`engram post`: append one unit."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_bus.cli.failures import Failure, told
from engram_bus.cli.options import URL_DEFAULT, AsJson, Url, agent_or_user, pairs, type_names

if TYPE_CHECKING:
    from engram_client import Draft, WorkUnit

_RETRIES = 3
"""Half a second on average: a bus that restarts is met again, one that is not there is told at once."""


def post(
    context: Annotated[str, typer.Argument(metavar="CONTEXT", help="The context it belongs to; made when new.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="What to say; - reads it from stdin.", show_default="nothing")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(envvar="ENGRAM_AGENT", help="Who says it.", show_default="your user name")
    ] = None,
    type: Annotated[
        str,
        typer.Option(
            help="message, reasoning, tool-call, tool-result, file-change, task-status, error, system or unknown."
        ),
    ] = "message",
    kind: Annotated[str | None, typer.Option(help="A subtype of your own, dotted lower case: build.failed")] = None,
    meta: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    resource: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What it touches, a file's path say. May be repeated.")
    ] = None,
    reply_to: Annotated[str | None, typer.Option(metavar="ID", help="The id of the unit it responds to.")] = None,
    json_payload: Annotated[bool, typer.Option("--json-payload", help="TEXT is JSON, and is kept as JSON.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Posting again under the same key gives the first answer again.")
    ] = None,
    expected_version: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse if the context has moved on from this version (0: is new).")
    ] = None,
    url: Url = URL_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Append one unit to a context: it is durable when this returns.

    engram post plan "I take the parser" --agent ann
    """
    from engram_client import Draft, Relationship, RelationshipType

    draft = Draft(
        context_id=context,
        payload=_payload(text, as_json=json_payload),
        type=type_names([type])[0],
        kind=kind,
        meta=pairs(meta or (), "--meta") or None,
        resources=resource or None,
        relationships=[Relationship(reply_to, RelationshipType.RESPONDS_TO)] if reply_to else None,
        idempotency_key=idempotency_key,
        expected_version=expected_version,
        agent_id=agent_or_user(agent),
    )
    with told(url):
        unit = asyncio.run(_append(url, draft))
    if as_json:
        from engram_bus.cli.lines import unit_json

        print(unit_json(unit))
    else:
        print(f"seq {unit.seq}, version {unit.version} of {unit.context_id}, id {unit.id}")


def _payload(text: str | None, *, as_json: bool) -> Any:
    raw = sys.stdin.buffer.read() if text == "-" else (text or "").encode("utf-8", "surrogateescape")
    if as_json:
        import msgspec

        try:
            return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(raw)))
        except msgspec.DecodeError as exc:
            raise Failure(f"what was given is not JSON: {exc}", code=2) from exc
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


async def _append(url: str, draft: "Draft") -> "WorkUnit":
    import msgspec

    from engram_client import Client

    said = msgspec.structs.asdict(draft)
    async with Client(url, agent_id=draft.agent_id or "", max_retries=_RETRIES) as bus:
        return await bus.append(said.pop("context_id"), said.pop("payload"), **said)
