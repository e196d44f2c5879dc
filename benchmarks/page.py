"""results/index.html: what was measured, with charts, made of the JSON beside it alone.

python -m benchmarks.page
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS

OURS, OTHERS, FLOORS = "#1f6f5c", "#8a94a6", "#d3b04c"
MET = {"aim": "#1f6f5c", "must": "#6fae4e", "no": "#c2553b", "not measured": "#bbbbbb"}
APPEND_FLUSH, OVERWRITE_FLUSH = "append_fdatasync_p50_us", "prezeroed_overwrite_fdatasync_p50_us"
ABOUT = (
    ("commit {}", "commit"),
    ("measured {}", "at"),
    ("{} processors", "cpus"),
    ("load average {} before", "load_average"),
    ("{}", "file_system"),
    ("{}", "pinned"),
    ("{} B payloads", "payload_bytes"),
    ("{} contexts", "contexts"),
    ("{} rounds", "rounds"),
)
LISTED = ("commit", "file_system", "pinned")
"""Of these each value is named where there are several; of the others the least and the greatest."""
HOW = """Each figure is the median over rounds in which all took turns; <i>x</i> is a ratio within a round. Of the same
rounds: what the load finds at a server that does nothing (it writes each frame by itself: who writes several at once
may deliver more); the disk's own flush (fdatasync of an overwritten page, p50); the load's share of a processor."""
LARGE_LOG: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "durable append, 1 client, p50, µs": lambda row: row["append"]["p50_us"]["median"],
    "the same, p99, µs": lambda row: row["append"]["p99_us"]["median"],
    "the disk's own flush, p50, µs": lambda row: row["disk"][OVERWRITE_FLUSH]["median"],
    "appends of 1,000 in process, units/s": lambda row: (
        None if row["write"] is None else row["write"]["units_per_second"]
    ),
    "last 100 of a context, for the first time, p50, µs": lambda row: row["last_100_in_process_us"]["first"]["p50"],
    "read lately, p50, µs": lambda row: row["last_100_in_process_us"]["lately"]["p50"],
    "for the first time, over HTTP, p50, µs": lambda row: row["last_100_over_http_us"]["first"]["p50"],
    "read lately, over HTTP, p50, µs": lambda row: row["last_100_over_http_us"]["lately"]["p50"],
    "a unit by its id, in process, p50, µs": lambda row: row["get_in_process_us"]["p50"],
    "a unit by its id, over HTTP, p50, µs": lambda row: row["get_over_http_us"]["p50"],
    "read from zero over WebSocket, units/s": lambda row: row["read_from_zero_units_per_second"],
    "ready after kill -9, median, s": lambda row: median(row["restart_after_kill_seconds"]),
    "ready after a clean stop, median, s": lambda row: median(row["restart_after_stop_seconds"]),
    "ready after a clean stop and a new start of the machine, s": lambda row: row["restart_after_reboot_seconds"],
    "a clean stop, s": lambda row: row["stop_seconds"],
    "memory after the start, MiB": lambda row: row["memory_mib"]["after_start"]["own"],
    "memory after all these reads, MiB": lambda row: row["memory_mib"]["after_reads"]["own"],
    "log on disk, bytes a unit": lambda row: row["disk_bytes_per_unit"]["log"],
    "index on disk, bytes a unit": lambda row: row["disk_bytes_per_unit"]["index"],
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { max-width: 100%; height: auto; }
.aim { color: #1f6f5c; } .must { color: #4d7f30; } .no { color: #c2553b; }
"""


