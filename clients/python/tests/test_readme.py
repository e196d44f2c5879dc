"""The examples in the README, and in the docstring of the package, run as they stand."""

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from live_bus import LiveBus

import engram_client


class Seen(Exception):
    """What the example has printed, which would go on for ever."""


def examples() -> list[str]:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    in_readme = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    in_docstring = re.findall(r"\n\n((?: {4}.*\n)+)", engram_client.__doc__ or "")
    return [*in_readme, *(textwrap.dedent(block) for block in in_docstring)]


@pytest.mark.parametrize("code", examples())
async def test_an_example_runs_as_it_stands(running_bus: LiveBus, code: str) -> None:
    def tell(*words: Any) -> None:
        raise Seen(*words)

    here = (
        code.replace("http://127.0.0.1:8080", running_bus.urls["http"])
        .replace("grpc://127.0.0.1:50051", running_bus.urls["grpc"])
        .replace("Client(agent", f'Client("{running_bus.url}", agent')
    )
    names: dict[str, Any] = {**vars(engram_client), "print": tell}
    exec(f"async def example():\n{textwrap.indent(here, '    ')}", names)
    async with asyncio.timeout(10):
        with pytest.raises(Seen, match=r"ann.*I take the parser"):
            await names["example"]()


def test_there_are_five() -> None:
    assert len(examples()) == 5
