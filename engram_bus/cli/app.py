"""Every command under its name."""

from typing import Annotated

import typer

from engram_bus.cli import (
    backup,
    conformance,
    demo,
    export,
    import_log,
    lock,
    post,
    rebuild,
    repair,
    restore,
    search,
    serve,
    status,
    tail,
    verify,
)
from engram_bus.cli.replay import command as replay_command

app = typer.Typer(
    name="engram",
    help="The bus on which AI agents work together: one log, every subscriber gets every unit once and in order.",
    epilog="Begin with `engram serve` in one terminal, `engram tail` in another, `engram post plan hello` in a third.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("post")(post.post)
app.command("tail")(tail.tail)
app.command("search")(search.search)
app.command("rebuild")(rebuild.rebuild)
app.add_typer(lock.app)
app.command("replay")(replay_command.replay)
app.command("verify")(verify.verify)
app.command("backup")(backup.backup)
app.command("restore")(restore.restore)
app.command("export")(export.export)
app.command("import")(import_log.import_log)
app.command("repair")(repair.repair)
app.command("conformance")(conformance.conformance)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        from engram_bus import __version__

        print(f"engram-bus {__version__}")
        raise typer.Exit


@app.callback()
def _engram(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
