"""The benchmark of what distances mean: both sides are read as an evaluation reads them."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdit_models.metrics.fid import frechet_distance
from storage.artifacts import Ref
from storage.volume_store import VolumeStore
from tests.bench import trained_features as judge
from tests.extractors import octants_extractor
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import commit_pair
from tests.unit.tasks.test_evaluate import make_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    """A store, and samples of a model of its 8³ views."""
    root = tmp_path_factory.mktemp("judge")
    store = make_store(root / "store", num_volumes=4)
    _, checkpoint = commit_pair(root, store, make_split(root / "split", store, ["v0", "v1"], ["v2", "v3"]))
    return store, make_samples(root / "samples", checkpoint, 3)


def asked(data: tuple[Ref, Ref], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "store": data[0].path,
        "samples": [data[1].path],
        "view_size": None,
        "edge": 256,
        "limit": None,
        "threads": 1,
    }
    extractor = judge.json.dumps(octants_extractor(tmp_path / "octants.pt"))
    return judge.measure(Namespace(**values | {"extractor": extractor, "scratch": tmp_path} | changes))


def test_distances_are_those_of_the_views(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    found = asked(data, tmp_path)
    rows = {entry["name"]: (entry["fid"], entry["n"]) for entry in found["rows"]}
    assert [(name, n) for name, (_, n) in rows.items()] == [
        *((f"{how}, half against half", [2, 2]) for how in ("real", "blurred", "noised")),
        *((f"{how}, against its originals", [4, 4]) for how in ("blurred", "noised")),
        (str(data[1].path), [4, 3]),
    ]
    store, samples = VolumeStore.open(data[0].path), VolumeStore.open(data[1].path / "samples.zarr")

    def octants(volumes: list[np.ndarray]) -> np.ndarray:
        seen = [np.clip(hu, -1000, 1000) / 1000 for hu in volumes]
        return np.stack([hu.reshape(2, 4, 2, 4, 2, 4).mean((1, 3, 5)).ravel() for hu in seen])

    real = octants([store.read_view(name, 8, 16) for name in store.volume_ids()])
    drawn = octants([samples.read_level(name).hu.astype(np.float32) for name in samples.volume_ids()])
    assert rows[str(data[1].path)][0] == pytest.approx(frechet_distance(real, drawn), abs=0.006)
    assert rows["real, half against half"][0] == pytest.approx(frechet_distance(real[::2], real[1::2]), abs=0.006)
    assert (found["computed"], found["num_volumes"]) == (15, 4)
    assert asked(data, tmp_path)["computed"] == 0


def test_what_cannot_be_measured_is_refused(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Without SAMPLES nothing says what is seen of the volumes"):
        asked(data, tmp_path, samples=[])
    with pytest.raises(ValueError, match="Halves of 3 volumes are too small"):
        asked(data, tmp_path, limit=3)
