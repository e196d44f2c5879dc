"""Which web pages may talk to the bus, and which names it answers to.

A browser lets any page send requests to loopback, and tells where the page is from: `Origin`. A page can also have its
own DNS name resolved to 127.0.0.1 once it is loaded, and is then of the bus's own origin: only `Host` gives it away.
What is not a browser sends no Origin and calls the bus by its address: it never notices any of this.
"""

from ipaddress import ip_address

import msgspec

from engram_bus.errors import ForbiddenOrigin


class Origins(msgspec.Struct, frozen=True):
    """`allowed` are origins named by the operator; `on_loopback` says that the bus listens there only."""

    allowed: frozenset[str] = frozenset()
    on_loopback: bool = True

    def check_host(self, host: str) -> None:
        """Raises ForbiddenOrigin for a name that could be anyone's. Where others may connect, any name may be ours."""
        name = _name(host)
        if not self.on_loopback or not name or _is_address(name) or _is_local(name):
            return
        if name not in {_name(origin.partition("://")[2]) for origin in self.allowed}:
            called = name[:64]
            raise ForbiddenOrigin(
                f"a bus on loopback is not called {called!r}; if this one is, name http://{called} in allow_origins",
                field="Host",
            )

    def check_origin(self, origin: str, *, host: str) -> None:
        """Raises ForbiddenOrigin unless the page is from this bus, from loopback, or from where the operator said."""
        place = origin.partition("://")[2].lower()
        if place and (place == host.lower() or _is_local(_name(place))):
            return
        if origin.lower() not in self.allowed:
            raise ForbiddenOrigin(
                f"pages of {origin[:256]!r} are not let in: name it in allow_origins if they should be", field="Origin"
            )


LOOPBACK = Origins()


def _name(place: str) -> str:
    """The host of `host:port`, in lower case, without the brackets of an IPv6 address."""
    if place.startswith("["):
        return place[1:].partition("]")[0].lower()
    return place.partition(":")[0].rstrip(".").lower()


def _is_local(name: str) -> bool:
    """Whether only this machine can be meant (RFC 6761 for names)."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
