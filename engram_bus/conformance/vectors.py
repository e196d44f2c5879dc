"""The exchanges as values: read from YAML, each played as often as its `each` says."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml
from msgspec import UNSET, UnsetType

REFUSALS: Final = "errors.yaml"
"""The one file that is no list of exchanges: what each code is on each transport."""
VERBS: Final = frozenset(
    """append append_bulk append_many get list related get_context update_context contexts acquire_lock refresh_lock
    release_lock break_lock get_lock locks search rebuild_search status subscribe http hang_up""".split()
)

_NAME = re.compile(r"\$\{?([a-z][a-z0-9_]*)")
T = TypeVar("T")


class VectorError(Exception):
    """A file of vectors says something that the format does not have; the message names the place."""


class _Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that is done, and what must come of it (patterns)."""

    answer: Any = UNSET
    refused: Any = UNSET


class Request(_Step, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verb with what is asked."""

    name: str
    asked: dict[str, Any]
    until: Any = UNSET
    as_: str | UnsetType = msgspec.field(name="as", default=UNSET)
    begin: str | UnsetType = UNSET


class End(_Step, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wait for what was begun."""

    name: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Want no longer what was begun."""

    name: str


class Hear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The next of a subscription: so many units, or an event, or its end."""

    name: str
    units: Any = UNSET
    """A list of patterns, or what stands for one."""
    event: str | UnsetType = UNSET
    answer: Any = UNSET
    ended: Any = UNSET


class Leave(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End a subscription; `cursor` is a pattern of the one heard last."""

    name: str
    cursor: Any = UNSET


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change the server."""

    name: str


Step = Request | End | Cancel | Hear | Leave | Stage
_OTHERS: Final[dict[str, type[Any]]] = {"end": End, "cancel": Cancel, "hear": Hear, "leave": Leave, "stage": Stage}


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks of a bus, step by step."""

    name: str
    """Its sentence, and where it is played several times, which one this is."""
    file: str
    steps: tuple[Step, ...]
    variables: dict[str, Any]
    on: tuple[str, ...]
    not_on: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def verbs(self) -> set[str]:
        return {step.name for step in self.steps if isinstance(step, Request)}

    @property
    def is_alone(self) -> bool:
        """Whether it changes the server for everyone, or needs it for itself."""
        return not {"history"}.issuperset(self.needs)

    @property
    def names(self) -> frozenset[str]:
        """The names that its steps and variables use."""
        return frozenset(_NAME.findall(repr((self.steps, self.variables))))

    def is_for(self, transport: str) -> bool:
        """Whether it may be played over this transport."""
        return (not self.on or transport in self.on) and transport not in self.not_on


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a code is on each transport."""

    http: int
    grpc: str
    close: int
    retryable: bool


class _ExchangeIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exchange: str
    steps: list[dict[str, Any]]
    each: list[dict[str, Any]] = []
    on: list[str] = []
    not_on: list[str] = []
    needs: str | list[str] = []


def load(directory: Path | None = None) -> list[Exchange]:
    """All exchanges of a directory, or those that are part of the package. Raises VectorError."""
    files = sorted((file for file in _files(directory) if file.name != REFUSALS), key=lambda file: file.name)
    return [exchange for file in files for exchange in exchanges(file.name, file.read_text(encoding="utf-8"))]


def load_refusals(directory: Path | None = None) -> Mapping[str, Refusal]:
    """What each code is on each transport. Raises VectorError."""
    for file in _files(directory):
        if file.name == REFUSALS:
            return _convert(_read(file.name, file.read_text(encoding="utf-8")), dict[str, Refusal], file.name)
    raise VectorError(f"{REFUSALS} is not among the vectors")


def exchanges(file: str, text: str) -> Iterator[Exchange]:
    """The exchanges of one file. Raises VectorError."""
    found = _read(file, text)
    if not isinstance(found, list):
        raise VectorError(f"{file} is not a list of exchanges")
    for index, raw in enumerate(found):
        said = _convert(raw, _ExchangeIn, f"{file}, exchange {index + 1}")
        where = f"{file}, {said.exchange!r}"
        steps = tuple(_step(step, f"{where}, step {number}") for number, step in enumerate(said.steps, 1))
        for name, variables in _played(said.exchange, said.each or [{}]):
            yield Exchange(
                name=name,
                file=file,
                steps=steps,
                variables=variables,
                on=tuple(said.on),
                not_on=tuple(said.not_on),
                needs=(said.needs,) if isinstance(said.needs, str) else tuple(said.needs),
            )


def _step(raw: dict[str, Any], where: str) -> Step:
    heads = [key for key in raw if key in VERBS or key in _OTHERS]
    if len(heads) != 1:
        raise VectorError(f"{where}: one of {', '.join(sorted(VERBS | _OTHERS.keys()))}, not {list(raw)}")
    head, rest = heads[0], {key: value for key, value in raw.items() if key != heads[0]}
    if head in VERBS:
        return _convert({"name": head, "asked": raw[head] or {}, **rest}, Request, where)
    step: Step = _convert({"name": raw[head], **rest}, _OTHERS[head], where)
    return step


def _played(sentence: str, each: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each set of variables, with a name that is its own."""
    told: Counter[str] = Counter()
    for variables in each:
        shown = ", ".join(f"{name} {_short(value)}" for name, value in variables.items())
        name = f"{sentence} [{shown}]" if variables else sentence
        told[name] += 1
        yield name if told[name] == 1 else f"{name} ({told[name]})", variables


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else f"{text[:37]}..."


def _files(directory: Path | None) -> list[Traversable]:
    folder: Traversable = resources.files("engram_bus.conformance") / "vectors" if directory is None else directory
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]


class _Loader(yaml.CSafeLoader):
    """YAML 1.2's idea of a boolean (`on` is a word), and no dates: `2026-01-01` is a text."""


_BOOLEAN, _DATE = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in (_BOOLEAN, _DATE)]
    for first, forms in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"(?:true|false)$"), ["t", "f"])


def _read(file: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a safe loader, with fewer surprises
    except yaml.YAMLError as exc:
        raise VectorError(f"{file}: {exc}") from exc


def _convert(raw: Any, type: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, type)
    except msgspec.ValidationError as exc:
        raise VectorError(f"{where}: {exc}") from exc
