"""FID with features of a network trained on chest CT: `python -m tests.bench.trained_features REAL GENERATED… [--references]`.

REAL is a volume store, GENERATED a sample artifact (a folder with samples.json and samples.zarr) or another volume store. Both
sides are seen alike: real volumes through the samples' view (size and box) and Hounsfield window, as the model saw them; samples
saturated to the same window. Prints one JSON object. The weights are optional, see `chest_resnet`; features are kept in `--cache`.

A distance depends on the number of volumes (2048 features, tens of volumes): compare values of equal counts only. What a value
means, `--references` says: distances of real volumes to other real volumes, blurred ones and noise. The features see texture and
local shape; averaged over the volume, they hardly depend on where organs are (a chest upside down is as near as another chest).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.fid import frechet_distance
from storage.checkpoints import load_tensors, save_tensors
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import StorageError
from storage.files import sha256_json
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig, read_as_seen
from tasks.sample.run import STORE_NAME
from tests.bench.chest_resnet import WEIGHTS_SHA256, Size, load_network, network_input

MIN_HALVED = 4
BLUR_SIGMAS = (1, 2)  # voxels of the view

Hu = NDArray[np.float32]
Features = NDArray[np.float32]
Row = dict[str, str | float | int]


@dataclass(frozen=True)
class Seen:
    """A volume as it is judged.

    Attributes:
        key: hash of all that decides what it looks like; the name of its cached features.
        read: its HU, saturated to the window, shape (S, S, S), axes (z, y, x).
    """

    key: str
    read: Callable[[], Hu]


@dataclass(frozen=True)
class Protocol:
    """How both sides are seen.

    Attributes:
        view: box and size of the volumes.
        window: Hounsfield window they are saturated to.
        voxel_mm: voxel distance of the samples; None where none are compared.
    """

    view: ViewConfig
    window: HounsfieldWindow
    voxel_mm: float | None = None


def protocol_of(samples: Path) -> Protocol:
    """How the model of a sample artifact saw its training volumes."""
    record = Samples.load(samples)
    view = ViewConfig.model_validate(record.view.model_dump())
    return Protocol(view, HounsfieldWindow(**record.intensity.model_dump()), record.spacing_mm)


def common_protocol(generated: Sequence[Path], view: ViewConfig | None) -> Protocol:
    """The one protocol of all that is compared.

    Args:
        generated: sample artifacts and volume stores.
        view: asked for by the user; needed where none of them is a sample artifact.
    Raises: ValueError: they differ, or nothing says what to see.
    """
    found = {path: protocol_of(path) for path in generated if (path / Samples.NAME).is_file()}
    if not found:
        if view is None:
            raise ValueError("None of GENERATED is a sample artifact (samples.json), so give the view: --view-size 32.")
        return Protocol(view, HounsfieldWindow())
    first, *others = found
    for path in others:
        if found[path] != found[first]:
            raise ValueError(
                f"{path} was made with another view, window or voxel distance ({found[path]}) than {first} ({found[first]}); "
                "compare them in separate calls."
            )
    if view is not None and view != found[first].view:
        raise ValueError(f"The samples at {first} are of {found[first].view!r}; leave --view-size and --edge out.")
    return found[first]


def samples(path: Path, protocol: Protocol) -> list[Seen]:
    """Volumes of a sample artifact, saturated to its window."""
    store, window = VolumeStore.open(path / STORE_NAME), protocol.window

    def reader(name: str) -> Callable[[], Hu]:
        return lambda: window.to_hu(window.to_model(store.read_level(name).hu))

    ids = Samples.load(path).volume_ids
    # ids of samples are their indices, the same in every artifact: only the digest of the voxels distinguishes them
    return [Seen(_key(_content(store, name), protocol, "sample"), reader(name)) for name in ids]


def scans(path: Path, protocol: Protocol, ids: Sequence[str] | None = None) -> list[Seen]:
    """Volumes of a store as the model saw them.

    Args:
        path: the store.
        protocol: view and window.
        ids: which volumes; all of them when None.
    Raises: ValueError: the store's voxels make another view than the samples'.
    """
    store, view, window = VolumeStore.open(path), protocol.view, protocol.window
    voxel_mm = view.voxel_mm(store.spacing_mm)
    if protocol.voxel_mm is not None and abs(voxel_mm - protocol.voxel_mm) > 1e-6:
        raise ValueError(
            f"The store {path} gives voxels of {voxel_mm} mm, the samples have {protocol.voxel_mm} mm: another size of body. "
            "Compare with a store of the spacing the model was trained on."
        )

    def reader(name: str) -> Callable[[], Hu]:
        return lambda: window.to_hu(read_as_seen(store, name, view, window).numpy())

    names = store.volume_ids() if ids is None else sorted(ids)
    return [Seen(_key(_content(store, name), protocol, "scan"), reader(name)) for name in names]


def side(path: Path, protocol: Protocol) -> list[Seen]:
    """Volumes of one GENERATED argument."""
    return samples(path, protocol) if (path / Samples.NAME).is_file() else scans(path, protocol)


def _content(store: VolumeStore, name: str) -> str:
    digest: str = store.commit_record(name).arrays["0"].sha256
    return digest


def _key(content: str, protocol: Protocol, what: str) -> str:
    seen = {"view": protocol.view.model_dump(mode="json"), "window": asdict(protocol.window)}
    return sha256_json({"content": content, "what": what, **seen})[:32]


def blurred(volume: Seen, sigma: int) -> Seen:
    """The volume smoothed by a Gaussian of `sigma` voxels."""
    return replace(volume, key=f"{volume.key}-blurred-{sigma}", read=lambda: gaussian_filter(volume.read(), sigma))


def noise(volume: Seen, window: HounsfieldWindow) -> Seen:
    """Gaussian noise of the volume's mean and standard deviation, saturated to the window; one draw per volume."""

    def read() -> Hu:
        hu = volume.read()
        drawn = np.random.default_rng(int(volume.key, 16)).normal(hu.mean(), hu.std(), hu.shape)
        return np.clip(drawn, window.lower_hu, window.upper_hu).astype(np.float32)

    return replace(volume, key=f"{volume.key}-noise", read=read)


