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
LAST_100 = ("in_process", "over_http")
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
    rows = {f"last 100, {name.replace('_', ' ')}, p99, µs": kept[f"last_100_{name}_us"]["p99"] for name in LAST_100}
    rows["ready after kill -9, median, s"] = median(kept["restart_after_kill_seconds"])
    cells = [f"<tr><td>{name}<td class=number>{_number(value)}</tr>" for name, value in rows.items()]
    return [f"<h2>A log of {_number(kept['units'])} units</h2>", f"<table>{''.join(cells)}</table>"]


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
