"""One run of a benchmark: data, then every row with every seed and sampler, each stage from the cache where it is there."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flows.benchmark_config import BenchmarkConfig, Entry
from flows.config import PipelineConfig
from flows.parameters import columns, public_yaml, run_parameters
from flows.pipeline import check_sampling
from flows.record import RunRecord, new_run_directory
from flows.stages import Inputs, Row, check_trainings, needed, real_volumes, rows, training_row, walk
from storage.artifacts import Ref
from storage.documents.benchmark import BenchmarkDocument, Line, PlannedTraining, SeedResult
from storage.documents.report import Report
from storage.documents.split import Split
from storage.errors import ConfigError, InputError, UserError
from storage.files import sha256_json, write_text_atomic
from storage.phantom.series import write_demo_data
from storage.tracking import Tracker
from tasks.benchmark.columns import floor_note, floor_of
from tasks.benchmark.planned import deviations_of, planned_training
from tasks.benchmark.results import seed_result
from tasks.evaluate.lineage import package_versions
from tasks.run.private import without_paths
from tasks.run.stage import RunContext, StageOutcome
from tasks.run.task import run_as_task

FOLDER, PHANTOMS = "benchmark", "phantoms"  # in the working folder
logger = logging.getLogger("prdit.benchmark")


@dataclass(frozen=True)
class Size:
    """What is known of a row before it runs.

    Attributes:
        trainings: their sizes.
        deviations: what it has otherwise than published.
        sampling: sampler and evaluations in words, by the sampler's name.
        evaluations: of the network per volume, by the sampler's name.
    """

    trainings: tuple[PlannedTraining, ...]
    deviations: tuple[str, ...]
    sampling: Mapping[str, str]
    evaluations: Mapping[str, int]


def check(config: BenchmarkConfig, found: Sequence[Entry], *, counted: bool = True) -> dict[str, Size]:
    """Refuse what can be refused before data is read; sizes of the rows by name.

    Args:
        config: the benchmark.
        found: its entries.
        counted: whether arithmetic and memory are counted, which takes seconds per row.
    Raises: ConfigError, InputError, RunnerError, LauncherError: the row is named.
    """
    config.runner.check()
    sizes: dict[str, Size] = {}
    for entry in found:
        if entry.name in sizes:
            continue
        try:
            infos = entry.config.checkpoints()
            check_trainings(entry.config, needed(rows(entry.config), "evaluate", {}))
            for each in entry.configs.values():
                check_sampling(each)
            trainings = entry.config.trainings
            planned = tuple(
                planned_training(name, training, infos[name], counted=counted) for name, training in trainings.items()
            )
        except UserError as error:
            raise _named(entry.name, error) from error
        last = infos[list(trainings)[-1]]
        evaluations = {
            name: last.of_family.evaluations(last.process, _request(each)) for name, each in entry.configs.items()
        }
        sizes[entry.name] = Size(
            planned,
            (*deviations_of(trainings, infos), *entry.row.deviations),
            {name: _words(each, evaluations[name]) for name, each in entry.configs.items()},
            evaluations,
        )
    return sizes


def _request(config: PipelineConfig) -> Any:
    from prdit_models.families.family import Request

    return Request(config.sample.as_sampler(), config.sample.output)


def _words(config: PipelineConfig, evaluations: int) -> str:
    steps = f"{evaluations} evaluation{'s' * (evaluations != 1)}"
    return steps if evaluations == 1 else f"{config.sample.sampler}, {steps}"


def _named(row: str, error: UserError) -> UserError:
    """The error with the row's name in front; its class where that takes a message, else InputError."""
    message = f"row {row!r}: {error}"
    try:
        return type(error)(message)
    except TypeError:
        return InputError(message)


def check_data(found: Sequence[Entry], split: Ref) -> None:
    """Refuse data that some row cannot be trained on, before any row is.

    Raises: InputError: fewer training volumes than a training computes in one step, or none that is held out.
    """
    roles = Split.load(split.path)
    count, held_out = len(roles.role("train")), len(roles.role("val"))
    if not count or not held_out:
        raise InputError(
            f"The split has {count} volumes to train on and {held_out} held out; a benchmark needs both. Ingest more patients."
        )
    for entry in found:
        for name, training in entry.config.trainings.items():
            batch = training.batch_size * training.accumulation
            if batch > count:
                raise InputError(
                    f"row {entry.name!r}: recipe.{name} takes {batch} volumes per step, and the split has {count} to train on. "
                    "Ingest more scans, or lower its batch_size."
                )


