"""Query parameters and headers as values: what each one may be is said once, for parsing and for the document."""

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec

from engram_bus.errors import InvalidRequest
from engram_bus.limits import NAME_BYTES_MAX


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter: `kind` says how its text is read, `many` whether it may come more than once."""

    name: str
    description: str
    kind: Literal["text", "integer", "boolean"] = "text"
    where: Literal["query", "path", "header"] = "query"
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int | None = None
    default: Any = None
    many: bool = False
    required: bool = False
    schema: dict[str, Any] = {}
    """What the document says of the text beyond the rest."""

    def read(self, text: str) -> Any:
        """The value in a text. Raises InvalidRequest naming the parameter."""
        match self.kind:
            case "integer":
                return self._integer(text)
            case "boolean":
                if text.lower() not in ("true", "false", "1", "0"):
                    raise InvalidRequest(f"{self.name} {text[:64]!r} is not true or false", field=self.name)
                return text.lower() in ("true", "1")
            case "text":
                if self.choices and text not in self.choices:
                    raise InvalidRequest(
                        f"{self.name} {text[:64]!r} is unknown; one of {', '.join(self.choices)}", field=self.name
                    )
                return text

    def _integer(self, text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            raise InvalidRequest(f"{self.name} {text[:64]!r} is not a whole number", field=self.name)
        value = int(text)
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            bound = f"{self.minimum} to {self.maximum}" if self.maximum is not None else f"at least {self.minimum}"
            raise InvalidRequest(f"{self.name} {value} is not {bound}", field=self.name, limit=self.maximum)
        return value


def pairs(query: bytes) -> list[tuple[str, str]]:
    """The parameters of a query string, in order. Raises InvalidRequest for bytes that are no text."""
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=2_000)
    except (UnicodeDecodeError, ValueError) as exc:
        raise InvalidRequest(f"the query cannot be read: {exc}", field="query") from exc


def read(query: bytes, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """Every parameter's value, its default where it is not there. A name that is not known is an error, not ignored."""
    known = {parameter.name: parameter for parameter in parameters if parameter.where == "query"}
    values: dict[str, Any] = {name: [] if known[name].many else known[name].default for name in known}
    seen: set[str] = set()
    for name, text in pairs(query):
        parameter = known.get(name)
        if parameter is None:
            raise InvalidRequest(
                f"parameter {name[:64]!r} is not known here; known: {', '.join(known) or 'none'}",
                field=name[:NAME_BYTES_MAX],
            )
        if parameter.many:
            values[name].append(parameter.read(text))
        elif name in seen:
            raise InvalidRequest(f"{name} is given more than once", field=name)
        else:
            values[name] = parameter.read(text)
        seen.add(name)
    return values
