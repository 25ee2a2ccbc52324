"""Model card and data card: facts that were recorded, as Markdown, for people who get the model or the figures and nothing else.

Neither names a path, a scan or a patient, so both can be passed on. What nobody recorded is not stated.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from storage.documents.checkpoint import Checkpoint
from storage.documents.report import FigureRecord, Report
from storage.snapshots import open_snapshot
from tasks.evaluate.drawn import named
from tasks.evaluate.formats import interval, number, plain, whole_percent
from tasks.evaluate.lineage import Node, package_versions, store_facts
from tasks.evaluate.report import Subject
from tasks.evaluate.tables import Row, figure_groups
from tasks.model.conditions import said

RESEARCH = "Research use only. Not a medical device: generated volumes show no real patient and must not be used for diagnosis."
ACQUISITION = {  # attributes of scans that say nothing of a patient
    "Manufacturer": "Manufacturer",
    "ConvolutionKernel": "Reconstruction kernel",
    "SliceThickness": "Slice thickness, mm",
    "KVP": "Tube voltage, kV",
    "contrast": "Contrast agent",
}
MOST_VALUES = 8  # of one attribute
_TRAINING = ("steps", "batch_size", "lr", "ema_decay", "max_shift", "precision", "seed")


def model_card(subject: Subject, metrics: Report) -> str:
    """What the sampled model is, what it was trained on and how, and what was measured of it."""
    info, nodes = subject.info, subject.nodes()
    checkpoints = [node for node in nodes if node.ref.kind == "checkpoint"]
    window = f"{plain(info.window.lower_hu)} to {plain(info.window.upper_hu)} HU"
    facts: dict[str, Any] = {
        "Family": info.of_family.title,
        "Volumes": f"{metrics.volume_size}³ voxels of {plain(metrics.voxel_mm)} mm, a box of "
        f"{plain(info.view.edge * info.spacing_mm)} mm; {window}",
        "Network": _code(info.model),
        "Process": _code(info.process.to_dict()) if info.process else "none",
        "Optimiser steps": info.step,
        "Weights sampled": metrics.sampler.weights,
        "Checkpoint": f"`{checkpoints[0].ref.digest}`" if checkpoints else "its record cannot be read",
        "Licence": "not recorded",
    }
    if info.label_column:
        facts["Labels"] = f"{info.label_column}: {', '.join(info.label_values)}"
    if info.conditions:
        facts["Conditions"] = said(info.conditions)
    if info.mask:
        facts["Mask"] = f"{' and '.join(info.mask.channels)}, cells of {info.mask.cell * info.voxel_mm:g} mm"
    if metrics.sampler.conditions:
        facts["Conditions of the samples"] = named(metrics.sampler.conditions)
    facts |= _origin(checkpoints)
    sampler = (
        f"{metrics.sampler.name}, {metrics.sampler.evaluations} evaluations of the network, seed {metrics.sampler.seed}"
    )
    parts = [
        f"# Model card: {info.of_family.title}, chest CT, {metrics.volume_size}³",
        RESEARCH,
        "## Model",
        _table(("Fact", "Value"), facts.items()),
        "## Training",
        _table(("Training", *_TRAINING, "code"), [_training(node) for node in reversed(checkpoints)]),
        f"The data are described in `dataset-card.md`: snapshot `{subject.snapshot.digest}`, {metrics.n_real} volumes, "
        f"{metrics.n_held_out} of them held out.",
        "## Figures",
        f"{metrics.n_generated} samples of {subject.drawn.num_asked} asked for ({sampler}) against {metrics.n_real} real volumes. "
        f"{metrics.protocol}",
        f"Features: {metrics.features.title}, "
        f"`{metrics.features.digest}`. {metrics.features.statement[:1].upper()}{metrics.features.statement[1:]}",
        *(f"**{sentence}**" for sentence in metrics.warnings),
        _figures(metrics),
        "Floor: the same figure of one half of the real volumes against the other, no patient in both, with the volumes behind it.",
        "## Use and limits",
        "- Meant for research on generative models of CT and on how they are measured.\n"
        "- Plausible volumes are not proof of quality: the figures say what was measured, `report.html` shows it.\n"
        "- A model can repeat volumes that it was trained on. Look at the closest pairs of the report before passing samples on.\n"
        "- What the training data lack (scanners, ages, diseases, parts outside the box) the model cannot show.",
        _repeat(subject.repeat_command),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def dataset_card(subject: Subject) -> str:
    """What the real volumes are: how many, on which grid, how they were acquired; nothing of single scans or patients."""
    listed = open_snapshot(subject.snapshot)[1]
    facts = store_facts(subject.snapshot, subject.split)
    volumes = listed.volumes.values()
    view = subject.info.view
    rows: dict[str, Any] = {
        "Snapshot": f"`{facts.snapshot}`",
        "Volumes": facts.num_volumes,
        "Patients": len(listed.patients),
        "Grid": f"{plain(facts.spacing_mm)} mm, axes towards superior, posterior, left; {facts.interpolation} interpolation",
        "Values": "Hounsfield units, 16 bit",
        "What a model sees": f"a box of {plain(view.edge * facts.spacing_mm)} mm at {view.size}³ voxels",
        "Licence": "not recorded",
    }
    if listed.num_synthetic:
        rows["Generated by a model"] = f"{listed.num_synthetic} of the volumes, by what their files said"
    acquired = [
        (words, _counts(volume.attributes[name] for volume in volumes if volume.attributes.get(name) is not None))
        for name, words in ACQUISITION.items()
    ]
    parts = [
        "# Data card: chest CT volumes",
        RESEARCH,
        "Patients' names, ids, ages, sexes and dates are not in this card, nor are names of files.",
        "## Volumes",
        _table(("Fact", "Value"), rows.items()),
        "## Roles",
        _table(("Role", "Volumes", "Patients"), facts.roles) + "".join(f"\n\n{note}" for note in facts.notes),
        "## Acquisition",
        _table(("Attribute", "Volumes by value"), [(words, counts) for words, counts in acquired if counts])
        if any(counts for _, counts in acquired)
        else "Not recorded.",
        "## Left out",
        _table(("Reason", "Scans and files"), sorted(Counter(f"`{row['reason']}`" for row in facts.exclusions).items()))
        if facts.exclusions
        else "Nothing was skipped or quarantined.",
    ]
    if facts.cuts:
        parts.append(
            f"The default view (a centred box of 256 voxels) cuts more than 1 % of the lungs in {facts.num_lung_cut} of "
            f"{len(facts.cuts)} volumes."
        )
    return "\n\n".join(parts) + "\n"


def _figures(metrics: Report) -> str:
    rows = []
    for row in (row for group in figure_groups(metrics) for row in group.rows):
        value = f"{number(row.figure.value)} {row.figure.unit}".strip()
        blind = " (blind: does not order real, blurred and noised volumes)" if row.blind else ""
        bounds = interval(row.figure.interval) if row.figure.interval else "–"
        rows.append((row.title + blind, row.about.better or "–", value, bounds, _sizes(row.figure), _floor(row)))
    level = whole_percent(0.95)
    return _table(("Figure", "Better", "Value", f"{level} interval", "n real, generated", "Floor"), rows)


def _floor(row: Row) -> str:
    if row.floor is None or row.floor.value is None or not row.about.better:
        return "–"
    return f"{number(row.floor.value)} (n = {_sizes(row.floor)})"


def _sizes(figure: FigureRecord) -> str:
    return f"{figure.n_real}, {figure.n_generated}"


def _training(node: Node) -> tuple[Any, ...]:
    config = node.record.config if node.record else {}
    stage = node.record.stage.removeprefix("train-") if node.record else node.title
    version = node.record.code_version if node.record else None
    return stage, *(config.get(key, "–") for key in _TRAINING), version or "not recorded"


def _origin(checkpoints: Sequence[Node]) -> dict[str, Any]:
    """Facts of a checkpoint that was imported."""
    try:
        imported = Checkpoint.load(checkpoints[0].ref.path).imported if checkpoints else None
    except (OSError, ValueError):
        return {}
    if imported is None:
        return {}
    return {
        "Imported from": f"a file with SHA-256 `{imported.source_sha256.removeprefix('sha256:')}`, variant {imported.variant}"
        f"{', model ' + imported.model_name if imported.model_name else ''}, epoch {imported.epoch}",
        "Published data set": imported.dataset or "as the file states",
    }


def _repeat(command: str | None) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    block = f"```\n{command}\n```\n\n" if command else ""
    return f"## Repeat it\n\n{block}{versions}"


def _counts(values: Iterable[Any]) -> str:
    found = Counter(plain(value) if isinstance(value, float) else str(value) for value in values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in found[:MOST_VALUES])
    return shown + (f", {len(found) - MOST_VALUES} more" if len(found) > MOST_VALUES else "")


def _code(value: dict[str, Any]) -> str:
    return f"`{json.dumps(value, sort_keys=True)}`"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """Text of a header may hold anything; it must stay one cell, and text."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
