"""The Python client of engram-bus: append units, read them back, subscribe and resume by itself.

    async with Client(agent_id="ann") as bus:
        await bus.append("plan", "I take the parser.")
        async for unit in bus.subscribe("plan", after=0):
            print(unit.agent_id, unit.text)

`SyncClient` is the same for threads without a loop. Errors are typed (`engram_client.errors`). Over gRPC, it is
`Client("grpc://127.0.0.1:50051", agent_id="ann")`.
"""

from engram_client.client import Client
from engram_client.errors import (
    Deadlock,
    EngramConnectionError,
    EngramError,
    FenceRequired,
    FenceStale,
    Gap,
    LockHeld,
    LockLost,
)
from engram_client.lease import Lease
from engram_client.pipeline import PendingReceipt, Pipeline
from engram_client.subscription import Subscription
from engram_client.sync import SyncClient
from engram_client.values import (
    Context,
    ContextPage,
    Draft,
    Fence,
    Highlight,
    Lock,
    LockMode,
    LockState,
    LockWait,
    Page,
    Receipt,
    Related,
    RelatedUnit,
    Relationship,
    RelationshipType,
    SearchExplained,
    SearchHit,
    SearchLeg,
    SearchPage,
    SearchStatus,
    Status,
    UnitType,
    WorkUnit,
)

__all__ = [
    "Client",
    "Context",
    "ContextPage",
    "Deadlock",
    "Draft",
    "EngramConnectionError",
    "EngramError",
    "Fence",
    "FenceRequired",
    "FenceStale",
    "Gap",
    "Highlight",
    "Lease",
    "Lock",
    "LockHeld",
    "LockLost",
    "LockMode",
    "LockState",
    "LockWait",
    "Page",
    "PendingReceipt",
    "Pipeline",
    "Receipt",
    "Related",
    "RelatedUnit",
    "Relationship",
    "RelationshipType",
    "SearchExplained",
    "SearchHit",
    "SearchLeg",
    "SearchPage",
    "SearchStatus",
    "Status",
    "Subscription",
    "SyncClient",
    "UnitType",
    "WorkUnit",
]