@dataclass
class BenchmarkRun:
    """A benchmark at work.

    Attributes:
        config, entries, sizes: what runs.
        tracker, parent: of MLflow's parent run.
        tags: of every run.
        results: by row, sampler and seed.
        failed: class of the error by row, sampler and seed.
    """

    config: BenchmarkConfig
    entries: Sequence[Entry]
    sizes: Mapping[str, Size]
    tracker: Tracker
    parent: str
    tags: Mapping[str, str]
    results: dict[tuple[str, str, int], SeedResult] = field(default_factory=dict)
    failed: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _checkpoints: list[Ref] = field(default_factory=list)

    @property
    def workdir(self) -> Path:
        """The working folder."""
        return Path(self.config.workdir).resolve()

    # ---- data ------------------------------------------------------------------------------------------------------------

    def data(self) -> tuple[dict[str, Ref], dict[str, StageOutcome]]:
        """Ingest and split once for all rows: references by stage name, and the outcomes."""
        context = self._context(self.parent, self.entries[0].config)
        outcomes: dict[str, StageOutcome] = {}
        for config in self._sources():
            with without_paths(config.source):
                for name, outcome in walk(rows(config), "ingest", {}, partial(self._run, context, config, "data")):
                    outcomes[name] = outcome
        config = self.entries[0].config
        given = {"ingest": outcomes["ingest"].ref if outcomes else real_volumes(config)}
        for name, outcome in walk(rows(config), "split", given, partial(self._run, context, config, "data")):
            outcomes[name] = outcome
        return given | {"split": outcomes["split"].ref}, outcomes

    def _sources(self) -> list[PipelineConfig]:
        """Configurations whose ingest brings in the phantoms, then the scans of the source."""
        places = []
        if self.config.phantoms:
            places.append(str(phantoms(self.workdir, self.config.phantoms)))
        if self.config.source:
            places.append(self.config.source)
        first = self.entries[0].config
        if self.config.phantoms and not self.config.source:  # no secret, and the same split on every machine
            key_file = self.workdir / PHANTOMS / "patient-key"
            write_text_atomic(key_file, "00" * 32 + "\n")
            ingest = first.ingest.model_copy(update={"patient_key_file": str(key_file)})
            first = first.model_copy(update={"ingest": ingest})
        return [first.model_copy(update={"source": place}) for place in places]

    # ---- rows ------------------------------------------------------------------------------------------------------------

    def row(self, entry: Entry, given: Mapping[str, Ref], made: Mapping[str, StageOutcome]) -> None:
        """Train a row with one seed, then sample and evaluate it with each of its samplers.

        An error that a user can do something about is noted with the row, and the others go on.
        """
        trained: dict[str, StageOutcome] = {}
        for sampler, config in entry.configs.items():
            place = (entry.name, sampler, entry.seed)
            try:
                outcomes = self._line(entry, sampler, config, given, {**made, **trained})
            except UserError as error:
                logger.error("%s, %s: %s", entry, sampler, error)
                self.failed[place] = type(error).__name__
                continue
            stages = {name: training_row(name) for name in config.trainings}
            trained |= {stage: outcomes[stage] for stage in stages.values()}
            checkpoints = {name: trained[stage].ref for name, stage in stages.items()}
            self._checkpoints += checkpoints.values()
            self.results[place] = seed_result(
                entry.seed,
                self.sizes[entry.name].trainings,
                checkpoints,
                outcomes["sample"].ref,
                outcomes["evaluate"].ref,
            )
            self._log_result(place)

    def _line(
        self,
        entry: Entry,
        sampler: str,
        config: PipelineConfig,
        given: Mapping[str, Ref],
        made: Mapping[str, StageOutcome],
    ) -> dict[str, StageOutcome]:
        """One MLflow run below the benchmark's, with the stages of one row, seed and sampler; the stages' outcomes by name."""
        directory = new_run_directory(self.workdir, config)
        name = f"{entry.name} {sampler} {entry.seed}"
        tags = {
            **self.tags,
            **config.tags(),
            "prdit.row": entry.name,
            "prdit.sampler": sampler,
            "prdit.seed": str(entry.seed),
        }
        parameters = run_parameters(config)
        run_id = self.tracker.start_run(
            name, parent=self.parent, source="benchmark/compare", tags=tags, params=parameters, note=entry.row.title
        )
        self.tracker.log_text(run_id, public_yaml(config), "config.yaml")
        context = self._context(run_id, config).model_copy(
            update={
                "tags": tags,
                "parameters": parameters,
                "repeat_command": f"prdit run --config runs/{directory.name}/config.yaml",
            }
        )
        record, outcomes = RunRecord(directory, self.tracker, run_id), dict(made)
        known = {**given, **{stage: outcome.ref for stage, outcome in made.items() if stage.startswith("train-")}}
        try:
            run = partial(self._run, context, config, f"{entry.name}-{entry.seed}-{sampler}")
            for stage, outcome in walk(rows(config), "evaluate", known, run):
                outcomes[stage] = outcome
        except BaseException as error:
            record.close(outcomes, tags, error)
            raise
        record.close(outcomes, tags, None)
        return outcomes

    def _run(self, context: RunContext, config: PipelineConfig, label: str, row: Row, inputs: Inputs) -> StageOutcome:
        work = partial(row.run, inputs, context)
        return run_as_task(f"{label}-{row.name}", work, source=config.source)

    def _context(self, run_id: str, config: PipelineConfig) -> RunContext:
        return RunContext(
            workdir=self.workdir,
            tracking_uri=self.tracker.uri,
            experiment=self.config.experiment,
            parent_run_id=run_id,
            tags=dict(self.tags),
            columns=columns(config),
        )

    def _log_result(self, place: tuple[str, str, int]) -> None:
        """The figures of a row, sampler and seed on the parent run; the seed is the step."""
        row, sampler, seed = place
        figures = {
            f"{row}/{sampler}/{name}": value for name, value in self.results[place].figures.items() if value is not None
        }
        self.tracker.log_points(self.parent, [{"step": seed} | figures])

    # ---- the table -------------------------------------------------------------------------------------------------------

    def document(self, given: Mapping[str, Ref]) -> BenchmarkDocument:
        """The table as it stands."""
        roles = Split.load(given["split"].path)
        first = next((Report.load(result.report.path) for result in self.results.values()), None)
        view = self.config.view
        return BenchmarkDocument(
            title=self.config.title,
            name=self.config.base or "custom",
            digest=self.config.digest(),
            budget=str(self.config.budget),
            seeds=self.config.seeds,
            num_volumes=self.config.num_volumes,
            snapshot=given["ingest"],
            split=given["split"],
            n_real=len(roles.volume_ids),
            n_train=len(roles.role("train")),
            volume_size=view.size,
            voxel_mm=view.voxel_mm(self.config.ingest.spacing_mm),
            view_edge=view.edge,
            features=first.features if first else None,
            floor=floor_of(first) if first else {},
            floor_note=floor_note(first) if first else "",
            lines=tuple(self._lines()),
            devices=devices_of(self._checkpoints),
            versions=package_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _lines(self) -> list[Line]:
        lines = []
        for name, row in self.config.rows.items():
            size = self.sizes[name]
            for sampler in row.samplers:
                of_seed = {seed: (name, sampler, seed) for seed in self.config.seeds}
                lines.append(
                    Line(
                        row=name,
                        title=row.title,
                        sampler=sampler,
                        sampling=size.sampling[sampler],
                        trainings=size.trainings,
                        results=tuple(self.results[place] for place in of_seed.values() if place in self.results),
                        failed={str(seed): self.failed[p] for seed, p in of_seed.items() if p in self.failed},
                        deviations=size.deviations,
                        paper=row.paper,
                    )
                )
        return lines

    def folder(self, given: Mapping[str, Ref]) -> Path:
        """Where the table is written: the same for the same benchmark on the same snapshot."""
        key = sha256_json({"benchmark": self.config.digest(), "snapshot": given["ingest"].digest})
        return self.workdir / FOLDER / key[:16]


def devices_of(checkpoints: Sequence[Ref]) -> tuple[str, ...]:
    """On what trainings ran, in words, each once."""
    from storage.artifacts import load_provenance

    costs = [load_provenance(ref).cost for ref in checkpoints]
    words = [
        f"{cost.device}, {cost.threads} threads" if cost.device == "cpu" else f"{cost.device}, {cost.ranks} rank(s)"
        for cost in costs
        if cost
    ]
    return tuple(dict.fromkeys(words))


def phantoms(workdir: Path, count: int) -> Path:
    """Folder with the DICOM series of synthetic patients, written once.

    Raises: ConfigError: another number of them is there.
    """
    folder = workdir / PHANTOMS / str(count)
    done = folder.with_name(f"{count}.txt")
    if not done.is_file():
        write_demo_data(folder, num_patients=count, small=True)
        write_text_atomic(done, f"{count} synthetic patients\n")
    if not folder.is_dir():
        raise ConfigError(f"{folder} was removed, and {done} says that it was written. Remove {done}, too.")
    return folder
