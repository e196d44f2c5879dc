"""An HTTP request that never comes to an end, and what is answered to it; an HTTP client would finish it first."""

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from engram_bus.conformance.transports.contract import Broken
from engram_bus.conformance.transports.web import Answer


async def ask_without_end(url: str, method: str, path: str, headers: Mapping[str, str]) -> Answer:
    """The answer to the beginning of a request, whose headers go no further. Raises Broken."""
    host = urlsplit(url)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host.netloc}", *(f"{key}: {it}" for key, it in headers.items())]
        writer.write("".join(f"{line}\r\n" for line in lines).encode())
        return _answer(await reader.read())  # it is closed after the answer
    except OSError as exc:
        raise Broken(f"{method} {path} without an end: {exc!r}") from exc
    finally:
        writer.close()


def _answer(said: bytes) -> Answer:
    head, blank, body = said.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    if not blank or not first.startswith("HTTP/1.1 "):
        raise Broken(f"no answer: {said[:200]!r}")
    pairs = [line.partition(":")[::2] for line in rest]
    headers = [(name, value.strip()) for name, value in pairs if name.lower() != "transfer-encoding"]
    return Answer(int(first.split()[1]), headers=headers, content=body)