class FeatureCache:
    """Features of volumes, computed once.

    Args:
        network: (B, 1, D, H, W) in the network's range to (B, width).
        size: the network's input along right, anterior, superior.
        folder: of this network's features at this size.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], size: Size, folder: Path) -> None:
        self._network = network
        self._size = size
        self._folder = folder
        self.computed = 0
        self.seconds = 0.0

    def of(self, volumes: Sequence[Seen]) -> Features:
        """Features of some volumes, shape (n, width), in their order."""
        return np.stack([self._one(volume) for volume in volumes])

    def _one(self, volume: Seen) -> Features:
        path = self._folder / f"{volume.key}.safetensors"
        try:
            return load_tensors(path)["features"]
        except StorageError:  # not made yet, or damaged
            pass
        began = time.monotonic()
        with torch.no_grad():
            row: Features = self._network(network_input(torch.from_numpy(volume.read()), self._size)[None])[0].numpy()
        save_tensors(path, {"features": row})
        self.computed += 1
        self.seconds += time.monotonic() - began
        sys.stderr.write(f"features of {self.computed} volumes, {self.seconds / self.computed:.1f} s per volume\n")
        return row


def row(name: str, real: Features, generated: Features) -> Row:
    distance = round(frechet_distance(real, generated), 2)
    return {"name": name, "fid": distance, "n_real": len(real), "n_generated": len(generated)}


def reference_rows(real: Sequence[Seen], window: HounsfieldWindow, cache: FeatureCache) -> list[Row]:
    """What distances mean for these scans.

    Halves are compared with the other half, as a sample is compared with scans it is not a copy of. A degraded copy against its own
    original leaves the sampling error out, so a generator does not reach that value.

    Raises: ValueError: fewer than four scans.
    """
    if len(real) < MIN_HALVED:
        raise ValueError(f"--references halves the scans and needs at least {MIN_HALVED}; there are {len(real)}.")
    features = cache.of(real)
    degraded = {f"blurred by {sigma}": cache.of([blurred(volume, sigma) for volume in real]) for sigma in BLUR_SIGMAS}
    degraded["noise"] = cache.of([noise(volume, window) for volume in real])
    even, odd = slice(0, None, 2), slice(1, None, 2)
    rows = [row("real, half against half", features[even], features[odd])]
    rows += [row(f"{name}, half against half", features[even], other[odd]) for name, other in degraded.items()]
    return rows + [row(f"{name}, against its originals", features, other) for name, other in degraded.items()]


def parse_size(text: str) -> Size:
    """`112x112x80` to voxels along right, anterior, superior."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) >= 32 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}; expected three edges of at least 32 voxels, such as 112x112x80")
    right, anterior, superior = map(int, parts)
    return right, anterior, superior


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.bench.trained_features", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add("real", type=Path, help="volume store")
    add("generated", type=Path, nargs="*", help="sample artifacts or volume stores; none: references only")
    add("--split", type=Path, help="split artifact of the real store")
    add("--role", choices=("train", "val"), help="with --split: only these real volumes")
    add("--view-size", type=int, help="view, where no sample artifact says it (samples: their own)")
    add("--edge", type=int, default=256, help="with --view-size: box in voxels of the store")
    add("--size", type=parse_size, default=(112, 112, 80), help="network input, right x anterior x superior")
    add("--limit", type=int, help="at most this many volumes of each side")
    add("--references", action="store_true", help="distances of the real volumes to each other, blurred ones and noise")
    add("--cache", type=Path, default=Path(".prdit/trained-features"), help="folder for features and joined weights")
    return made


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """The JSON object of one call.

    Raises:
        ValueError, StorageError: sides that cannot be compared or read.
        ModuleNotFoundError: no weights.
    """
    if (arguments.split is None) != (arguments.role is None):
        raise ValueError("--split and --role belong together: the artifact that names the roles, and which of them.")
    view = None
    if arguments.view_size is not None:
        view = ViewConfig(size=arguments.view_size, edge=arguments.edge)
    protocol = common_protocol(arguments.generated, view)
    ids = Split.load(arguments.split).roles[arguments.role] if arguments.role else None
    real = scans(arguments.real, protocol, ids)[: arguments.limit]
    sides = {str(path): side(path, protocol)[: arguments.limit] for path in arguments.generated}
    folder = arguments.cache / WEIGHTS_SHA256[:16] / "x".join(map(str, arguments.size))
    cache = FeatureCache(load_network(arguments.cache), arguments.size, folder)
    rows = [row(name, cache.of(real), cache.of(volumes)) for name, volumes in sides.items()]
    references = reference_rows(real, protocol.window, cache) if arguments.references else []
    return {
        "features": "Astra image encoder (ResNet-152, chest CT)",
        "weights_sha256": WEIGHTS_SHA256,
        "input": list(arguments.size),
        "view": protocol.view.model_dump(mode="json"),
        "window_hu": [protocol.window.lower_hu, protocol.window.upper_hu],
        "rows": rows,
        "references": references,
        "computed": cache.computed,
        "seconds_per_volume": round(cache.seconds / cache.computed, 2) if cache.computed else None,
    }


def main() -> None:
    commands = parser()
    try:
        result = measure(commands.parse_args())
    except (ValueError, StorageError, ModuleNotFoundError) as error:
        commands.exit(1, f"{error}\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
