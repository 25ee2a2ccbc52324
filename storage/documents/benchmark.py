"""benchmark.json: the lines of a benchmark's table."""

from typing import Any, ClassVar

from storage.documents.document import Document, Part
from storage.documents.report import Features
from storage.refs import Ref


class PlannedTraining(Part):
    """One training of a row, as far as its size is concerned; None where it cannot be counted.

    Attributes:
        name: in its recipe.
        family, title: of the family.
        process: name; empty for a family without one.
        parameters, trainable: of its module.
        flops_per_volume: of the matrix products of an optimiser step, per volume, forward and backward.
        memory_bytes: of a training step by `prdit plan`, on the CPU and on a GPU.
        batch_size: volumes per optimiser step.
    """

    name: str
    family: str
    title: str
    process: str
    parameters: int
    trainable: int
    flops_per_volume: int | None
    memory_bytes: dict[str, int]
    batch_size: int


class SeedResult(Part):
    """What one seed of a line came to.

    Attributes:
        seed: of trainings and samples.
        figures: quality and costs by the names of the table's columns; None where a figure has no value.
        steps: optimiser steps of each training, by its name.
        report, samples: artifacts.
        n_generated: volumes that were measured; fewer than asked for where some are not finite.
    """

    seed: int
    figures: dict[str, float | None]
    steps: dict[str, int]
    report: Ref
    samples: Ref
    n_generated: int


class Line(Part):
    """A row with one sampler.

    Attributes:
        row, title: of the row.
        sampler: its name in the row.
        sampling: in words: sampler, evaluations.
        trainings: of the row, in order.
        results: by seed, of those that are done.
        failed: class of the error of each seed that has no result.
        deviations: what it has otherwise than published.
        paper: row of the paper's tables that it is beside; empty: none.
    """

    row: str
    title: str
    sampler: str
    sampling: str
    trainings: tuple[PlannedTraining, ...]
    results: tuple[SeedResult, ...]
    failed: dict[str, str]
    deviations: tuple[str, ...]
    paper: str


class BenchmarkDocument(Document):
    """A benchmark's table.

    Attributes:
        title, name: of the benchmark.
        digest: of its configuration.
        budget: in words.
        seeds, num_volumes: asked for.
        snapshot, split: what all rows are trained on and measured against.
        n_real, n_train: volumes of the split, and of its training part.
        volume_size, voxel_mm: of the volumes that are compared.
        view_edge: of the box that they show, in voxels of the store.
        features: of the distances; None while there is no result.
        floor: figures of real volumes by the names of the table's columns.
        floor_note: what they are of.
        lines: of the table.
        devices: on which rows were trained.
        versions: of the packages.
        created: UTC time, ISO 8601.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "benchmark.json"
    WHAT: ClassVar[str] = "table of a benchmark"
    REMEDY: ClassVar[str] = "Run the benchmark again: what it has made is found in the cache."

    title: str
    name: str
    digest: str
    budget: str
    seeds: tuple[int, ...]
    num_volumes: int
    snapshot: Ref
    split: Ref
    n_real: int
    n_train: int
    volume_size: int
    voxel_mm: float
    view_edge: int
    features: Features | None
    floor: dict[str, float | None]
    floor_note: str
    lines: tuple[Line, ...]
    devices: tuple[str, ...]
    versions: dict[str, Any]
    created: str
