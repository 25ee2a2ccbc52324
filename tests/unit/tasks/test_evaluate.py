"""Evaluation: refusals, figures against their closed forms, feature cache and intervals."""

import html
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.extractors import random as random_module
from prdit_models.metrics.extractors.medicalnet import MedicalNet
from prdit_models.metrics.extractors.random import random_medicalnet
from prdit_models.metrics.histogram import (
    BANDS,
    bin_edges,
    bins_of,
    histogram_distance,
    hu_figures,
    mean_hu,
    row_of,
    std_hu,
)
from prdit_models.metrics.metric import METRICS
from storage.artifacts import Ref, commit_artifact
from storage.documents.samples import Guided, Samples
from storage.errors import InputError
from storage.files import read_json
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.run import check, evaluate
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import list_volumes, make_split, make_store
from tests.unit.tasks.checkpoints import commit_pair


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    """Draw the random network's 46 million weights once a seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_module, "random_medicalnet", lru_cache(random_medicalnet))
        yield


def make_samples(directory: Path, checkpoint: Ref, num_volumes: int) -> Ref:
    config = SampleConfig(num_volumes=num_volumes, num_steps=2, num_threads=1, device="cpu", nifti=False)
    sample(checkpoint, config, directory, silent)
    inputs = {"checkpoint": checkpoint}
    return commit_artifact(directory, "samples", stage="sample", recipe=1, inputs=inputs, config=config.key_fields())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ref]:
    root = tmp_path_factory.mktemp("evaluate")
    store = make_store(root / "store", num_volumes=5)
    split = make_split(root / "split", store, ["v0", "v1", "v2"], ["v3", "v4"])
    local, global_ = commit_pair(root, store, split)
    samples = make_samples(root / "samples", global_, 3)
    return {"snapshot": store, "split": split, "local": local, "global": global_, "samples": samples}


def config(**changes: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {
            "num_threads": 1,
            "device": "cpu",
            "num_subsamples": 5,
            "extractor": "random",
            "metrics": {"wasserstein": None},
        }
        | changes
    )


def test_fewer_than_two_volumes_on_either_side_are_refused(data: dict[str, Ref], tmp_path: Path) -> None:
    one = make_samples(tmp_path / "one", data["global"], 1)
    with pytest.raises(ValueError, match=r"hold 1 volume.*sample\.num_volumes"):
        check(one, data["snapshot"], data["split"])
    small = make_split(tmp_path / "split", data["snapshot"], ["v0"], [])
    with pytest.raises(ValueError, match="names 1 real volume"):
        check(data["samples"], data["snapshot"], small)
    other = make_split(tmp_path / "other", data["snapshot"], ["v0", "gone"], ["v1"])
    with pytest.raises(ValueError, match=r"does not list \(first: gone\)"):
        evaluate(data["samples"], data["snapshot"], other, config(), tmp_path / "out", silent)
    with pytest.raises(ValueError, match="expected a reference of kind 'samples', got 'split'"):
        check(data["split"], data["snapshot"], data["split"])
    assert not (tmp_path / "out").exists()


def test_samples_of_one_measurement_are_refused(data: dict[str, Ref], tmp_path: Path) -> None:
    guided = Guided(measurement="sha256:" + "4" * 64, guide="projection", strength=1.0, settings={})
    Samples.load(data["samples"].path).model_copy(update={"guided": guided}).save(tmp_path)
    of_one_patient = data["samples"].model_copy(update={"uri": str(tmp_path)})
    with pytest.raises(InputError, match=r"drawn towards one measurement.*reconstruction\.json"):
        check(of_one_patient, data["snapshot"], data["split"])


def test_metrics_equal_the_plain_way_to_compute_them(data: dict[str, Ref], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        data["samples"],
        data["snapshot"],
        data["split"],
        config(),
        tmp_path,
        lambda done, total: seen.append((done, total)),
    )
    # features, then Hounsfield units, of 5 + 3 volumes and of 2 + 2 degraded ones; 9 metrics of 5 pairs of sets
    assert seen[-1] == (24 + 45, 24 + 45)
    network = random_medicalnet(0)
    store, generated = VolumeStore.open(data["snapshot"].path), VolumeStore.open(data["samples"].path / "samples.zarr")

    def by_hand(volumes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        hu = np.stack([volume.astype(np.float32) for volume in volumes])
        x = torch.from_numpy(np.clip(hu / 1000.0, -1.0, 1.0))  # window [-1000, 1000]
        with torch.no_grad():
            return network(x.unsqueeze(1)).numpy().astype(np.float64), np.clip(hu, -1000, 1000)

    real, real_hu = by_hand([store.read_view(f"v{k}", 8, 16) for k in range(5)])
    fake, fake_hu = by_hand([generated.read_level(name).hu for name in generated.volume_ids()])
    metrics = read_json(tmp_path / "metrics.json")
    figures = metrics["figures"]

    def fid(a: np.ndarray, b: np.ndarray) -> float:
        # tr √(S₁S₂) through the eigenvalues of S₁S₂'s small equivalent, not through the code under test
        a0, b0 = (a - a.mean(0)) / np.sqrt(len(a) - 1), (b - b.mean(0)) / np.sqrt(len(b) - 1)
        roots = np.sqrt(np.clip(scipy.linalg.eigvalsh((a0 @ b0.T) @ (b0 @ a0.T)), 0, None)).sum()
        return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (a0**2).sum() + (b0**2).sum() - 2 * roots)

    def mmd(a: np.ndarray, b: np.ndarray) -> float:
        squared = [((u[:, None] - v[None]) ** 2).sum(-1) for u, v in ((a, a), (b, b), (a, b))]
        gamma = 1 / (2 * np.sort(squared[0].ravel())[(squared[0].size - 1) // 2])
        k = [np.exp(-gamma * s).mean() for s in squared]
        return float(np.sqrt(max(k[0] + k[1] - 2 * k[2], 0)))

    assert figures["fid_random_features"]["value"] == pytest.approx(fid(real, fake), rel=1e-4)
    assert figures["fid_val_random_features"]["value"] == pytest.approx(fid(real[3:], fake), rel=1e-4)
    assert figures["mmd_random_features"]["value"] == pytest.approx(mmd(real, fake), rel=1e-4)
    assert (
        figures["fid_random_features"]["n_real"],
        figures["fid_val_random_features"]["n_real"],
        figures["fid_random_features"]["n_generated"],
    ) == (5, 2, 3)
    assert figures["mmd_val_random_features"]["value"] is None  # the published median of two volumes is 0
    assert "bandwidth" in figures["mmd_val_random_features"]["note"]
    assert figures["hu_std_real"]["value"] == pytest.approx(real_hu.std(), rel=1e-5)
    assert figures["hu_std_ratio"]["value"] == pytest.approx(fake_hu.std() / real_hu.std(), rel=1e-5)
    assert figures["fid_random_features"]["interval"] is None  # three generated volumes
    assert "too few" in figures["fid_random_features"]["note"]
    assert metrics["features"] | {"digest": "", "statement": ""} == {
        **{"extractor": "random", "title": "random features (3D ResNet-50 with seeded random weights)", "random": True},
        **{"digest": "", "statement": "", "width": 2048, "input_size": None},
    }
    assert "compare runs with each other only, not with papers" in metrics["features"]["statement"]
    assert figures["fid_random_features"]["features"] == metrics["features"]["digest"]


def test_the_floor_is_of_all_real_volumes_and_the_order_test_of_some(data: dict[str, Ref], tmp_path: Path) -> None:
    names = {"metrics": {name: None for name in METRICS.names() if name != "fid"}}
    evaluate(data["samples"], data["snapshot"], data["split"], config(num_references=2, **names), tmp_path, silent)
    references = read_json(tmp_path / "metrics.json")["references"]
    sizes = {
        how: (f["fid_random_features"]["n_real"], f["fid_random_features"]["n_generated"])
        for how, f in references.items()
    }
    assert sizes == {"floor": (3, 2), "real": (2, 2), "blurred": (2, 2), "noised": (2, 2)}
    values = {how: f["fid_random_features"]["value"] for how, f in references.items()}
    assert values["floor"] != values["real"] < values["blurred"] < values["noised"]
    without = tmp_path / "without"
    evaluate(data["samples"], data["snapshot"], data["split"], config(num_references=0, **names), without, silent)
    found = read_json(without / "metrics.json")
    assert {how: f["fid_random_features"]["value"] for how, f in found["references"].items()} == {
        "floor": values["floor"]
    }
    assert found["blind"] == {}


def test_a_view_without_chests_leaves_anatomy_out_and_says_why(data: dict[str, Ref], tmp_path: Path) -> None:
    """The store's volumes are blobs of 128 mm: not chests, so generated ones are not measured as chests."""
    evaluate(data["samples"], data["snapshot"], data["split"], config(), tmp_path, silent)
    metrics = read_json(tmp_path / "metrics.json")
    reason = metrics["details"]["anatomy"]["left_out"]
    assert reason.startswith(
        "Anatomy figures are left out: 0 of 5 real volumes look like a chest in this view (most often outside"
    )
    assert not [name for name in metrics["figures"] if name.startswith("anatomy")]
    assert reason in html.unescape((tmp_path / "report.html").read_text())
    store, generated = VolumeStore.open(data["snapshot"].path), VolumeStore.open(data["samples"].path / "samples.zarr")
    training = {f"v{k}": np.clip(store.read_view(f"v{k}", 8, 16), -1000, 1000) for k in range(3)}
    for name, found in metrics["details"]["memorisation"]["nearest_training"].items():
        volume = np.clip(generated.read_level(name).hu.astype(np.float32), -1000, 1000)
        unmoved = min(float(np.sqrt(np.square(volume - other).mean())) for other in training.values())
        assert 0 < found["distance_hu"] <= unmoved * (1 + 1e-6)
    figure = metrics["figures"]["nearest_training_distance"]
    distances = [found["distance_hu"] for found in metrics["details"]["memorisation"]["nearest_training"].values()]
    assert (figure["value"], figure["n_real"], figure["n_generated"]) == (pytest.approx(np.median(distances)), 3, 3)
    assert metrics["figures"]["nearest_training_distance_min"]["value"] == pytest.approx(min(distances))


