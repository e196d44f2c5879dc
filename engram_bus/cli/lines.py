"""A unit as one line: for people in colour, for programs as JSON. Pure."""

from typing import Any

import msgspec
from rich.cells import cell_len
from rich.text import Text

from engram_client import WorkUnit

_GLYPHS = {
    "MESSAGE": ("✉", "white"),
    "REASONING": ("…", "bright_black"),
    "TOOL_CALL": ("→", "yellow"),
    "TOOL_RESULT": ("←", "green"),
    "FILE_CHANGE": ("✎", "magenta"),
    "TASK_STATUS": ("●", "cyan"),
    "ERROR": ("✗", "bold red"),
    "SYSTEM": ("⚙", "bright_black"),
}
_AGENT_COLOURS = (
    "bright_cyan bright_magenta bright_yellow bright_green bright_blue orange3 deep_pink2 spring_green3 sky_blue2 "
    "medium_purple2 light_coral khaki3 cyan magenta yellow green blue dark_orange3 hot_pink3 chartreuse3"
).split()
_AGENTS_REMEMBERED = 10_000
_KIND_CELLS = 12
_SUMMARY_CHARACTERS = 240
"""What is looked at for a summary; a terminal shows less of it."""


class Lines:
    """Units as lines, each agent in its colour: the next one of the palette when it first appears."""

    def __init__(self, *, context_cells: int = 20, agent_cells: int = 18, dated: bool = False) -> None:
        self._context_cells = context_cells
        self._agent_cells = agent_cells
        self._dated = dated
        self._colours: dict[str, str] = {}

    def line(self, unit: WorkUnit) -> Text:
        """seq, time, context, agent, what kind of unit, and what it says."""
        style = _GLYPHS["ERROR"][1] if unit.type == "ERROR" else "default"
        return self.head(unit).append(summary(unit), style)

    def head(self, unit: WorkUnit) -> Text:
        """The same without what it says."""
        glyph, style = _GLYPHS.get(unit.type, ("?", "white"))
        date = f"{unit.ts[:10]} " if self._dated else ""
        return Text.assemble(
            (f"{unit.seq:>7} {date}{unit.ts[11:19]} ", "bright_black"),
            (_cell(unit.context_id, self._context_cells), "default"),
            " ",
            (_cell(unit.agent_id, self._agent_cells), self._colour(unit.agent_id)),
            " ",
            (f"{glyph} {_cell(unit.kind or unit.type.lower(), _KIND_CELLS)} ", style),
        )

    def _colour(self, agent_id: str) -> str:
        if len(self._colours) == _AGENTS_REMEMBERED:
            self._colours.clear()
        return self._colours.setdefault(agent_id, _AGENT_COLOURS[len(self._colours) % len(_AGENT_COLOURS)])


class _LockChange(msgspec.Struct, frozen=True):
    """What a lock unit says, as far as a line has room."""

    agent_id: str
    resources: list[str]
    mode: str = "exclusive"
    until: str = ""
    reason: str = ""
    why: str = ""
    obstacle: dict[str, Any] = {}


def summary(unit: WorkUnit) -> str:
    """What a unit says, on one line: its tool and resource, then the beginning of its payload."""
    if (unit.kind or "").startswith("lock."):
        try:
            return plain(_lock_summary(unit, msgspec.json.decode(unit.payload, type=_LockChange)))
        except msgspec.DecodeError:  # of a newer bus
            pass
    named = unit.meta.get("tool") or ""
    touched = unit.resources[0] if unit.resources else ""
    text = unit.payload[: 4 * _SUMMARY_CHARACTERS].decode("utf-8", "replace")[:_SUMMARY_CHARACTERS]
    if not _is_readable(unit.content_type):
        text = f"{len(unit.payload):,} bytes of {unit.content_type}"
    return " ".join(part for part in (named, touched, plain(text)) if part)


def _lock_summary(unit: WorkUnit, change: _LockChange) -> str:
    """`a.py, b.py of ann, shared; behind bob: rewrite`: what is held or waited for, by whom, and what is to be said."""
    of = f" of {change.agent_id}" if change.agent_id != unit.agent_id else ""
    shared = ", shared" if change.mode == "shared" else ""
    behind = f"; behind {change.obstacle['holder_agent']}" if "holder_agent" in change.obstacle else ""
    until = f"; until {change.until[11:19]}" if unit.kind in ("lock.granted", "lock.refreshed") else ""
    why = "".join(f": {text}" for text in (change.why, change.reason) if text)
    return f"{', '.join(change.resources)}{of}{shared}{behind}{until}{why}"


def unit_json(unit: WorkUnit) -> str:
    """A unit as one line of JSON, in the form of the bus's own JSON."""
    fields = {
        name: value for name in unit.__struct_fields__ if (value := getattr(unit, name)) not in (None, {}, [], b"")
    }
    payload = fields.pop("payload", b"")
    try:
        if unit.content_type == "application/json" or unit.content_type.startswith("application/json;"):
            fields["payload"] = msgspec.json.decode(payload)
        elif _is_readable(unit.content_type):
            fields["payload"] = payload.decode()
        else:
            fields["payload_base64"] = payload
    except (UnicodeDecodeError, msgspec.DecodeError):
        fields["payload_base64"] = payload
    return msgspec.json.encode(fields).decode()


def _is_readable(content_type: str) -> bool:
    return content_type.startswith("text/") or "json" in content_type


def plain(text: str) -> str:
    """On one line, and without what would steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def _cell(text: str, cells: int) -> str:
    """Exactly `cells` wide; of what is longer the end is kept, which tells paths apart."""
    text = plain(text)
    if cell_len(text) > cells:
        while cell_len(text) > cells - 1:
            text = text[1:]
        text = "…" + text
    return text + " " * (cells - cell_len(text))
