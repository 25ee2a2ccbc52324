"""Features of volumes: computed once per volume and extractor, whoever asks; what is damaged or cannot be measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from flows.cli import app
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref
from storage.checkpoints import load_tensors, save_tensors
from storage.errors import InputError, MissingArtifactError
from storage.volume_store import VolumeStore
from tasks.evaluate import features as module
from tasks.evaluate import stage
from tasks.evaluate.cache import features_of_samples, features_of_store
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import forget_extractor, load_extractor, volume_features
from tasks.evaluate.sides import Volumes
from tasks.model.view import ViewConfig
from tasks.run.fanout import Pool
from tasks.run.stage import RunContext
from tests.extractors import octants_extractor
from tests.factories import make_store

NAMES = ["v0", "v1", "v2"]
Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return octants_extractor(tmp_path_factory.mktemp("octants") / "octants.pt")


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    return VolumeStore.open(make_store(tmp_path / "store").path)


class Asked:
    """`volume_features` with its usual arguments, and how many volumes were computed."""

    def __init__(self, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed: list[str] = []
        self._folder, self._settings = folder, settings
        real = module._features

        def counted(extractor: Any, volumes: Volumes, names: Any, device: torch.device) -> Rows:
            self.computed += names
            return real(extractor, volumes, names, device)

        monkeypatch.setattr(module, "_features", counted)

    def __call__(self, volumes: Volumes, names: list[str] = NAMES, batch_size: int = 4, **changes: Any) -> Rows:
        self.computed.clear()
        values = {"extractor": self._settings | changes, "batch_size": batch_size, "device": "cpu", "num_threads": 1}
        config, done = EvaluateConfig.model_validate(values), []
        with Pool(one_thread=False) as pool:
            found = volume_features(volumes, names, config, self._folder, pool, done.append)
        assert sum(done) == len(names)
        return found

    def files(self, name: str) -> list[Path]:
        return sorted(self._folder.glob(f"{name}/*.safetensors"))


@pytest.fixture
def asked(tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(tmp_path / "features", settings, monkeypatch)


def test_features_are_of_the_volume_and_computed_once(store: VolumeStore, asked: Asked) -> None:
    volumes = Volumes(store, HounsfieldWindow(), ViewConfig(size=8, edge=16))
    found = asked(volumes, ["v2", "v0"])
    assert asked.computed == ["v2", "v0"]
    seen = np.clip(store.read_view("v0", 8, 16), -1000, 1000) / 1000
    np.testing.assert_allclose(found[1], seen.reshape(2, 4, 2, 4, 2, 4).mean((1, 3, 5)).ravel(), atol=1e-6)
    again = asked(volumes)
    assert asked.computed == ["v1"]
    np.testing.assert_array_equal(again[[2, 0]], found)
    np.testing.assert_array_equal(asked(volumes), again)
    assert asked.computed == []


@pytest.mark.parametrize(
    "other",
    [
        lambda volumes: {"window": HounsfieldWindow(-1000, 600)},
        lambda volumes: {"view": ViewConfig(size=16, edge=16)},
        lambda volumes: {"how": "blurred"},
        lambda volumes: {"how": "noised"},
    ],
)
def test_what_is_seen_otherwise_has_other_features(
    store: VolumeStore, asked: Asked, other: Callable[[Volumes], dict[str, Any]]
) -> None:
    volumes = Volumes(store, HounsfieldWindow(), ViewConfig(size=8, edge=16))
    asked(volumes)
    asked(Volumes(**{"store": store, "window": volumes.window, "view": volumes.view} | other(volumes)))
    assert asked.computed == NAMES
    asked(volumes)
    assert asked.computed == []


def test_another_extractor_and_another_volume_of_the_same_name_have_other_features(
    store: VolumeStore, asked: Asked, tmp_path: Path
) -> None:
    volumes = Volumes(store, HounsfieldWindow(), None)
    before = asked(volumes)
    asked(volumes, axes="IPL")
    assert asked.computed == NAMES
    longer = VolumeStore.open(make_store(tmp_path / "longer", edge=20).path)
    assert not np.array_equal(asked(Volumes(longer, HounsfieldWindow(), None)), before)
    assert asked.computed == NAMES  # samples of two runs have equal ids


def test_on_the_cpu_features_do_not_depend_on_what_is_computed_beside(store: VolumeStore, asked: Asked) -> None:
    volumes = Volumes(store, HounsfieldWindow(), None)
    alone = np.concatenate([asked(volumes, [name]) for name in NAMES])
    for path in [file for name in NAMES for file in asked.files(name)]:
        path.unlink()
    np.testing.assert_array_equal(asked(volumes, batch_size=2), alone)
    assert asked.computed == NAMES


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1  # of the features or of the seal
    path.write_bytes(bytes(data))


def _not_finite(path: Path) -> None:
    found = load_tensors(path)
    save_tensors(path, found | {"features": np.full_like(found["features"], np.nan)})


@pytest.mark.parametrize(
    "damage", [_flipped, _not_finite, lambda path: path.write_bytes(b"half"), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_entry_is_computed_again(store: VolumeStore, asked: Asked, damage: Callable[[Path], None]) -> None:
    volumes = Volumes(store, HounsfieldWindow(), None)
    before = asked(volumes)
    damage(asked.files("v1")[0])
    np.testing.assert_array_equal(asked(volumes), before)
    assert asked.computed == ["v1"]
    asked(volumes)
    assert asked.computed == []


def test_an_entry_of_another_volume_is_computed_again(store: VolumeStore, asked: Asked) -> None:
    volumes = Volumes(store, HounsfieldWindow(), None)
    before = asked(volumes)
    asked.files("v1")[0].write_bytes(asked.files("v0")[0].read_bytes())
    np.testing.assert_array_equal(asked(volumes), before)
    assert asked.computed == ["v1"]


def test_volumes_and_features_that_are_not_finite_are_refused_by_name(
    store: VolumeStore, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = Volumes(store, HounsfieldWindow(), None)
    hu = Volumes._as_it_is

    def broken(self: Volumes, name: str) -> Rows:
        found = hu(self, name)
        if name == "v1":
            found[0, 0, :3] = np.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Volumes, "_as_it_is", broken)
        with pytest.raises(InputError, match=r"Volume v1 of .*store has 3 of 4096 voxels that are not finite"):
            asked(volumes)
    assert [len(asked.files(name)) for name in NAMES] == [0, 0, 0]
    with monkeypatch.context() as patch:
        patch.setattr(
            "prdit_models.metrics.extractors.extractor.Extractor.features", lambda *_: torch.full((1, 8), torch.inf)
        )
        with pytest.raises(
            InputError, match=r"features of volume v0 of .* are not finite, its voxels are: .*octants overflows"
        ):
            asked(volumes)


def test_a_network_that_does_not_fit_is_an_input_error(store: VolumeStore, asked: Asked) -> None:
    with pytest.raises(InputError, match=r"octants gives shape \(1, 8\) for 1 volume\(s\); expected \(1, 7\)"):
        asked(Volumes(store, HounsfieldWindow(), None), width=7)


def test_where_features_are_kept(store: VolumeStore, tmp_path: Path) -> None:
    stage, samples = tmp_path / "stage", tmp_path / "samples"
    samples.mkdir()
    assert features_of_store(store.path, stage) == tmp_path.resolve() / "store.features"
    assert features_of_samples(samples, stage) == samples.resolve() / "work" / "features"
    (tmp_path / "store.features").rmdir()
    (tmp_path / "store.features").write_text("in the way")  # nothing can be written there
    assert features_of_store(store.path, stage) == stage / "work" / "features" / "real"


def test_removing_a_volume_deletes_its_features(store: VolumeStore, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = features_of_store(store.path, tmp_path)
    config = EvaluateConfig.model_validate({"extractor": settings, "device": "cpu", "num_threads": 1})
    for _ in range(2):  # an evaluation on an earlier snapshot keeps them again
        with Pool(one_thread=False) as pool:
            volume_features(Volumes(store, HounsfieldWindow(), None), NAMES, config, folder, pool, lambda count: None)
        assert [path.name for path in sorted(folder.iterdir())] == NAMES
        removed = CliRunner().invoke(app, ["remove", str(store.path), "v1"])
        assert removed.exit_code == 0, removed.output
        assert [path.name for path in sorted(folder.iterdir())] == ["v0", "v2"]
    refused = CliRunner().invoke(app, ["remove", str(store.path), "../store"])
    assert refused.exit_code == 1
    assert "Volume id '../store' is unusable" in refused.output
    assert store.volume_ids() == NAMES


def test_what_cannot_be_loaded_says_so(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**changes: Any) -> EvaluateConfig:
        return EvaluateConfig.model_validate({"extractor": settings | changes})

    with pytest.raises(MissingArtifactError, match=r"evaluate\.extractor\.path is gone\.pt, and there is no such file"):
        load_extractor(config(path="gone.pt"))
    with pytest.raises(InputError, match="another or damaged file"):
        load_extractor(config(sha256="0" * 64))
    monkeypatch.setattr("prdit_models.metrics.extractors.astra.missing_parts", lambda: ["a-part"])
    with pytest.raises(InputError, match="'astra' are not installed: a-part"):
        load_extractor(EvaluateConfig.model_validate({"extractor": "astra"}))


def test_the_configuration_of_this_installation_names_an_extractor_and_a_whole_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prdit_models.metrics.extractors.astra.missing_parts", lambda: ["a-part"])
    assert EvaluateConfig().for_this_installation().key_fields()["extractor"] == {"name": "random", "seed": 0}
    monkeypatch.setattr("prdit_models.metrics.extractors.astra.missing_parts", list)
    assert EvaluateConfig().for_this_installation().key_fields()["extractor"] == {
        "name": "astra",
        "size": [80, 112, 112],
    }
    file = {"name": "medicalnet", "path": "a.pth", "sha256": "0" * 64}
    found = EvaluateConfig.model_validate({"extractor": file}).for_this_installation()
    assert found.extractor.path == str(tmp_path.resolve() / "a.pth")


def test_what_auto_stands_for_is_in_the_stages_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that are installed later make other figures, not a cache hit."""
    keys: list[Any] = []
    monkeypatch.setattr(stage, "check", lambda *refs: None)
    monkeypatch.setattr(stage, "run_stage", lambda *_, config, **__: keys.append(config["extractor"]))
    ref = Ref(kind="samples", uri="/nowhere", digest="sha256:1")
    for missing in (["a-part"], []):
        monkeypatch.setattr("prdit_models.metrics.extractors.astra.missing_parts", partial(list, missing))
        stage.evaluate_stage(ref, ref, ref, EvaluateConfig(), RunContext(workdir=tmp_path), lambda done, total: None)
    assert keys == [{"name": "random", "seed": 0}, {"name": "astra", "size": [80, 112, 112]}]


@pytest.fixture(autouse=True)
def _no_extractor_stays() -> Any:
    yield
    forget_extractor()


def test_one_subsample_gives_no_interval_and_is_refused() -> None:
    assert EvaluateConfig(num_subsamples=0).num_subsamples == 0
    with pytest.raises(ValueError, match=r"evaluate\.num_subsamples is 1; an interval needs at least 2 subsamples"):
        EvaluateConfig(num_subsamples=1)
