"""Sockets on an address that nobody else has."""

import socket


class PortTaken(Exception):
    """Another process listens on the port that was asked for."""


def listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A socket that listens later; `flag` is what chooses the port. Raises PortTaken."""
    listener = _bound(host, port, flag, is_shared=False)
    listener.set_inheritable(True)
    return listener


def hold(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A socket that never listens and keeps an address for the processes of one bus, which `share` it. Raises
    PortTaken."""
    listen(host, port, flag).close()  # Another bus of this kind would share it in silence.
    return _bound(host, port, flag, is_shared=True)


def share(held: socket.socket) -> socket.socket:
    """A socket on an address that is held: the kernel spreads connections over all that listen there, and leaves out
    who died. (Of one socket for all, a process that is awake would take all there is.)"""
    host, port = held.getsockname()[:2]
    return _bound(host, port, "--port", is_shared=True)


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{address_of(host, port)}"


def address_of(host: str, port: int) -> str:
    """`host:port`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(host: str, port: int, flag: str, *, is_shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        where = address_of(host, port)
        raise PortTaken(f"cannot listen on {where}: {exc.strerror}. Choose another with {flag}.") from exc
    return listener
