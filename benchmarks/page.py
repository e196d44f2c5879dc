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
LARGE_LOG: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "durable append, 1 client, p50, µs": lambda row: row["append"]["p50_us"]["median"],
    "the same, p99, µs": lambda row: row["append"]["p99_us"]["median"],
    "the disk's own flush, p50, µs": lambda row: row["disk"]["prezeroed_overwrite_fdatasync_p50_us"]["median"],
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
    rows = kept["rows"]
    cells = [
        f"<tr><td>{escape(row['figure'])}</td><td class=number>{_number(row['found'])} {row['unit']}</td>"
        f"<td class=number>{_number(row['must'])}</td><td class=number>{_number(row['aim'])}</td>"
        f"<td class={row['met'].split()[0]}>{row['met']}</td></tr>"
        for row in rows
    ]
    return [
        "<h2>Targets</h2>",
        _about(kept),
        "<p>Each figure is the median over rounds in which all took turns; <i>x</i> is a ratio within a round.</p>",
        f"<table><tr><th>figure<th>found<th>must<th>aim<th>met</tr>{''.join(cells)}</table>",
        "<p>How far each is beyond what it must be: right of 1 is better; the mark is the aim.</p>",
        _svg(lambda figure: _draw_targets(figure, [row for row in rows if row["found"] is not None]), 0.3 * len(rows)),
    ]


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
    parts = ["<h2>Beside brokers and floors</h2>", _about(kept)]
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
    rows = "".join(
        f"<tr><td>{figure}{''.join(f'<td class=number>{_number(found(row))}' for row in sizes)}</tr>"
        for figure, found in LARGE_LOG.items()
    )
    return [
        f"<h2>A log that grows, over {_number(kept['contexts'])} contexts</h2>",
        _about({**kept, "rounds": kept["sizes"][-1]["rounds"]}),
        f"<table><tr><th>units in the log{heads}</tr>{rows}</table>",
        *_with_search(kept["with_search"]),
    ]


def _with_search(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return []
    on, off = (row[name]["append"]["per_second"]["median"] for name in ("clients_64", "clients_64_search_off"))
    bus, search = (row["memory_mib"][name]["own"] for name in ("bus", "search"))
    said = [
        f"With search, {_number(row['units'])} units: it takes in {_number(row['taken_in_units_per_second'])} a second",
        f"64 clients append {_number(on)} a second ({_number(off)} without search)",
        f"search has caught up with them after {_number(row['seconds_until_it_caught_up'])} s",
        f"the bus takes {_number(bus)} MiB, search {_number(search)} MiB",
    ]
    return [f"<p>{'; '.join(said)}.</p>"]


# --- All of them -----------------------------------------------------------------------------------------------------


def _about(kept: Mapping[str, Any]) -> str:
    about = kept["machine"]
    disk = kept.get("disk") or {}
    said = [
        f"commit {about['commit']}",
        f"{about['cpus']} processors, load average {about['load_average']} before",
        about["file_system"],
        kept["pinned"],
    ]
    said += [f"{kept['payload_bytes']} B payloads", f"{kept['rounds']} rounds"]
    for name in ("append_fdatasync_p50_us", "prezeroed_overwrite_fdatasync_p50_us"):
        p50 = disk[name]["median"] if name in disk else about[name.replace("append_", "").replace("_p50", "")]["p50"]
        said.append(f"{name.replace('_', ' ').removesuffix(' us')} {p50} µs")
    said += [f"{name}: {version}" for name, version in kept.get("versions", {}).items()]
    return f"<p>{escape('; '.join(said))}.</p>"


def _number(value: float | None) -> str:
    if value is None:
        return "none"
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
