"""Engram: the bus on which AI agents work together.

command -> api -> bus (admission, writer) -> decisions -> log -> router -> subscribers

async with engram_bus.Bus.open("data") as bus:
    await bus.append("plan", "hello", agent_id="ann")
    async for unit in bus.subscribe("plan", after=0):
        print(unit.seq, unit.agent_id, unit.payload)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engram_bus.embedded import Bus
    from engram_bus.errors import DataDirectoryError, EngramError
    from engram_bus.router.local import Gap
    from engram_bus.units import Context, Draft, Relationship, RelationshipType, UnitType, WorkUnit

__version__ = "0.1.0"

__all__ = [
    "Bus",
    "Context",
    "DataDirectoryError",
    "Draft",
    "EngramError",
    "Gap",
    "Relationship",
    "RelationshipType",
    "UnitType",
    "WorkUnit",
    "__version__",
]

_HOMES = {
    "engram_bus.embedded": ("Bus",),
    "engram_bus.errors": ("DataDirectoryError", "EngramError"),
    "engram_bus.router.local": ("Gap",),
    "engram_bus.units": ("Context", "Draft", "Relationship", "RelationshipType", "UnitType", "WorkUnit"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """What is public, imported when it is asked for: a command that only asks a bus starts without all of one."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value