def main() -> None:
    """Write the page; what was not measured is left out."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "engram", "font.family": "sans-serif", "font.size": 9})
    parts = ["<h1>engram-bus, measured</h1>"]
    if (targets := _kept("bench_targets")) is not None:
        parts += _targets(targets)
    if (brokers := _kept("bench_brokers")) is not None:
        parts += _brokers(brokers)
    if (large := _kept("bench_large_log")) is not None:
        parts += _large_log(large)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>engram-bus, measured</title>'
    page = "\n".join((head, f"<style>{STYLE}</style>", *parts, "</html>"))
    (RESULTS / "index.html").write_text(page + "\n", encoding="utf-8")


def _kept(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# --- Targets ---------------------------------------------------------------------------------------------------------


def _targets(kept: Mapping[str, Any]) -> list[str]:
    parts = [*kept["parts"].values()]
    rows = [row for part in parts for row in part["rows"]]
    several = len({part["commit"] for part in parts}) > 1
    cells = [_target(row, part, commit=several) for part in parts for row in part["rows"]]
    heads = "<th>figure<th>found<th>must<th>aim<th>met<th>null server<th>flush, µs<th>load's cpu"
    return [
        "<h2>Targets</h2>",
        _about(parts),
        f"<p>{HOW}</p>",
        f"<table><tr>{heads}{'<th>commit' if several else ''}</tr>{''.join(cells)}</table>",
        "<p>How far each is beyond what it must be: right of 1 is better; the mark is the aim.</p>",
        _svg(lambda figure: _draw_targets(figure, [row for row in rows if row["found"] is not None]), 0.3 * len(rows)),
    ]


def _target(row: Mapping[str, Any], part: Mapping[str, Any], *, commit: bool) -> str:
    disk = part["disk"]
    flush = disk[OVERWRITE_FLUSH]["median"] if disk else None
    cells = [
        f"<td>{escape(row['figure'])}",
        f"<td class=number>{_number(row['found'])} {row['unit']}",
        *(f"<td class=number>{_number(row[bound])}" for bound in ("must", "aim")),
        f"<td class={row['met'].split()[0]}>{row['met']}",
        *(f"<td class=number>{_number(beside)}" for beside in (row.get("null"), flush, row.get("load_cpu_share"))),
    ]
    return f"<tr>{''.join(cells)}{'<td>' + part['commit'] if commit else ''}</tr>"


def _draw_targets(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    axes = figure.add_subplot()

    def beyond(row: Mapping[str, Any], value: float) -> float:
        return float(row["must"] / value if row["better"] == "lower" else value / row["must"])

    places = range(len(rows))
    axes.hlines(places, 1, [beyond(row, row["found"]) for row in rows], color=[MET[row["met"]] for row in rows], lw=6)
    axes.plot([beyond(row, row["aim"]) for row in rows], places, "k|", ms=9)
    axes.axvline(1, color="#444444", lw=0.8)
    axes.set_xscale("log")
    axes.set_yticks(places, [_short(row["figure"]) for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:63] + "…"


# --- Beside others ---------------------------------------------------------------------------------------------------


def _brokers(kept: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>Beside brokers and floors</h2>", _about([{**kept["machine"], **kept}])]
    for kind, rate in (("appends", "per_second"), ("deliveries", "deliveries_per_second")):
        for load, servers in kept.get(kind, {}).items():
            drawn = _svg(partial(_draw_servers, servers=servers, rate=rate), 0.3 * len(servers))
            parts += [f"<h3>{kind.capitalize()}: {escape(load)}</h3>", drawn]
    return parts


def _draw_servers(figure: Figure, servers: Mapping[str, Any], rate: str) -> None:
    """Times and rates: a bar is the median over the rounds, the mark the best."""
    names = [*servers]
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label, key in ((left, "p50, microseconds", "p50_us"), (right, "a second", rate)):
        axes.barh(names, [servers[name][key]["median"] for name in names], color=[_color(name) for name in names])
        axes.plot([servers[name][key]["best"] for name in names], names, "k|", ms=8)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()


def _color(name: str) -> str:
    if name.startswith("bus"):
        return OURS
    return FLOORS if name.startswith(("null", "a uvloop")) else OTHERS


# --- A large log -----------------------------------------------------------------------------------------------------


def _large_log(kept: Mapping[str, Any]) -> list[str]:
    sizes = kept["sizes"]
    heads = "".join(f"<th>{_number(row['units'])}" for row in sizes)
    measured = "".join(f"<td class=number>{row['commit']}" for row in sizes)
    written = "".join(f"<td class=number>{row['write']['commit'] if row['write'] else '-'}" for row in sizes)
    rows = "".join(
        f"<tr><td>{figure}{''.join(f'<td class=number>{_number(found(row))}' for row in sizes)}</tr>"
        for figure, found in LARGE_LOG.items()
    )
    commits = f"<tr><td>measured by commit{measured}</tr><tr><td>its last units written by commit{written}</tr>"
    return [
        "<h2>A log that grows</h2>",
        _about(sizes),
        f"<table><tr><th>units in the log{heads}</tr>{commits}{rows}</table>",
        *_with_search(kept["with_search"]),
    ]


def _with_search(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return []
    taken = row["taken_in_units_per_second"]
    beside, alone = (row["clients_64"][name]["per_second"]["median"] for name in ("search on", "search off"))
    flush = row["clients_64"]["disk"][OVERWRITE_FLUSH]["median"]
    bus, search = (row["memory_mib"][name]["own"] for name in ("bus", "search"))
    said = [
        f"With search, {_number(row['units'])} units (commit {row['commit']}): it takes in {_number(taken)} a second",
        f"64 clients append {_number(beside)} a second beside it, in turns with {_number(alone)} where there is none",
        f"a flush of the disk takes {_number(flush)} µs",
        f"the bus takes {_number(bus)} MiB, search {_number(search)} MiB",
    ]
    return [f"<p>{'; '.join(said)}.</p>"]


# --- All of them -----------------------------------------------------------------------------------------------------


def _about(measured: Sequence[Mapping[str, Any]]) -> str:
    """Where all of these come from; what differs between them is said of none alone."""
    said = [text.format(values) for text, name in ABOUT if (values := _values(measured, name))]
    flushes = [{name: figure["median"] for name, figure in one["disk"].items()} for one in measured if one.get("disk")]
    said += [
        f"{name.replace('_', ' ').removesuffix(' us')} {medians} µs"
        for name in (APPEND_FLUSH, OVERWRITE_FLUSH)
        if (medians := _values(flushes, name))
    ]
    said += sorted({f"{name}: {version}" for one in measured for name, version in one.get("versions", {}).items()})
    return f"<p>{escape('; '.join(said))}.</p>"


def _values(measured: Sequence[Mapping[str, Any]], name: str) -> str:
    values = sorted({one[name] for one in measured if name in one})
    if name in LISTED or len(values) < 2:
        return ", ".join(map(str, values))
    return f"{values[0]} to {values[-1]}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:g}"


def _svg(draw: Callable[[Figure], None], height_inches: float) -> str:
    figure = Figure(figsize=(9.5, height_inches + 0.7), layout="constrained")
    draw(figure)
    said = io.StringIO()
    figure.savefig(said, format="svg", metadata={"Date": None, "Creator": None})
    text = said.getvalue()
    return text[text.index("<svg") :]


if __name__ == "__main__":
    main()
