"""What a search found: for people each unit with the part of it that says why, for programs as JSON. Pure."""

import re
from collections.abc import Iterator, Mapping

import msgspec
from rich.text import Text

from engram_bus.cli.lines import Lines, plain, summary, unit_json
from engram_client import Highlight, SearchHit, SearchPage

_FACET_VALUES_SHOWN = 10
_FOUND_STYLE = "bold yellow"


class Hits:
    """Hits as lines, in the order of their ranks; each has its unit."""

    def __init__(self, *, first_rank: int = 1, explain: bool = False) -> None:
        self._rank = first_rank
        self._explain = explain
        self._lines = Lines(dated=True)

    def lines(self, hit: SearchHit) -> tuple[Text, Text]:
        """Rank, score and where the unit stands; and what it says, with the words that were looked for."""
        assert hit.unit is not None, "they are asked for with their units"
        head = Text.assemble((f"{self._rank:>3} {hit.score:7.3f} ", "bright_black"), self._lines.head(hit.unit))
        said = _fragment(hit.highlights[0]) if hit.highlights else Text(summary(hit.unit))
        if hit.duplicates:
            said = Text.assemble(said, (f" (and {hit.duplicates:,} alike)", "bright_black"))
        self._rank += 1
        return head, Text.assemble((explained(hit), "bright_black"), " ", said) if self._explain else said


def _fragment(highlight: Highlight) -> Text:
    text, at = Text(), 0
    for start, end in highlight.spans:
        text.append(_flat(highlight.text[at:start]))
        text.append(_flat(highlight.text[start:end]), _FOUND_STYLE)
        at = end
    text.append(_flat(highlight.text[at:]))
    return text


def _flat(text: str) -> str:
    """As `plain`, but a space at either end stays: the part goes on there."""
    return "".join(character if character.isprintable() else " " for character in re.sub(r"\s+", " ", text))


def explained(hit: SearchHit) -> str:
    """`[words #1 gives 0.65, meaning #2 gives 0.35]`: what the score is the sum of."""
    given = ("", "") if hit.explain is None else (hit.explain.keyword_part, hit.explain.vector_part)
    legs = [
        f"{name} #{leg.rank} ({leg.score:.2f}) gives {part:.3f}" if leg is not None else f"{name} gives {part:.3f}"
        for name, leg, part in zip(("words", "meaning"), (hit.keyword, hit.vector), given, strict=True)
    ]
    more = (
        []
        if hit.explain is None
        else [
            f"{name} gives {part:.3f}"
            for name, part in (("neighbours", hit.explain.neighbour_part), ("recency", hit.explain.recency_part))
            if part
        ]
    )
    return f"[{', '.join([*legs, *more])}]"


def facet_lines(facets: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """One line for each: its commonest values, and how often each is there."""
    for name, counts in facets.items():
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{plain(value) or '(none)'} {count:,}" for value, count in ordered[:_FACET_VALUES_SHOWN])
        more = f", {len(ordered) - _FACET_VALUES_SHOWN:,} more" if len(ordered) > _FACET_VALUES_SHOWN else ""
        yield f"{name:<8} {shown}{more}"


def page_json(page: SearchPage) -> str:
    """The page as one line of JSON, in the form of the bus's own."""
    results = [_hit_fields(hit) for hit in page]
    answer = {**{name: getattr(page, name) for name in page.__struct_fields__}, "results": results}
    if page.facets is None:
        del answer["facets"]
    return msgspec.json.encode(answer).decode()


def _hit_fields(hit: SearchHit) -> dict[str, object]:
    fields = {name: value for name in hit.__struct_fields__ if (value := getattr(hit, name)) not in (None, [])}
    if not hit.duplicates:
        del fields["duplicates"]
    return {**fields, "unit": msgspec.Raw(unit_json(hit.unit).encode())} if hit.unit is not None else fields
