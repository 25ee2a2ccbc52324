"""Quality against cost of a benchmark's lines, as pictures; without matplotlib's global state."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from storage.documents.benchmark import Line
from tasks.benchmark.summary import means_of
from tasks.evaluate.curves import INK, png, style_axes
from tasks.evaluate.formats import number, plain

COLORS = ("#0b6e6e", "#c2571a", "#5b4b9e", "#a3324b", "#4d7c0f", "#1d6fb8", "#8a6d3b", "#3f4a56", "#b0287f", "#2f855a")
MARKERS = "osD^vPX*"
NEARLY = 0.1  # costs that differ by no more are drawn as one
AXES = (
    ("training_seconds", "training, s"),
    ("sampling_seconds", "sampling per volume, s"),
    ("parameters", "parameters"),
)


def draw(lines: Sequence[Line], floor: float | None) -> bytes | None:
    """FID against the costs of `AXES`, a panel each: colours are rows, markers their samplers, bars intervals over seeds.

    Args:
        lines: of the table.
        floor: FID of real volumes against other real volumes; None where there is none.
    Returns: PNG, or None where no line has FID and a cost.
    """
    means = [means_of(line) for line in lines]
    drawn = [axis for axis in AXES if any("fid" in mean and axis[0] in mean for mean in means)]
    if not drawn:
        return None
    figure = Figure(figsize=(4.6 * len(drawn), 3.9), layout="constrained")
    colors = {row: COLORS[place % len(COLORS)] for place, row in enumerate(dict.fromkeys(line.row for line in lines))}
    markers = {
        name: MARKERS[place % len(MARKERS)] for place, name in enumerate(dict.fromkeys(line.sampler for line in lines))
    }
    handles = {}
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (cost, words) in zip(panels, drawn, strict=True):
        shown = [(line, mean) for line, mean in zip(lines, means, strict=True) if "fid" in mean and cost in mean]
        costs = [mean[cost].value for _, mean in shown]
        places = side_by_side(costs)
        for (line, mean), place in zip(shown, places or costs, strict=True):
            fid = mean["fid"]
            off = (
                None
                if fid.low is None or fid.high is None
                else [[fid.value - max(fid.low, 1e-12)], [fid.high - fid.value]]  # a logarithm has no zero
            )
            label = f"{line.title} ({line.sampler})"
            handles[label] = panel.errorbar(
                [place],
                [fid.value],
                yerr=off,
                color=colors[line.row],
                marker=markers[line.sampler],
                capsize=2,
                ls="",
            )
        if floor is not None and floor > 0:
            handles["real against real"] = panel.axhline(floor, color=INK, linewidth=1, linestyle="--")
        panel.set_xscale("linear" if places else "log")
        if places:
            panel.set_xticks([fmean(places)], [number(fmean(costs))])
        else:
            _few_ticks(panel.xaxis)
        panel.set_yscale("log")
        values = [value for _, mean in shown for value in (mean["fid"].value, mean["fid"].low) if value is not None]
        panel.set_ylim(
            bottom=0.5 * min(value for value in (*values, floor or 0.0) if value > 0)
        )  # bars may leave it there
        _few_ticks(panel.yaxis)
        style_axes(panel)
        panel.set_xlabel(words, fontsize=9)
        panel.set_ylabel("3D FID", fontsize=9)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def _few_ticks(axis: Axis) -> None:
    """Plain numbers that do not overlap on a logarithmic axis, also where it spans less than a decade."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(MaxNLocator(4) if high < 10 * low else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value) if value < 1e5 else f"{plain(value / 1e6)} M"))
    axis.set_minor_formatter(NullFormatter())


def side_by_side(costs: Sequence[float]) -> list[float] | None:
    """Places of lines that cost nearly the same, as where seconds end all trainings, in their order; None: they are their costs."""
    if len(costs) < 2 or max(costs) > (1 + NEARLY) * min(costs):
        return None
    return [float(place) for place in range(len(costs))]
