"""`engram serve`: run a bus."""

import os
from pathlib import Path
from typing import Annotated

import typer

from engram_bus.cli.failures import Failure

_SETTINGS = "Settings"


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1", rich_help_panel=_SETTINGS)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="TCP port; 0 takes a free one.", show_default="8080", rich_help_panel=_SETTINGS),
    ] = None,
    grpc: Annotated[
        bool | None,
        typer.Option(
            "--grpc/--no-grpc",
            help="Serve gRPC beside HTTP, on the same address.",
            show_default="grpc",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="TCP port of gRPC; 0 takes a free one. Not given: 50051, and no gRPC where that is taken.",
            show_default="50051",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    grpc_reflection: Annotated[
        bool | None,
        typer.Option(
            "--grpc-reflection/--no-grpc-reflection",
            help="Tell any client what the gRPC services are.",
            show_default="on loopback",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            help="Where the log lives; made when it is not there.",
            show_default="engram-data",
            metavar="DIR",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            help="How much to tell on stderr: debug, info, warning or error.",
            show_default="info",
            metavar="LEVEL",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool | None,
        typer.Option(
            "--allow-unauthenticated",
            help="Listen on other addresses than loopback although anyone who reaches the port may read and write.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    allow_origins: Annotated[
        str | None,
        typer.Option(
            help="Origins whose web pages may talk to the bus, comma-separated; pages of this machine always may.",
            show_default="none",
            metavar="ORIGINS",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    heartbeat_seconds: Annotated[
        float | None,
        typer.Option(
            help="How often an idle subscription is told where it stands.",
            show_default="15",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    stall_seconds: Annotated[
        float | None,
        typer.Option(
            help="How long a subscriber's socket may take nothing before it is closed; it resumes where it was.",
            show_default="30",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    search: Annotated[
        bool | None,
        typer.Option(
            "--search/--no-search",
            help="Index what is said as it comes, or only from the first search on.",
            show_default="search",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="What tells search which texts mean alike: static (shipped), sentence-transformers:MODEL, "
            "openai:URL#MODEL or ollama:URL#MODEL; a server's key is read from ENGRAM_EMBEDDER_KEY.",
            show_default="static",
            metavar="EMBEDDER",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    log_size_gib: Annotated[
        int | None,
        typer.Option(
            help="How large the log may grow, in GiB; it takes no more than it holds.",
            show_default="64",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that speak to clients, beside one that commits; 0 or 1: all in one. Not given: several "
            "where a flush of the disk takes a millisecond or more.",
            show_default="by the disk",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="ENGRAM_CONFIG", metavar="FILE", help="A YAML file with any of the settings below (data_dir: ...)."
        ),
    ] = None,
) -> None:
    """Run a bus until Ctrl-C (or SIGTERM).

    Prints its URL on stdout once it answers; what happens goes to stderr. Every setting can also be a variable
    (ENGRAM_DATA_DIR) or stand in the --config file; flags win over variables, variables over the file.
    """
    from engram_bus.errors import DataDirectoryError
    from engram_bus.ports import PortTaken
    from engram_bus.settings import SettingsError, load
    from engram_bus.workers.supervisor import LogProcessDied, run

    flags = {
        "host": host,
        "port": port,
        "grpc": grpc,
        "grpc_port": grpc_port,
        "grpc_reflection": grpc_reflection,
        "data_dir": data_dir,
        "log_level": log_level,
        "allow_unauthenticated": allow_unauthenticated,
        "allow_origins": allow_origins,
        "heartbeat_seconds": heartbeat_seconds,
        "stall_seconds": stall_seconds,
        "search": search,
        "embedder": embedder,
        "log_size_gib": log_size_gib,
        "workers": workers,
    }
    try:
        text = None if config is None else config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"--config {config} cannot be read: {exc}", code=2) from exc
    try:
        settings = load(flags=flags, environment=os.environ, file=text, file_name=str(config))
        run(settings, ready=lambda url: print(f"The bus is at {url}", flush=True))
    except (SettingsError, DataDirectoryError, PortTaken) as exc:
        raise Failure(str(exc), code=2) from exc
    except LogProcessDied as exc:
        raise Failure(str(exc)) from exc
