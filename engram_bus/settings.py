"""One frozen Settings, made by the CLI from defaults < YAML file < ENGRAM_* environment < flags."""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import msgspec
import yaml

from engram_bus.limits import GIB, HEARTBEAT_SECONDS, LOG_SIZE_BYTES_MAX, SOCKET_STALL_SECONDS, WORKERS_MAX

ENVIRONMENT_PREFIX = "ENGRAM_"
GRPC_PORT = 50_051
"""Where gRPC is looked for."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_SIZE_GIB_MAX = 16_384
"""Log and index are each mapped whole, and a process has 128 TiB of addresses."""
_RANGES = (
    ("heartbeat_seconds", 1, 3_600),
    ("stall_seconds", 1, 3_600),
    ("log_size_gib", 1, LOG_SIZE_GIB_MAX),
    ("workers", 0, WORKERS_MAX),
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+")


class SettingsError(Exception):
    """A setting is not known or its value is not allowed; names the setting and where it came from."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. Each field is a flag (`--data-dir`), a variable (ENGRAM_DATA_DIR) and a YAML key."""

    host: str = "127.0.0.1"
    """Address to listen on. Another one than loopback needs `allow_unauthenticated`: there is no authentication yet."""
    port: int = 8080
    """TCP port; 0 takes a free one and prints it."""
    grpc: bool = True
    """Serve gRPC beside HTTP, on the same address."""
    grpc_port: int | None = None
    """TCP port of gRPC; 0 takes a free one. Not set: 50051, and no gRPC where that is taken."""
    grpc_reflection: bool | None = None
    """Tell any client what the gRPC services are. Not set: on loopback."""
    data_dir: str = "engram-data"
    """Where the log lives; made when it is not there."""
    log_level: str = "info"
    """debug, info, warning or error."""
    allow_unauthenticated: bool = False
    """Listen on other addresses than loopback although anyone who reaches the port may read and write."""
    allow_origins: tuple[str, ...] = ()
    """Origins whose web pages may talk to the bus (http://localhost and the like always may), comma-separated."""
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    """How often an idle subscription is told where it stands."""
    stall_seconds: float = SOCKET_STALL_SECONDS
    """How long a subscriber's socket may take nothing before it is closed with a cursor to resume after."""
    search: bool = True
    """Index what is said as it comes; false: only from the first search on."""
    embedder: str = "static"
    """What tells search which texts mean alike: static (shipped), sentence-transformers:MODEL, openai:URL#MODEL or
    ollama:URL#MODEL. A server's key is read from ENGRAM_EMBEDDER_KEY."""
    log_size_gib: int = LOG_SIZE_BYTES_MAX // GIB
    """Size of the log's sparse map, in GiB: how large it may grow, not what it takes."""
    workers: int | None = None
    """Processes that speak to clients, beside one that commits; 0 or 1: all in one process. Not set: several where a
    flush of the disk is slow."""


def load(
    *, flags: Mapping[str, Any], environment: Mapping[str, str], file: str | None = None, file_name: str = "config"
) -> Settings:
    """The settings from all their sources; `file` is the text of a YAML file. Raises SettingsError."""
    values: dict[str, Any] = {}
    values |= _from_yaml(file, file_name) if file is not None else {}
    values |= _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    if isinstance(values.get("allow_origins"), str):
        values["allow_origins"] = [name.strip() for name in values["allow_origins"].split(",") if name.strip()]
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        expected, _, name = str(exc).partition(" - at `$.")
        raise SettingsError(f"{name.rstrip('`') or 'settings'}: {expected}") from exc
    _check(settings)
    return settings


def _from_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # A ValueError: 2026-02-30 is no day.
        raise SettingsError(f"{name} is not YAML: {exc}") from exc
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{name} must map settings to values, not be a {type(values).__name__}")
    _refuse_unknown({str(key) for key in values}, name)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: environment[variable]
        for name in Settings.__struct_fields__
        if (variable := ENVIRONMENT_PREFIX + name.upper()) in environment
    }


def _refuse_unknown(names: set[str], where: str) -> None:
    if unknown := names - set(Settings.__struct_fields__):
        known = ", ".join(Settings.__struct_fields__)
        raise SettingsError(f"{where} sets {', '.join(sorted(unknown))}, which is not known; known: {known}")


def _check(settings: Settings) -> None:
    for name, port in (("port", settings.port), ("grpc_port", settings.grpc_port or 0)):
        if not 0 <= port <= 65_535:
            raise SettingsError(f"{name} {port} is not 0 to 65535")
    if settings.port and settings.port == settings.grpc_port:
        raise SettingsError(f"grpc_port {settings.grpc_port} is that of HTTP: gRPC has a port of its own")
    if settings.log_level not in LOG_LEVELS:
        raise SettingsError(f"log_level {settings.log_level!r} is not one of {', '.join(LOG_LEVELS)}")
    for name, least, most in _RANGES:
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            raise SettingsError(f"{name} {value} is not {least} to {most}")
    if not settings.data_dir:
        raise SettingsError("data_dir is empty: name a directory")
    for origin in settings.allow_origins:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(f"allow_origins names {origin!r}, not an origin like https://example.org:8443")
    if not settings.allow_unauthenticated and not is_loopback(settings.host):
        raise SettingsError(
            f"host {settings.host} can be reached from outside, and there is no authentication yet: anyone there could "
            f"read and write. Listen on 127.0.0.1, or say --allow-unauthenticated"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a socket that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
