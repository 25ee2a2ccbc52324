"""The report: one self-contained HTML page from measured figures, pictures and the chain of provenance."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from storage.artifacts import Ref
from storage.documents.report import Report
from storage.documents.samples import Samples
from storage.errors import StorageError
from storage.files import write_bytes_atomic
from tasks.evaluate import formats
from tasks.evaluate.curves import (
    draw_anatomy,
    draw_critics,
    draw_histograms,
    draw_likeness,
    draw_losses,
    draw_spectrum,
    read_metrics,
)
from tasks.evaluate.drawn import drawn_table, sampler_table
from tasks.evaluate.lineage import LUNG_LIMIT, Node, package_versions, store_facts, trace
from tasks.evaluate.stacks import Row, offsets_mm
from tasks.evaluate.summary import cards
from tasks.evaluate.tables import (
    Rows,
    anatomy_table,
    explanations,
    figure_groups,
    floor_size,
    footnotes,
    loss_table,
    undefined,
)
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.slices import WINDOWS

_SCRIPT = "report.js"
_FILTERS = ("number", "plain", "signed", "interval", "percent", "whole_percent", "span", "short", "pretty", "picture")


@dataclass(frozen=True)
class Subject:
    """What the report is about.

    Attributes:
        samples, snapshot, split: references.
        info: the sampled checkpoint.
        drawn: the list of samples.
        config: key fields of the evaluation's configuration.
        recipe: version of the evaluation.
        repeat_command: the command that repeats the run, or None.
    """

    samples: Ref
    snapshot: Ref
    split: Ref
    info: CheckpointInfo
    drawn: Samples
    config: dict[str, Any]
    recipe: int
    repeat_command: str | None

    def nodes(self) -> list[Node]:
        """The chain of provenance."""
        return trace(self.samples, self.split, self.snapshot)


@dataclass(frozen=True)
class Shown:
    """The volumes on the page.

    Attributes:
        places: indices of the slices that can be scrolled through.
        real, generated, pairs: rows of slices.
    """

    places: range
    real: list[Row] = field(default_factory=list)
    generated: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)


def draw_pictures(subject: Subject, metrics: Report, folder: Path) -> dict[str, bytes]:
    """Draw the curves of the report and write them to `figures/`.

    Returns: PNG bytes by name: `losses`, and `anatomy`, `histogram`, `spectrum`, `critic`, `likeness` where they were measured.
    """
    pictures, details = {"losses": draw_losses(training_rows(subject.nodes()))}, metrics.details
    if anatomy := anatomy_table(metrics):
        pictures["anatomy"] = draw_anatomy(anatomy)
    if "edges_hu" in details.get("hu", {}):
        pictures["histogram"] = draw_histograms(details["hu"])
    if "frequency_per_mm" in details.get("spectrum", {}):
        pictures["spectrum"] = draw_spectrum(details["spectrum"])
    if "distances_hu" in (details.get("wasserstein", {}).get("generated") or {}):
        pictures["critic"] = draw_critics(details["wasserstein"])
    if likeness := draw_likeness(details.get("memorisation", {}), details.get("ms_ssim", {})):
        pictures["likeness"] = likeness
    for name, data in pictures.items():
        write_bytes_atomic(folder / f"{name}.png", data)
    return pictures


def render(subject: Subject, metrics: Report, shown: Shown, pictures: dict[str, bytes]) -> str:
    """The page as text. It loads nothing from elsewhere; every value is escaped.

    Args:
        subject: what it is about.
        metrics: what was measured.
        shown: volumes.
        pictures: of `draw_pictures`.
    """
    environment = Environment(
        loader=PackageLoader("tasks.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formats, name) for name in _FILTERS}, zip=zip)
    info, groups, nodes = subject.info, figure_groups(metrics), subject.nodes()
    script = environment.loader.get_source(environment, _SCRIPT)[0] if environment.loader else ""
    return environment.get_template("report.html.j2").render(
        subject=subject,
        metrics=metrics,
        figures=metrics.figures,
        cards=cards(metrics),
        groups=groups,
        explanations=explanations(groups),
        footnotes=footnotes(groups),
        floor_size=floor_size(groups),
        undefined=undefined(metrics),
        anatomy=anatomy_table(metrics),
        bands=list(metrics.details.get("hu", {}).get("bands", {}).values()),
        memorisation=metrics.details.get("memorisation", {}),
        drawn=[*drawn_table(subject.drawn), *sampler_table(subject.drawn)],
        excluded=subject.drawn.excluded,
        windows=WINDOWS,
        info=info,
        family=info.of_family.title,
        lung_limit=LUNG_LIMIT,
        edge_mm=info.view.edge * info.spacing_mm,
        shown=shown,
        offsets=offsets_mm(metrics.volume_size, shown.places, metrics.voxel_mm),
        middle=len([place for place in shown.places if place < metrics.volume_size // 2]),
        sections=_sections(metrics, pictures),
        pictures=pictures,
        per_time=loss_table(comparable(nodes)),
        facts=store_facts(subject.snapshot, subject.split),
        nodes=nodes,
        versions=package_versions(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def training_rows(nodes: list[Node]) -> list[tuple[str, Rows]]:
    """(title, rows of metrics.jsonl) of the trainings in order; rows are empty where the file is missing."""
    checkpoints = [node for node in reversed(nodes) if node.ref.kind == "checkpoint"]
    return [(_training_title(node), read_metrics(node.ref.path / "metrics.jsonl")) for node in checkpoints]


def comparable(nodes: list[Node]) -> list[tuple[str, Rows]]:
    """Those of `training_rows` whose losses can be compared: volumes of the size of the first training's."""
    checkpoints = [node for node in nodes if node.ref.kind == "checkpoint"]
    try:
        sizes = {_training_title(node): load_info(node.ref).view.size for node in checkpoints}
    except (StorageError, ValueError):
        return []
    found = training_rows(nodes)
    return [(name, rows) for name, rows in found if sizes[name] == sizes[found[0][0]]]


def _sections(metrics: Report, pictures: dict[str, bytes]) -> dict[str, str]:
    """Titles of the page's sections by their anchors, of those that there are."""
    titles = {
        "figures": "Figures",
        "samples": "Slices",
        "drawing": "Drawing",
        "copies": "Copies and variety",
        "anatomy": "Anatomy",
    }
    titles |= {
        "values": "Hounsfield units",
        "spectrum": "Spectrum",
        "critic": "Critic",
        "training": "Training",
        "data": "Data",
    }
    missing = {
        "copies": "memorisation" not in metrics.details and "likeness" not in pictures,
        "anatomy": "anatomy" not in metrics.details,
        "spectrum": "spectrum" not in pictures,
        "critic": "critic" not in pictures,
        "about": not explanations(figure_groups(metrics)),
    }
    titles |= {"about": "About the figures", "provenance": "Provenance", "repeat": "Repeat it"}
    return {part: title for part, title in titles.items() if not missing.get(part)}


def _training_title(node: Node) -> str:
    stage = node.record.stage.removeprefix("train-") if node.record else ""
    words = node.title.removeprefix("Checkpoint: ")
    return f"{words} ({stage})" if stage and stage not in words else words
