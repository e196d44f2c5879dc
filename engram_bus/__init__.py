"""Engram: the bus on which AI agents work together.

command -> api -> bus (admission, writer) -> decisions -> log -> router -> subscribers

async with engram_bus.Bus.open("data") as bus:
    await bus.append("plan", "hello", agent_id="ann")
    async for unit in bus.subscribe("plan", after=0):
        print(unit.seq, unit.agent_id, unit.payload)
"""

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
