"""The status as a page and as text: what needs a person first."""

import re
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup, escape

from flows.config import leaves
from tasks.evaluate.formats import number

_WIDTH, _HEIGHT = 760.0, 180.0
_LEFT, _BOTTOM, _TOP, _RIGHT = 46.0, 24.0, 12.0, 96.0
_FIGURES = 14
_CODE = re.compile("`([^`]+)`")
Part = dict[str, Any]


def page(value: Part) -> str:
    """A self-contained HTML page without scripts."""
    environment = Environment(
        loader=PackageLoader("flows", "."),
        autoescape=True,
        undefined=ChainableUndefined,  # a part that could not be read lacks its keys
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"gb": gb, "when": when, "duration": duration, "commands": commands}
    css = files("tasks.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    return environment.get_template("status.html.j2").render(
        value=value,
        css=css,
        chart=chart(value["store"].get("steps") or []),
        figures=figures(((value["model"].get("champion") or {}).get("figures")) or {}),
    )


def commands(text: str) -> Markup:
    """Text whose parts between backticks are code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def gb(size: float) -> str:
    """Bytes as GB, or MB where that says more."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def when(text: str | None) -> str:
    """A time as a person reads it."""
    if not text:
        return "–"
    return f"{datetime.fromisoformat(text.replace('Z', '+00:00')):%Y-%m-%d %H:%M}"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figures(values: Part) -> list[tuple[str, str]]:
    """Numbers of a decision by name in words, as text."""
    numbers = [(name, value) for name, value in leaves(values) if isinstance(value, int | float | str) and value != ""]
    return [
        (name.replace(".", ", ").replace("_", " "), number(value) if isinstance(value, float) else str(value))
        for name, value in numbers[:_FIGURES]
    ]


def chart(steps: Sequence[Part]) -> Part | None:
    """Volumes and patients over time as steps of an SVG; None with fewer than two.

    Returns: `lines` (name, path, where its name stands), `ticks` of both axes, width and height.
    """
    if len(steps) < 2:
        return None
    times = [datetime.fromisoformat(step["created"]).timestamp() for step in steps]
    first, span = times[0], max(times[-1] - times[0], 1.0)
    most = max(max(step["volumes"], step["patients"]) for step in steps) or 1
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(time: float) -> float:
        return round(_LEFT + wide * (time - first) / span, 1)

    def y(count: float) -> float:
        return round(_TOP + high * (1 - count / most), 1)

    lines = []
    for name in ("volumes", "patients"):
        parts = [f"M{x(times[0])},{y(steps[0][name])}"]
        parts += [f"H{x(time)}V{y(step[name])}" for time, step in zip(times[1:], steps[1:], strict=True)]
        lines.append({"name": name, "path": "".join(parts), "y": y(steps[-1][name]) + 4, "last": steps[-1][name]})
    if abs(lines[0]["y"] - lines[1]["y"]) < 14:
        lines[1]["y"] = lines[0]["y"] + 14
    marks = sorted({0, most // 2, most})
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "lines": lines,
        "y_ticks": [(mark, y(mark)) for mark in marks],
        "x_ticks": [
            (f"{datetime.fromisoformat(step['created']):%Y-%m-%d}", x(time), anchor)
            for step, time, anchor in ((steps[0], times[0], "start"), (steps[-1], times[-1], "end"))
        ],
        "base": y(0),
    }


def text(value: Part) -> str:
    """The status for a terminal."""
    lines = _person_lines(value["needs_person"])
    lines += ["", *_service_lines(value["services"])]
    if problem := value["flow_runs"].get("problem"):
        lines.append(f"Prefect: {problem}")
    for row in value["flow_runs"].get("flow_runs", [])[:5]:
        lines.append(f"flow run: {when(row['began'])} {row['flow']} {row['state']}")
    for row in value["runs"].get("runs", [])[:3]:
        lines.append(f"run: {row['name']} {row['state']}" + (f" ({row['error']})" if row["error"] else ""))
    store, disk = value["store"], value["disk"]
    lines.append(f"store: {store.get('volumes', '?')} volumes of {store.get('patients', '?')} patients")
    lines.append(_model_line(value["model"]))
    batches = ", ".join(f"{count} {state}" for state, count in value["inbox"].get("batches", {}).items())
    lines.append(f"inbox: batches: {batches or 'none'}")
    if "free_bytes" in disk:
        lines.append(f"disk: {gb(disk['free_bytes'])} free, {gb(disk['min_free_bytes'])} stay free")
    if disk.get("maintenance"):
        lines.append(f"last maintenance: {when(disk['maintenance']['created'])}")
    if value.get("page"):
        lines.append(f"page: {value['page']}")
    return "\n".join(lines)


def _person_lines(needs: list[Part]) -> list[str]:
    if not needs:
        return ["Nothing needs a person."]
    lines = [f"{len(needs)} thing{'' if len(needs) == 1 else 's'} need{'s' if len(needs) == 1 else ''} a person:"]
    for need in needs:
        lines.append(f"  {need['what']}: {need['detail']}" if need["detail"] else f"  {need['what']}")
        if need["do"]:
            lines.append(f"      {need['do']}")
    return lines


def _service_lines(part: Part) -> list[str]:
    if problem := part.get("problem"):
        return [f"services: {problem}"]
    if not part["running"]:
        return ["services: not running"]
    return ["services: " + ", ".join(f"{row['name']} {row['state']}" for row in part["services"])]


def _model_line(part: Part) -> str:
    if part.get("problem"):
        return f"model: {part['problem']}"
    champion, challenger = part.get("champion"), part.get("challenger")
    if part.get("registry"):
        return f"model: {part['registry']}"
    first = f"version {champion['version']} is champion" if champion else "no champion"
    return f"model: {first}" + (f", version {challenger['version']} is challenger" if challenger else "")
