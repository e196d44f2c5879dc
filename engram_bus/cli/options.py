"""The options that several commands share."""

import os
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path
from typing import Annotated

import typer

from engram_bus.cli.failures import Failure

URL_DEFAULT = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option(envvar="ENGRAM_URL", metavar="URL", help="Where the bus is.")]
DataDir = Annotated[
    Path, typer.Argument(metavar="DATA_DIR", help="What `engram serve` was given as --data-dir; it may be running.")
]
NewDataDir = Annotated[Path, typer.Argument(metavar="DATA_DIR", help="A new directory, or an empty one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def agent_or_user(agent: str | None) -> str:
    """The agent that was named, else whoever is logged in."""
    if agent == "":
        raise Failure("--agent names nobody; without it, it is your user name", code=2)
    if agent is not None:
        return agent
    try:
        return getuser()
    except (KeyError, OSError):  # a container's user that has no name
        return f"user-{os.getuid()}"


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`key=value` texts as a map."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Failure(f"{option} {text!r} is not KEY=VALUE", code=2)
        found[key] = value
    return found


def type_names(names: Sequence[str]) -> list[str]:
    """Types as they stand on the wire: `tool-call` is TOOL_CALL."""
    from engram_client import UnitType

    types = [one.value.lower().replace("_", "-") for one in UnitType]
    for name in names:
        if name.lower().replace("_", "-") not in types:
            raise Failure(f"--type {name!r} is none of {', '.join(types)}", code=2)
    return [name.upper().replace("-", "_") for name in names]
