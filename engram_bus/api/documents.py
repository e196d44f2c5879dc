"""The documents the bus serves of itself: openapi.json, asyncapi.json and a page to try them that needs no network.

The page is our own rather than Swagger UI: that shows no endless stream, and the packages that bundle a version of it
that reads OpenAPI 3.1 bring a web framework or ten megabytes along.
"""

from functools import cache
from importlib.resources import files

from engram_bus.api import asyncapi, openapi
from engram_bus.codec import JSON, encode_json

_DOCS = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/icon.svg": ("icon.svg", "image/svg+xml"),
}


@cache
def pages(version: str) -> dict[str, tuple[str, bytes]]:
    """Static pages by path: content type and bytes."""
    folder = files("engram_bus.api") / "docs"
    return {
        "/openapi.json": (JSON, encode_json(openapi.document(version))),
        "/asyncapi.json": (JSON, encode_json(asyncapi.document(version))),
        **{path: (kind, (folder / name).read_bytes()) for path, (name, kind) in _DOCS.items()},
    }
