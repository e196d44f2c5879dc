"""`engram search`: find what was said."""

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engram_bus.cli.failures import Failure, told
from engram_bus.cli.options import URL_DEFAULT, AsJson, Url, pairs, type_names
from engram_bus.words import counted

if TYPE_CHECKING:
    from engram_client import SearchPage

_RETRIES = 3
"""A few seconds: a search that is being started is met again."""
_FILTERS = "Where to look (each but the last three may be repeated)"

_RANKING = "How they are ranked"

Mode = Literal["hybrid", "keyword", "semantic"]
Fusion = Literal["z", "rrf", "relative"]


def search(
    query: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY",
            help="What to find, in any words. Those in double quotes of their own have to stand in this order, "
            "compared by their stems; little words (the, of) count only as gaps.",
        ),
    ],
    context: Annotated[list[str] | None, typer.Option(help="In this context.", rich_help_panel=_FILTERS)] = None,
    agent: Annotated[list[str] | None, typer.Option(help="Of this agent.", rich_help_panel=_FILTERS)] = None,
    type: Annotated[
        list[str] | None, typer.Option(help="Of this type: message, tool-call, ...", rich_help_panel=_FILTERS)
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Of this kind, a glob: build.*", rich_help_panel=_FILTERS)
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="What touches this, a glob: src/*", rich_help_panel=_FILTERS)
    ] = None,
    meta: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="With this in its meta.", rich_help_panel=_FILTERS)
    ] = None,
    related_to: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="What names this unit.", rich_help_panel=_FILTERS)
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="SEQ|TIME",
            help="After a seq, or a time: 2026-01-31, 2026-01-31T12:00:00Z (without a zone, this machine's).",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="SEQ|TIME", help="Before a seq, or a time.", rich_help_panel=_FILTERS)
    ] = None,
    as_of: Annotated[
        int | None,
        typer.Option(metavar="SEQ", min=0, help="As if the log ended at this seq.", rich_help_panel=_FILTERS),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="By words and meaning, or by one of them alone.", rich_help_panel=_RANKING)
    ] = "hybrid",
    fusion: Annotated[
        Fusion | None,
        typer.Option(help="How both become one: z-scores, reciprocal ranks, shares.", rich_help_panel=_RANKING),
    ] = None,
    vector_weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of meaning beside words.", rich_help_panel=_RANKING)
    ] = None,
    rank_constant: Annotated[
        float | None, typer.Option(min=0, help="Of reciprocal ranks (60).", rich_help_panel=_RANKING)
    ] = None,
    half_life: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.001, help="Prefer new ones: half as much after this.", rich_help_panel=_RANKING
        ),
    ] = None,
    recency_weight: Annotated[
        float | None, typer.Option(min=0, help="How much, of one of now (0.5).", rich_help_panel=_RANKING)
    ] = None,
    neighbour_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Prefer those beside others that are found (0).", rich_help_panel=_RANKING),
    ] = None,
    distinct: Annotated[
        bool,
        typer.Option("--distinct", help="Of those that say nearly the same, only the best.", rich_help_panel=_RANKING),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=200, help="How many at most.")] = 10,
    max_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="How much at most: in order of rank, passing over what does not fit."),
    ] = None,
    page: Annotated[str | None, typer.Option(help="Where to go on: what the page before said.")] = None,
    min_seq: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Wait until the log has come to this seq.")
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Do not wait for what the index has not taken in yet.")
    ] = False,
    facets: Annotated[bool, typer.Option("--facets", help="Count all by context, agent, type and kind.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each score is the sum of.")] = False,
    url: Url = URL_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Find units by their words and by their meaning, best first: rank, score, seq, time, context, agent, type, and the
    part of it that says why.

    engram search "who broke the login?" --context repo --type error
    """
    after_seq, after_ts = _place(after, "--after")
    before_seq, before_ts = _place(before, "--before")
    asked = {
        "mode": mode,
        "fusion": fusion,
        "vector_weight": vector_weight,
        "rank_constant": rank_constant,
        "half_life_ms": None if half_life is None else round(1_000 * half_life),
        "recency_weight": recency_weight,
        "neighbour_weight": neighbour_weight,
        "distinct": distinct,
        "limit": limit,
        "max_tokens": max_tokens,
        "min_seq": min_seq,
        "stale": stale,
        "context_id": context or None,
        "agent_id": agent or None,
        "type": type_names(type) if type else None,
        "kind": kind or None,
        "resource": resource or None,
        "meta": pairs(meta or (), "--meta"),
        "related_to": related_to or None,
        "after_seq": after_seq,
        "after_ts": after_ts,
        "before_seq": before_seq,
        "before_ts": before_ts,
        "as_of_seq": as_of,
        "page": page,
        "facets": facets,
        "explain": explain,
    }
    # What the shell gives that is no text is looked for as U+FFFD, and so not found.
    text = " ".join(query).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    with told(url):
        found = asyncio.run(_found(url, text, asked))
    _print_json(found) if as_json else _print_hits(found, first_rank=_first_rank(page), explain=explain)


def _place(text: str | None, option: str) -> tuple[int | None, datetime | None]:
    """A place in the log: a seq, or a time."""
    if text is None:
        return None, None
    if text.isascii() and text.isdigit():
        return int(text), None
    try:
        return None, datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise Failure(f"{option} {text!r} is not a seq, nor a time like 2026-01-31T12:00:00Z", code=2) from exc


async def _found(url: str, query: str, asked: dict[str, Any]) -> "SearchPage":
    from engram_client import Client

    async with Client(url, agent_id="engram-search", max_retries=_RETRIES) as bus:
        return await bus.search(query, include="units", **asked)


def _first_rank(page: str | None) -> int:
    """The rank of the first hit on a page, which names how many came before it."""
    _, _, before = (page or "").rpartition(".")
    return int(before) + 1 if before.isdigit() else 1


def _print_hits(page: "SearchPage", *, first_rank: int, explain: bool) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from engram_bus.cli.hits import Hits, facet_lines

    console = Console(highlight=False)
    hits = Hits(first_rank=first_rank, explain=explain)
    for hit in page:
        head, said = hits.lines(hit)
        if console.is_terminal:
            console.print(head, no_wrap=True, overflow="ellipsis")
            console.print(Padding(said, (0, 0, 0, 4)))
        else:  # one line each, and a file has no width
            print(f"{head.plain}{said.plain}")
    if page.facets is not None:
        print(*([""] if page.results else []), *facet_lines(page.facets), sep="\n")
    sys.stdout.flush()
    print(f"engram: {_outcome(page)}", file=sys.stderr)


def _outcome(page: "SearchPage") -> str:
    total = counted(page.total, "unit")
    found = f"{len(page):,} of {total}" if page.results else f"nothing found among {total}"
    more = f"; go on with --page {page.next_page}" if page.next_page is not None else ""
    degraded = ", not all of them ranked by the embedder that the bus was told to use" if page.degraded else ""
    return f"{found}, as of seq {page.applied_seq}{degraded}{more}"


def _print_json(page: "SearchPage") -> None:
    from engram_bus.cli.hits import page_json

    print(page_json(page))
