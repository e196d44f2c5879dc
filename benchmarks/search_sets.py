"""Collections with questions whose answers are known, as units of a bus.

None of them ships: they lie beside the repository, each with a README that says its origin and licence.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engram_bus import Draft, UnitType
from engram_bus.cli.replay.recording import parse

DATA = Path(__file__).parents[2] / "shared" / "data"
CASES = Path(__file__).parent / "search_cases.json"


class Question(NamedTuple):
    """What is asked, and which units (by their place in the collection) are an answer."""

    text: str
    wanted: frozenset[int]
    context_id: str | None = None
    group: str = "all"


class Collection(NamedTuple):
    """Units in the order they are appended, and questions about them."""

    drafts: Sequence[Draft]
    questions: Sequence[Question]


class Absent(Exception):
    """The files of a collection are not there."""


def scifact() -> Collection:
    """Abstracts of papers, all in one context; claims that some of them support or refute (training part)."""
    documents = list(_rows("scifact_docs"))
    places = {row["doc_id"]: place for place, row in enumerate(documents)}
    wanted = _grouped((row["query_id"], places[row["doc_id"]]) for row in _rows("scifact_train_qrels"))
    return Collection(
        [_said("scifact", "library", f"{row['title']}\n{row['text']}") for row in documents],
        [Question(row["text"], wanted[row["query_id"]]) for row in _rows("scifact_train_queries")],
    )


def locomo() -> Collection:
    """Long dialogues, one context each; questions with the turns that hold the answer, by class."""
    turns = list(_rows("locomo_turns_dev"))
    places = {(row["conversation"], row["dia_id"]): place for place, row in enumerate(turns)}
    drafts = [
        _said(
            f"locomo/{row['conversation']}",
            row["speaker"],
            f"{row['text']} [{row['image_caption']}]" if row["image_caption"] else row["text"],
        )
        for row in turns
    ]
    questions = [
        Question(
            row["question"],
            frozenset(places[row["conversation"], name] for name in row["evidence"]),
            f"locomo/{row['conversation']}",
            row["category_name"],
        )
        for row in _rows("locomo_questions_dev")
        if row["evidence"]
    ]
    return Collection(drafts, questions)


def qmsum() -> Collection:
    """Transcripts of meetings, one context each; specific questions with the spans of turns they are about, by the kind
    of meeting."""
    turns = list(_rows("qmsum_val_turns"))
    places = {(row["meeting"], row["turn"]): place for place, row in enumerate(turns)}
    domains = {row["meeting"]: row["domain"].lower() for row in turns}
    return Collection(
        [_said(f"qmsum/{row['meeting']}", row["speaker"], row["text"]) for row in turns],
        [
            Question(
                row["query"],
                frozenset(
                    places[row["meeting"], turn]
                    for first, last in row["evidence_spans"]
                    for turn in range(first, last + 1)
                ),
                f"qmsum/{row['meeting']}",
                domains[row["meeting"]],
            )
            for row in _rows("qmsum_val_queries")
            if row["kind"] == "specific"
        ],
    )


def whowhen() -> Collection:
    """Failed runs of several agents, one context each; what went wrong, and the one step where it did."""
    places = {(row["trace"], row["step"]): place for place, row in enumerate(_rows("whowhen_dev"))}
    return Collection(
        _replayed(_file("whowhen_dev"), "whowhen"),
        [
            Question(
                row["mistake_reason"],
                frozenset({places[row["trace"], row["mistake_step"]]}),
                f"whowhen/{row['trace']}",
                "hand-crafted" if row["trace"].startswith("hc") else "generated",
            )
            for row in _rows("whowhen_labels_dev")
        ],
    )


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question about a recording, the steps (its lines, from 0) that answer it, and why."""

    query: str
    group: str
    steps: list[int]
    why: str


def code() -> Collection:
    """Three days of coding agents at work, a context for each session; what someone would look for afterwards."""
    return recording(_file("entire_dev"), cases("entire_dev"))


def cases(name: str) -> list[Case]:
    """The hand-written questions about a recording."""
    return msgspec.json.decode(CASES.read_bytes(), type=dict[str, list[Case]])[name]


def recording(file: Path, asked: Sequence[Case]) -> Collection:
    """A recording as `engram replay` sends it, and questions over all of it."""
    return Collection(
        _replayed(file, file.stem),
        [Question(one.query, frozenset(one.steps), group=one.group) for one in asked],
    )


COLLECTIONS: dict[str, Callable[[], Collection]] = {
    "scifact": scifact,
    "locomo": locomo,
    "qmsum": qmsum,
    "whowhen": whowhen,
    "code": code,
}


def cut(whole: Collection, *, questions: int, others: int) -> Collection:
    """The first questions, the units that answer them, and the first of all other units; in the same order."""
    asked = whole.questions[:questions]
    answers = frozenset[int]().union(*(question.wanted for question in asked))
    spare = [place for place in range(len(whole.drafts)) if place not in answers][:others]
    kept = sorted(answers | set(spare))
    place_of = {old: new for new, old in enumerate(kept)}
    return Collection(
        [whole.drafts[place] for place in kept],
        [question._replace(wanted=frozenset(place_of[old] for old in question.wanted)) for question in asked],
    )


def _file(name: str) -> Path:
    file = DATA / f"{name}.jsonl"
    if not file.exists():
        raise Absent(f"{file} is not there")
    return file


def _rows(name: str) -> Iterator[dict[str, Any]]:
    return (msgspec.json.decode(line) for line in _file(name).read_bytes().splitlines())


def _grouped(pairs: Iterator[tuple[str, int]]) -> dict[str, frozenset[int]]:
    groups: dict[str, set[int]] = {}
    for key, value in pairs:
        groups.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in groups.items()}


def _said(context_id: str, agent_id: str, text: str) -> Draft:
    return Draft(context_id=context_id, agent_id=agent_id, type=UnitType.MESSAGE, payload=text.encode())


def _replayed(file: Path, run: str) -> list[Draft]:
    """In the order of the file; ids and relationships as they are sent."""
    steps = parse(file.read_bytes(), run=run).steps
    return [
        Draft(
            context_id=step.draft.context_id,
            agent_id=step.agent_id,
            type=UnitType(step.draft.type),
            kind=step.draft.kind,
            payload=str(step.draft.payload).encode(),
            meta=dict(step.draft.meta or {}),
            resources=list(step.draft.resources or ()),
            id=step.draft.id,
        )
        for step in sorted(steps, key=lambda step: step.place)
    ]