def test_volumes_the_model_never_saw_are_not_called_its_training_volumes(data: dict[str, Ref], tmp_path: Path) -> None:
    other = make_split(tmp_path / "split", data["snapshot"], ["v2", "v3", "v4"], ["v0", "v1"])
    evaluate(data["samples"], data["snapshot"], other, config(), tmp_path / "out", silent)
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["details"]["memorisation"]["nearest_training"] == {}
    assert not [name for name in metrics["figures"] if name.startswith("nearest")]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "earest training" not in page
    assert "(training)" not in page
    assert "v2" in page


def test_a_repeated_evaluation_computes_no_features_again(
    data: dict[str, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (data["samples"], data["snapshot"], data["split"], config(num_shown=1), tmp_path, silent)
    evaluate(*arguments)
    before = (tmp_path / "metrics.json").read_bytes()
    monkeypatch.setattr(MedicalNet, "forward", lambda *_: pytest.fail("computed again"))
    evaluate(*arguments)
    assert (tmp_path / "metrics.json").read_bytes() == before
    evaluate(*arguments[:4], tmp_path / "another stage", silent)  # features belong to the volumes, not to a stage
    assert read_json(tmp_path / "another stage" / "metrics.json") == read_json(tmp_path / "metrics.json")


EDGES = bin_edges(HounsfieldWindow(-1000, 1000))


def rows_of(volumes: np.ndarray) -> np.ndarray:
    """What is kept of every volume."""
    return np.stack([row_of(volume, EDGES) for volume in volumes])


def test_hu_statistics_have_their_closed_forms() -> None:
    rng = np.random.default_rng(1)
    real = rng.uniform(-600, 400, size=(6, 20, 20, 20)).astype(np.float32)
    generated = rng.uniform(-600, 400, size=(5, 20, 20, 20)).astype(np.float32) + 130
    figures = hu_figures(rows_of(real), rows_of(generated), EDGES, intervals=True)
    assert figures["hu_mean_real"].value == pytest.approx(real.mean(), abs=1e-2)
    assert figures["hu_std_generated"].value == pytest.approx(generated.std(), rel=1e-5)
    assert figures["hu_std_ratio"].value == pytest.approx(generated.std() / real.std(), rel=1e-5)
    exact = scipy.stats.wasserstein_distance(real.ravel(), generated.ravel())
    assert figures["hu_histogram_distance"].value == pytest.approx(exact, abs=5.0)  # half a bin
    for figure in figures.values():
        if figure.value is not None:
            assert figure.interval is not None
            assert figure.interval["low"] <= figure.value <= figure.interval["high"]
    assert histogram_distance(rows_of(real), rows_of(real), 10.0) == 0
    outside = rows_of(np.array([[[[-5000.0, 9000.0]]]], dtype=np.float32))
    assert (mean_hu(outside), std_hu(outside), outside[0, 2], outside[0, -1]) == (0.0, 1000.0, 1 / 2, 1 / 2)


def test_bands_of_tissue_have_their_own_distances_and_shares() -> None:
    """Real: a quarter of each of four tissues; generated: lung 40 HU denser, and half of the bone is soft tissue."""
    values = np.array([-995.0, -845.0, -95.0, 405.0])
    real = np.repeat(values, 16).reshape(1, 4, 4, 4).astype(np.float32)
    generated = real.copy()
    generated[real == -845] = -805
    generated[0, 3, :2] = 45
    figures = hu_figures(rows_of(real), rows_of(generated), EDGES)
    assert figures["hu_lung_distance"].value == pytest.approx(40)
    assert figures["hu_air_distance"].value == figures["hu_bone_distance"].value == 0
    assert figures["hu_bone_share_difference"].value == pytest.approx(-1 / 8)
    assert figures["hu_soft_share_difference"].value == pytest.approx(1 / 8)
    assert figures["hu_soft_distance"].value is None  # no real voxel is there
    assert "no voxels" in figures["hu_soft_distance"].note
    covered = [place for band in BANDS.values() for place in range(*bins_of(band, EDGES).indices(200))]
    assert covered == list(range(200))


def test_a_store_of_another_grid_is_refused(data: dict[str, Ref], tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "coarse", spacing_mm=4.0, num_levels=1)
    volume = VolumeStore.open(data["snapshot"].path).read_level("v0")
    for name in ("v0", "v1", "v2", "v3", "v4"):
        store.write(type(volume)(volume.hu, (4.0,) * 3, volume.origin_mm), volume_id=name, attributes={})
    ref = list_volumes(store, dict.fromkeys(store.volume_ids(), "p"))
    with pytest.raises(ValueError, match=r"has 4\.0 mm voxels, the checkpoint was trained at 8\.0 mm"):
        evaluate(data["samples"], ref, data["split"], config(), tmp_path / "out", silent)


def test_only_settings_that_change_results_enter_the_key() -> None:
    assert config(batch_size=1).key_fields() == config(batch_size=2).key_fields()
    seeds = [config(extractor={"name": "random", "seed": seed}).key_fields() for seed in (1, 2)]
    assert seeds[0] != seeds[1]
