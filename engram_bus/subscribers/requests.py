"""What a client asks of a subscription, from a query, an operation or a message, as one value."""

from collections.abc import Sequence

import msgspec

from engram_bus.errors import InvalidRequest
from engram_bus.pb import subscription_pb2
from engram_bus.router.filters import Filter, make_filter


class SubscribeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A filter and where to begin: `after` a cursor or seq, or (None) now."""

    wanted: Filter
    after: str | None = None


_MANY = ("context", "context_id", "type", "kind", "agent", "exclude_agent", "resource")


def from_query(pairs: Sequence[tuple[str, str]], *, last_event_id: str | None = None) -> SubscribeRequest | None:
    """What a URL's query asks for; None where it names no context. `last_event_id` wins over `after`.

    Raises InvalidRequest for a parameter that is not known or is empty.
    """
    values: dict[str, list[str]] = {name: [] for name in _MANY}
    meta: list[tuple[str, str]] = []
    after: str | None = None
    for name, value in pairs:
        if name == "after":
            if after is not None:
                raise InvalidRequest("after is given more than once", field="after")
            after = value
        elif name.startswith("meta."):
            meta.append((name[5:], value))
        elif name in values:
            values[name].append(value)
        elif name != "agent_id":
            raise InvalidRequest(f"parameter {name[:64]!r} is not known here", field=name[:64])
    contexts = values["context"] + values["context_id"]
    if not contexts:
        if after is not None or meta or any(values.values()):
            raise InvalidRequest("name the contexts to subscribe to, or * for all", field="context")
        return None
    wanted = make_filter(
        contexts=contexts,
        types=values["type"],
        kinds=values["kind"],
        agents=values["agent"],
        exclude_agents=values["exclude_agent"],
        resources=values["resource"],
        meta=meta,
    )
    return SubscribeRequest(wanted=wanted, after=last_event_id or after)


Names = str | list[str] | None


def from_operation(
    *,
    context: Names,
    after: str | int | None,
    type: str | int | list[str | int] | None,
    kind: Names,
    agent: Names,
    exclude_agent: Names,
    resource: Names,
    meta: dict[str, str] | None,
) -> SubscribeRequest:
    """What a `subscribe` operation asks for: the URL's parameters, each one value or a list."""
    contexts = _many(context)
    if not contexts:
        raise InvalidRequest("name the contexts to subscribe to, or * for all", field="context")
    wanted = make_filter(
        contexts=contexts,
        types=type if isinstance(type, list) else [] if type is None else [type],
        kinds=_many(kind),
        agents=_many(agent),
        exclude_agents=_many(exclude_agent),
        resources=_many(resource),
        meta=tuple((meta or {}).items()),
    )
    return SubscribeRequest(wanted=wanted, after=None if after is None else str(after))


def from_message(asked: subscription_pb2.SubscribeRequest) -> SubscribeRequest:
    """What a Subscribe call asks for. Raises InvalidRequest, TooLarge."""
    if not asked.context:
        raise InvalidRequest("name the contexts to subscribe to, or * for all", field="context")
    wanted = make_filter(
        contexts=tuple(asked.context),
        types=tuple(asked.type),
        kinds=tuple(asked.kind),
        agents=tuple(asked.agent),
        exclude_agents=tuple(asked.exclude_agent),
        resources=tuple(asked.resource),
        meta=tuple(asked.meta.items()),
    )
    return SubscribeRequest(wanted=wanted, after=asked.after if asked.HasField("after") else None)


def _many(names: Names) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else names
