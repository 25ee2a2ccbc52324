"""What distances in an extractor's features mean: `python -m tests.bench.trained_features STORE [SAMPLES…] --view-size 32`.

STORE is a volume store, SAMPLES are artifacts of stage sample (folders with samples.json). Both sides are seen as an evaluation
sees them: real volumes through the samples' view and Hounsfield window, samples saturated to it. Prints one JSON object: FID of
real, blurred and noised volumes against real ones, and of each SAMPLES; seconds and memory per volume. Features are kept beside
the volumes, so a second call reads them.

A distance depends on the number of volumes (2048 features, tens of volumes): compare values of equal counts only. "half against
half" compares volumes with others, as a sample is compared with scans it is no copy of; "against its originals" leaves that
sampling error out, so a generator does not reach it.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.order import DEGRADATIONS
from storage.documents.samples import Samples
from storage.volume_store import VolumeStore
from tasks.evaluate.cache import features_of_samples, features_of_store
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import extractor_of, volume_features
from tasks.evaluate.sides import Volumes
from tasks.model.view import ViewConfig
from tasks.run.fanout import Pool

MIN_HALVED = 4
Features = NDArray[np.float32]


class Measured:
    """Features of volumes, and what they cost.

    Args:
        config: names the extractor.
        scratch: where features are kept that cannot be beside their volumes.
    """

    def __init__(self, config: EvaluateConfig, scratch: Path) -> None:
        self._config, self._scratch = config.for_this_installation(), scratch
        self.extractor = extractor_of(self._config)
        self.computed, self.seconds = 0, 0.0

    def of(self, volumes: Volumes, names: Sequence[str], folder: Path) -> Features:
        """Features of some volumes, shape (n, width), in their order."""
        counts: list[int] = []
        began = time.process_time()
        with Pool(one_thread=False) as pool:
            rows = volume_features(volumes, names, self._config, folder, pool, counts.append)
        if computed := sum(counts[1:]):
            self.computed += computed
            self.seconds += time.process_time() - began
            sys.stderr.write(f"{self.computed} volumes, {self.seconds / self.computed:.1f} s of CPU per volume\n")
        return rows

    def real(self, volumes: Volumes, names: Sequence[str]) -> Features:
        """Of a store's volumes."""
        return self.of(volumes, names, features_of_store(volumes.store.path, self._scratch))

    def samples(self, path: Path, window: HounsfieldWindow) -> Features:
        """Of the volumes of a sample artifact."""
        record = Samples.load(path)
        volumes = Volumes(VolumeStore.open((path / record.store).resolve()), window, None)
        return self.of(volumes, record.volume_ids, features_of_samples(path, self._scratch))


def row(name: str, real: Features, other: Features) -> dict[str, Any]:
    """One distance, with its numbers of volumes."""
    return {"name": name, "fid": round(frechet_distance(real, other), 2), "n": [len(real), len(other)]}


def references(measured: Measured, volumes: Volumes, names: Sequence[str]) -> list[dict[str, Any]]:
    """Distances of real volumes, as they are and degraded. Raises: ValueError: fewer than four."""
    if len(names) < MIN_HALVED:
        raise ValueError(f"Halves of {len(names)} volumes are too small; give a store with at least {MIN_HALVED}.")
    features = {how: measured.real(replace(volumes, how=how), names) for how in DEGRADATIONS}
    even, odd, real = slice(0, None, 2), slice(1, None, 2), features["real"]
    rows = [row(f"{how}, half against half", real[even], other[odd]) for how, other in features.items()]
    return rows + [row(f"{how}, against its originals", real, features[how]) for how in DEGRADATIONS[1:]]


def seen_by(samples: Sequence[Path], view: ViewConfig | None) -> tuple[ViewConfig, HounsfieldWindow]:
    """How the models of all sample artifacts saw volumes. Raises: ValueError: they differ, or nothing says it."""
    found = []
    for path in samples:
        record = Samples.load(path)
        found.append(
            (ViewConfig.model_validate(record.view.model_dump()), HounsfieldWindow(**record.intensity.model_dump()))
        )
    if not found:
        if view is None:
            raise ValueError("Without SAMPLES nothing says what is seen of the volumes: give --view-size.")
        return view, HounsfieldWindow()
    if differing := [str(path) for path, seen in zip(samples, found, strict=True) if seen != found[0]]:
        raise ValueError(
            f"{differing[0]} is of another view or window than {samples[0]}; compare them in separate calls."
        )
    return found[0]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON object of one call. Raises: ValueError, StorageError: what is compared cannot be read, or does not fit."""
    view = ViewConfig(size=arguments.view_size, edge=arguments.edge) if arguments.view_size else None
    view, window = seen_by(arguments.samples, view)
    values = {"extractor": json.loads(arguments.extractor), "num_threads": arguments.threads, "device": "cpu"}
    measured = Measured(EvaluateConfig.model_validate(values), arguments.scratch)
    volumes = Volumes(VolumeStore.open(arguments.store.resolve()), window, view)
    names = volumes.store.volume_ids()[: arguments.limit]
    rows = references(measured, volumes, names)
    real = measured.real(volumes, names)
    rows += [row(str(path), real, measured.samples(path, window)) for path in arguments.samples]
    extractor = measured.extractor
    return {
        "extractor": {"name": extractor.name, "digest": extractor.digest, "input_size": extractor.input_size},
        "view": view.model_dump(mode="json"),
        "num_volumes": len(names),
        "rows": rows,
        "computed": measured.computed,
        "cpu_s_per_volume": round(measured.seconds / measured.computed, 2) if measured.computed else None,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m tests.bench.trained_features", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add("store", type=Path, help="volume store")
    add("samples", type=Path, nargs="*", help="sample artifacts")
    add("--view-size", type=int, help="view, where no sample artifact says it")
    add("--edge", type=int, default=256, help="with --view-size: box in voxels of the store")
    add(
        "--extractor",
        default='"auto"',
        help='JSON of evaluate.extractor, such as \'{"name": "astra", "size": [40, 56, 56]}\'',
    )
    add("--threads", type=int, default=1)
    add("--limit", type=int, help="at most this many real volumes")
    add(
        "--scratch",
        type=Path,
        default=Path(".prdit/trained-features"),
        help="where nothing can be kept beside the volumes",
    )
    sys.stdout.write(json.dumps(measure(made.parse_args())) + "\n")


if __name__ == "__main__":
    main()
