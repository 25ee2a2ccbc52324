"""Evaluation: samples, snapshot and split -> figures, `report.html`, `figures/` and the cards of model and data."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prdit_models.metrics.distances import MIN_VOLUMES
from prdit_models.metrics.metric import Setting, Side
from prdit_models.metrics.order import DEGRADATIONS, Degradation
from storage.artifacts import Ref
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import InputError, as_input_error
from storage.files import write_text_atomic
from storage.snapshots import open_snapshot
from tasks.evaluate.cache import features_of_samples, features_of_store
from tasks.evaluate.cards import dataset_card, model_card
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import extractor_of, forget_extractor, volume_features
from tasks.evaluate.figures import Figures, compared, figures_of, report_of
from tasks.evaluate.report import Subject, draw_pictures, render
from tasks.evaluate.shown import show_volumes
from tasks.evaluate.sides import Done, Volumes, measured
from tasks.evaluate.sources import Sources
from tasks.model.compute import pick_device
from tasks.model.data import check_split
from tasks.run.fanout import Pool
from tasks.run.progress import Advance
from tasks.run.runners import Runner

__all__ = ["DATASET_CARD", "MODEL_CARD", "PAGE", "RECIPE", "check", "evaluate"]

RECIPE = 5
PAGE, MODEL_CARD, DATASET_CARD = "report.html", "model-card.md", "dataset-card.md"
logger = logging.getLogger("prdit.evaluate")


def check(samples: Ref, snapshot: Ref, split: Ref) -> None:
    """Refuse what cannot be compared, before any work.

    Raises:
        InputError: fewer than two volumes on a side, samples of one measurement, a split of volumes that the store does not have,
            or another kind of artifact.
        StorageError: an artifact is missing.
    """
    for ref, kind in ((samples, "samples"), (snapshot, "snapshot"), (split, "split")):
        if ref.kind != kind:
            raise InputError(f"evaluate expected a reference of kind {kind!r}, got {ref.kind!r} at {ref.uri}.")
    drawn = Samples.load(samples.path)
    if drawn.guided is not None:
        raise InputError(
            f"The samples at {samples.uri} were drawn towards one measurement: they show one patient, and a distance to a set of "
            "patients says nothing of them. reconstruction.json beside them has their figures; evaluate samples of stage sample."
        )
    num_generated = len(drawn.volume_ids)
    if num_generated < MIN_VOLUMES:
        raise InputError(
            f"The samples at {samples.uri} hold {num_generated} volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Sample more (sample.num_volumes)."
        )
    roles_of = Split.load(split.path)
    real = roles_of.volume_ids
    if len(real) < MIN_VOLUMES:
        raise InputError(
            f"The split at {split.uri} names {len(real)} real volume; a distance between sets needs at least "
            f"{MIN_VOLUMES}. Ingest more scans."
        )
    check_split(open_snapshot(snapshot)[1], roles_of, split)


def evaluate(
    samples: Ref,
    snapshot: Ref,
    split: Ref,
    config: EvaluateConfig,
    directory: Path,
    progress: Advance,
    *,
    repeat_command: str | None = None,
    runner: Runner | None = None,
) -> None:
    """Measure samples against real volumes and write the report.

    Args:
        samples: of stage sample.
        snapshot: of the volume store with the real volumes.
        split: roles of them.
        config: how to measure.
        directory: of the artifact.
        progress: called with (volumes read and measured and sets compared, total).
        repeat_command: the command that repeats the run, for the report.
        runner: where features are computed; default: in this process.
    Raises:
        InputError: fewer than two volumes on a side, or unusable feature weights.
        StorageError: an artifact is missing or damaged.
        RunnerError: a worker is missing, or was lost.
    """
    check(samples, snapshot, split)
    config = config.for_this_installation()
    device = pick_device(config)
    extractor = extractor_of(config)
    sources = Sources.open(samples, snapshot, split)
    info = sources.info
    setting = Setting(
        window=info.window,
        voxel_mm=info.voxel_mm,
        size=info.view.size,
        trained_on_split=sources.trained_on_split,
        features=extractor.digest,
        random_features=extractor.random,
        num_subsamples=config.num_subsamples,
        seed=config.seed,
        settings=config.metric_settings(),
        device=str(device),
    )
    kept = features_of_store(sources.real.store.path, directory), features_of_samples(samples.path, directory)
    counter = Counter(progress)
    try:
        with Pool(runner, one_thread=False) as pool:
            real, generated, worse = _measured(sources, config, setting, kept, pool, counter)
    finally:
        forget_extractor()
    with as_input_error():
        comparisons = compared(real, generated, setting, counter.done)
        references = _references(real, worse, sources.halved, setting, counter.done)
    metrics = report_of(comparisons, references, extractor, config, sources.drawn, info, sources.roles)
    metrics.save(directory)
    for sentence in metrics.warnings:
        logger.warning("%s", sentence)
    fields = config.key_fields()
    subject = Subject(samples, snapshot, split, info, sources.drawn, fields, RECIPE, repeat_command)
    shown = show_volumes(metrics, sources, config.num_shown, directory / "figures")
    pictures = draw_pictures(subject, metrics, directory / "figures")
    write_text_atomic(directory / PAGE, render(subject, metrics, shown, pictures))
    write_text_atomic(directory / MODEL_CARD, model_card(subject, metrics))
    write_text_atomic(directory / DATASET_CARD, dataset_card(subject))


class Counter:
    """Progress of an evaluation: volumes that are read for their features and for the metrics, then comparisons of sets.

    Args:
        progress: called with (done, total).
    """

    def __init__(self, progress: Advance) -> None:
        self._progress = progress
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        """So much is to be done."""
        self._total += count

    def done(self, count: int = 1) -> None:
        """So much more is done."""
        self._done += count
        self._progress(self._done, self._total)


def _measured(
    sources: Sources, config: EvaluateConfig, setting: Setting, kept: tuple[Path, Path], pool: Pool, counter: Counter
) -> tuple[Side, Side, dict[Degradation, Side]]:
    """Real and generated side, and volumes of the second half of the real ones degraded for the order test.

    Args:
        kept: folders of the features of real and of generated volumes.
        counter: told what there is to do, the comparisons of the references included, and what is done.
    """
    real_ids, generated_ids = sources.roles.volume_ids, sources.drawn.volume_ids
    tested = sources.halved[1][: config.num_references]
    hows = DEGRADATIONS[1:] if min(len(sources.halved[0]), len(tested)) >= MIN_VOLUMES else ()
    # each is read for its features, then for the metrics on HU
    counter.expect(2 * (len(real_ids) + len(generated_ids) + len(hows) * len(tested)))
    counter.expect(len(setting.settings) * (1 + _has_floor(sources.halved) + (len(hows) + 1) * bool(hows)))

    def side(volumes: Volumes, ids: Sequence[str], folder: Path, roles: tuple[str, ...] = ()) -> Side:
        features = volume_features(volumes, ids, config, folder, pool, counter.done)
        return measured(volumes, ids, features, roles, setting, pool, counter.done)

    train_ids = set(sources.roles.role("train"))
    real = side(sources.real, real_ids, kept[0], tuple("train" if name in train_ids else "val" for name in real_ids))
    generated = side(sources.generated, generated_ids, kept[1])
    return real, generated, {how: side(replace(sources.real, how=how), tested, kept[0]) for how in hows}


def _has_floor(halved: tuple[Sequence[str], Sequence[str]]) -> bool:
    return min(map(len, halved)) >= MIN_VOLUMES


def _references(
    real: Side,
    worse: dict[Degradation, Side],
    halved: tuple[Sequence[str], Sequence[str]],
    setting: Setting,
    done: Done,
) -> dict[str, Figures]:
    """Figures of one half of the real volumes against the other half (`floor`), and of fewer as they are and degraded."""
    if not _has_floor(halved):
        return {}
    places = {name: place for place, name in enumerate(real.ids)}
    first, second = (real.part([places[name] for name in half]) for half in halved)
    second = replace(second, roles=())
    quick = replace(setting, reference=True, trained_on_split=False, num_subsamples=0)

    def figures(one: Side, other: Side) -> Figures:
        return figures_of(compared(one, other, quick, done))

    found: dict[str, Figures] = {"floor": figures(first, second)}
    if worse:
        most = max(len(side.ids) for side in worse.values())
        one, other = (half.part(range(min(most, len(half.ids)))) for half in (first, second))
        found["real"] = figures(one, other)
        found |= {how: figures(one, side) for how, side in worse.items()}
    return found
