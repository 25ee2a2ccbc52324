"""Sampling: refusals, seeds, batches, resuming, and the way back to Hounsfield units."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import sample as draw
from prdit_models.families.denoiser import Denoiser
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref, artifact_files
from storage.documents.samples import Redraw, Samples, Verdict
from storage.errors import ComputationError, StoreFormatError
from storage.files import read_json
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_info, load_model
from tasks.model.view import ViewConfig
from tasks.run.stage import RunContext
from tasks.sample import run as stage
from tasks.sample import settle, watch
from tasks.sample.config import RedrawConfig, SampleConfig
from tasks.sample.draw import Painter, volume_seed
from tasks.sample.stage import sample_stage
from tests.factories import make_data, make_store
from tests.unit.tasks.checkpoints import TINY, commit_checkpoint, commit_pair, tiny_model


def config(**changes: object) -> SampleConfig:
    values = {"num_volumes": 3, "num_steps": 5, "batch_size": 2, "num_threads": 1, "device": "cpu"}
    return SampleConfig.model_validate(values | changes)


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    root = tmp_path_factory.mktemp("checkpoints")
    return commit_pair(root, *make_data(root))


def hu_of(directory: Path) -> dict[str, np.ndarray]:
    store = VolumeStore.open(directory / "samples.zarr")
    return {name: store.read_level(name).hu for name in store.volume_ids()}


def test_a_local_only_checkpoint_is_refused_before_any_work(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    local, _ = checkpoints
    with pytest.raises(
        ValueError, match=r"needs a model of the whole volume, got a local denoiser.*prdit train global"
    ):
        stage.check(local, config())
    with pytest.raises(ValueError, match="needs a checkpoint, got a split"):
        stage.check(local.model_copy(update={"kind": "split"}), config())
    with pytest.raises(ValueError, match="local denoiser"):
        stage.sample(local, config(), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["image", "state"])
def test_samples_are_the_samplers_output_in_rounded_hu(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, output: str
) -> None:
    stage.sample(checkpoints[1], config(num_volumes=1, output=output), tmp_path, silent)
    generator = torch.Generator().manual_seed(volume_seed(42, 0))
    drawn = draw(tiny_model(), CosineProcess(), config().as_sampler(), volume_size=8, generators=[generator])
    expected, other = (drawn.x0, drawn.x) if output == "image" else (drawn.x, drawn.x0)
    assert (expected - other).abs().max() > 0.01
    assert read_json(tmp_path / "samples.json")["sampler"]["output"] == output
    by_hand = np.rint(expected[0, 0].double().numpy() * 1000.0)  # window [-1000, 1000]: HU = 1000·x
    found = hu_of(tmp_path)["generated-00000"]
    assert np.abs(found - by_hand).max() <= 1  # float32 halves may round the other way
    assert (found == by_hand).mean() > 0.99
    volume = VolumeStore.open(tmp_path / "samples.zarr").read_level("generated-00000")
    assert volume.spacing_mm == (16.0,) * 3  # 16 voxels of 8 mm seen as 8
    assert volume.origin_mm == (-56.0,) * 3  # -(8 - 1)/2 · 16
    image = nibabel.load(tmp_path / "nifti" / "0.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), found)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [56.0, 56.0, -56.0, 1])


def test_a_volume_is_the_same_bits_however_many_are_drawn_at_once(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    ways = {"1": (1, 1), "2": (None, 2), "3": (3, 3), "many": (None, 8)}  # volumes at once, threads
    for name, (batch_size, threads) in ways.items():
        stage.sample(checkpoints[1], config(batch_size=batch_size, num_threads=threads), tmp_path / name, silent)
        assert artifact_files(tmp_path / name) == artifact_files(tmp_path / "1")
    hu = hu_of(tmp_path / "1")
    first, second = hu["generated-00000"], hu["generated-00001"]
    assert np.abs(first.astype(int) - second).max() > 100
    more = tmp_path / "more"
    stage.sample(checkpoints[1], config(num_volumes=4), more, silent)
    np.testing.assert_array_equal(hu_of(more)["generated-00000"], first)
    assert len(set(read_json(more / "samples.json")["seeds"])) == 4
    assert volume_seed(42, 1) != volume_seed(43, 0)
    assert len({volume_seed(42, 0, tried) for tried in range(3)} | {volume_seed(42, 1)}) == 4


def test_a_killed_run_keeps_its_finished_volumes(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "whole", silent)
    real_draw, calls = Denoiser.generate, []

    def dies_at_the_third(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_draw(*arguments, **named)

    monkeypatch.setattr(Denoiser, "generate", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "killed", silent)
    assert sorted(hu_of(tmp_path / "killed")) == ["generated-00000", "generated-00001"]
    seen: list[tuple[int, int]] = []
    stage.sample(checkpoints[1], config(batch_size=1), tmp_path / "killed", lambda d, t: seen.append((d, t)))
    assert len(calls) == 4  # only the third volume was drawn again
    assert seen[0] == (10, 15)
    assert seen[-1] == (15, 15)
    assert artifact_files(tmp_path / "killed") == artifact_files(tmp_path / "whole")


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model, store = tiny_model(), make_store(tmp_path / "store")
    model.fine.final_layer.linear.weight.fill_(3e38)  # finite itself; what comes of it is not
    broken = commit_checkpoint(tmp_path / "global", "global", {"snapshot": store}, model=model)
    message = r"None of 2 volumes is finite. Of volume 0 \(seed \d+, ema weights\) 512 of 512 voxels are not finite in its drawing"
    with pytest.raises(ComputationError, match=message):
        stage.sample(broken, config(num_volumes=2), tmp_path / "out", silent)
    model.fine.final_layer.linear.bias[0] = float("nan")
    broken = commit_checkpoint(tmp_path / "nan", "global", {"snapshot": store}, model=model)
    with pytest.raises(ValueError, match=r"not finite in \['fine.final_layer.linear.bias'\].*ema.safetensors"):
        stage.sample(broken, config(num_volumes=1), tmp_path / "other", silent)
    assert hu_of(tmp_path / "out") == hu_of(tmp_path / "other") == {}


def drawn_by_seed(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Volumes of one value for each seed, 0 for others; NaN in one voxel where it is NaN."""

    def draw(self: Painter, seeds: Sequence[int], callback: object = None) -> np.ndarray:
        volumes = np.zeros((len(seeds), 8, 8, 8), dtype=np.float32)
        for volume, seed in zip(volumes, seeds, strict=True):
            volume[0, 0] = values.get(seed, 0.0)
        return volumes

    monkeypatch.setattr(Painter, "draw", draw)


def test_a_volume_that_is_not_finite_is_a_named_exclusion(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawn_by_seed(monkeypatch, {volume_seed(42, 1): np.nan})
    stage.sample(checkpoints[1], config(), tmp_path, silent)
    samples = Samples.load(tmp_path)
    assert (samples.num_asked, samples.volume_ids) == (3, ["generated-00000", "generated-00002"])
    (excluded,) = samples.excluded
    assert (excluded.index, excluded.seed, excluded.tries, excluded.reason) == (1, volume_seed(42, 1), 1, "not_finite")
    assert excluded.sentence == "8 of 512 voxels are not finite in its drawing"
    assert "volume 1 (seed" in caplog.text
    assert sorted(path.name for path in (tmp_path / "nifti").iterdir()) == ["0.nii.gz", "2.nii.gz"]
    stage.sample(checkpoints[1], config(), tmp_path, silent)  # a run that goes on finds the same
    assert Samples.load(tmp_path) == samples


def test_volumes_are_drawn_again_by_the_policy(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volume 0: its first drawing is no chest, its second is one. 1: finite once. 2: never a chest, the last finite one is kept."""
    seed = partial(volume_seed, 42)
    chest = 0.5
    values = {
        **{seed(0): 0.1, seed(0, 1): chest},
        **{seed(1): np.nan, seed(1, 1): chest, seed(1, 2): chest},
        **{seed(2): 0.1, seed(2, 1): 0.2, seed(2, 2): np.nan},
        **{seed(3): np.nan, seed(3, 1): np.nan, seed(3, 2): np.nan},
    }
    drawn_by_seed(monkeypatch, values)
    judge = {"anatomy": lambda hu, voxel_mm: {"lung_hu": float(hu[0, 0, 0])}}
    judge["failures"] = lambda figures, voxel_mm: [] if figures["lung_hu"] == 1000 * chest else ["lung_hu"]
    for name, function in judge.items():
        monkeypatch.setattr(settle, name, function)
    settings = config(num_volumes=5, redraw={"most": 2, "anatomy": True})
    for threads in (1, 3):
        where = tmp_path / str(threads)
        stage.sample(checkpoints[1], settings.model_copy(update={"num_threads": threads}), where, silent)
    assert artifact_files(tmp_path / "1") == artifact_files(tmp_path / "3")
    samples = Samples.load(where)
    assert samples.volume_ids == [f"generated-{index:05d}" for index in (0, 1, 2, 4)]
    assert samples.seeds == [seed(0, 1), seed(1, 1), seed(2, 1), seed(4, 2)]
    assert samples.redraw == Redraw(most=2, judged=True, num_redrawn=5, tries=[2, 2, 3, 3])
    assert [verdict.plausible for verdict in samples.verdicts] == [True, True, False, False]
    assert samples.verdicts[2] == Verdict(plausible=False, failed=["lung_hu"], figures={"lung_hu": 200.0})
    assert [(one.index, one.tries) for one in samples.excluded] == [(3, 3)]
    assert "the last of its 3 drawings, none of which was finite" in samples.excluded[0].sentence
    assert hu_of(where)["generated-00002"][0, 0, 0] == 200


def test_only_views_of_a_whole_chest_are_judged_unless_asked(checkpoints: tuple[Ref, Ref]) -> None:
    info = load_info(checkpoints[1])  # 128 mm in voxels of 16 mm
    view = ViewConfig(size=32, edge=256)
    whole = replace(info, spacing_mm=1.0, view=view)
    assert not settle.judged(info, RedrawConfig())
    assert settle.judged(info, RedrawConfig(anatomy=True))
    assert settle.judged(whole, RedrawConfig())
    assert not settle.judged(whole, RedrawConfig(anatomy=False))
    assert not settle.judged(replace(whole, spacing_mm=0.8), RedrawConfig())  # cuts a wide chest
    assert not settle.judged(replace(whole, view=ViewConfig(size=16, edge=256)), RedrawConfig())


def test_clamping_to_int16_is_counted_and_the_share_outside_the_window_too(
    checkpoints: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 8, 8, 8), dtype=np.float32)
    x[0, 0, 0, 0] = 50.0  # 50 000 HU
    x[0, 0, 0, 1] = -50.0
    x[0, 0, 0, 2] = 1.5  # 1500 HU: outside the window, not clamped
    monkeypatch.setattr(Painter, "draw", lambda *_: x)
    stage.sample(checkpoints[1], config(num_volumes=1), tmp_path, silent)
    hu = hu_of(tmp_path)["generated-00000"]
    assert hu[0, 0, :4].tolist() == [32767, -32768, 1500, 0]
    record = read_json(tmp_path / "samples.json")
    assert record["clipped_fraction"] == [2 / 512]
    assert record["outside_window_fraction"] == [3 / 512]


def test_the_store_says_that_its_volumes_are_generated_and_from_what(
    checkpoints: tuple[Ref, Ref], tmp_path: Path
) -> None:
    stage.sample(checkpoints[1], config(num_volumes=1), tmp_path, silent)
    mark = VolumeStore.open(tmp_path / "samples.zarr").synthetic
    assert mark is not None
    assert (mark.checkpoint, mark.family, mark.step) == (checkpoints[1].digest, "global", 6)
    assert (mark.sampler.seed, mark.sampler.num_steps, mark.sampler.weights) == (42, 5, "ema")
    assert mark.sampler == Samples.load(tmp_path).sampler
    assert (
        "no volume is a scan of a person"
        in read_json(tmp_path / "samples.zarr" / "zarr.json")["attributes"]["synthetic"]["statement"]
    )
    header = nibabel.load(tmp_path / "nifti" / "0.nii.gz").header
    assert bytes(header["descrip"].item()).rstrip(b"\0") == b"synthetic: generated by a model (prdit)"
    with pytest.raises(
        StoreFormatError, match=r"holds volumes of checkpoint sha256:\w+ \(seed 42, 5 steps of .*\(seed 7"
    ):
        stage.sample(checkpoints[1], config(num_volumes=1, seed=7), tmp_path, silent)
    assert VolumeStore.open(make_store(tmp_path / "scans").path).synthetic is None
    with pytest.raises(StoreFormatError, match="holds scans; volumes of checkpoint"):
        VolumeStore.create(tmp_path / "scans", spacing_mm=8.0, num_levels=1, interpolation="linear", synthetic=mark)


def test_pictures_show_the_newest_volumes_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_S", 0.0)
    store = VolumeStore.create(tmp_path / "samples.zarr", spacing_mm=8.0, num_levels=1, interpolation="none")
    shown: list[tuple[str, int]] = []
    seen: list[tuple[int, int]] = []

    def show(path: Path, count: int) -> None:
        shown.append((path.name, count))

    watched = watch.Watch(store, tmp_path, (5, 10), 2, lambda *numbers: seen.append(numbers), show)
    for index in range(5):
        volume = Volume(np.full((8, 8, 8), 100 * index, dtype=np.int16), (8.0,) * 3, (0.0,) * 3)
        store.write(volume, volume_id=f"generated-{index:05d}", attributes={})
        watched.tick()
    watched.finish()
    assert shown == [("volumes-000002.png", 2), ("volumes-000004.png", 4), ("volumes-000005.png", 5)]
    assert seen == [(done, 50) for done in (0, 10, 20, 30, 40, 50, 50)]
    rows = {count: Image.open(tmp_path / "work" / "previews" / name).size[1] for name, count in shown}
    assert rows == {2: 288, 4: 288, 5: 4 * 288 + 3 * 6}  # what is new since the last look; at the end four
    with Image.open(io.BytesIO(watch.thumbnail(tmp_path / "work" / "previews" / "volumes-000005.png"))) as small:
        assert (small.format, small.width) == ("JPEG", 900)
    again = watch.Watch(store, tmp_path, (5, 10), 2, lambda *numbers: seen.append(numbers), show)
    again.finish()
    assert len(shown) == 3  # a run that goes on repeats none


def test_the_stage_publishes_pictures_and_counts(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    published: list[tuple[bytes, str]] = []

    def publish(jpeg: bytes, caption: str) -> None:
        published.append((jpeg, caption))

    where = RunContext(workdir=tmp_path)
    settings = config(redraw={"most": 1, "anatomy": True})
    outcome = sample_stage(checkpoints[1], settings, where, silent, publish=publish)
    ((jpeg, caption),) = published
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    assert caption == "The newest of 3 of 3 generated volumes"
    figures = {name.removeprefix("sample/"): value for name, value in outcome.figures.items()}
    assert {name: figures[name] for name in ("num_redrawn", "num_excluded", "plausible_share")} == {
        "num_redrawn": 3,
        "num_excluded": 0,
        "plausible_share": 0,
    }
    assert sample_stage(checkpoints[1], settings, where, silent, publish=publish).cached
    assert len(published) == 1


def test_raw_and_ema_weights_are_told_apart_and_keys_are_strict(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    ema, info = load_model(checkpoints[1], "ema", torch.device("cpu"))
    raw, _ = load_model(checkpoints[1], "raw", torch.device("cpu"))
    for first, second in zip(ema.parameters(), raw.parameters(), strict=True):
        torch.testing.assert_close(second, 0.5 * first)
    assert (info.model, info.window, info.voxel_mm) == (TINY.to_dict(), HounsfieldWindow(), 16.0)
    from storage.checkpoints import load_tensors, save_tensors

    path = commit_checkpoint(tmp_path / "c", "global", {}).path / "ema.safetensors"
    tensors = load_tensors(path)
    tensors["surplus"] = tensors.pop("fine.final_layer.linear.bias")
    save_tensors(path, tensors)
    with pytest.raises(ValueError, match=r"(?s)fine\.final_layer\.linear\.bias.*surplus"):
        load_model(Ref(kind="checkpoint", uri=str(tmp_path / "c"), digest=""), "ema", torch.device("cpu"))


def test_only_settings_that_change_results_enter_the_key() -> None:
    assert config(batch_size=1).key_fields() == config(batch_size=4, preview_every=1).key_fields()
    assert config(redraw={"most": 1}).key_fields() != config().key_fields()
    assert config(seed=1).key_fields() != config(seed=2).key_fields()


def test_bf16_draws_nearly_the_same_volumes(checkpoints: tuple[Ref, Ref], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        stage.sample(checkpoints[1], config(num_volumes=1, precision=precision), tmp_path / precision, silent)
    full, half = (hu_of(tmp_path / name)["generated-00000"].astype(np.float64) for name in ("fp32", "bf16"))
    difference = np.abs(full - half)
    assert 0.0 < difference.mean() < 0.02 * np.abs(full).mean()  # bfloat16 keeps 8 bits of a product's factors
    assert read_json(tmp_path / "bf16" / "samples.json")["sampler"]["precision"] == "bf16"


def test_a_sampler_that_does_not_fit_the_models_process_is_refused_before_any_work(
    checkpoints: tuple[Ref, Ref], tmp_path: Path
) -> None:
    directory = tmp_path / "flow"
    inputs = {"local": checkpoints[0]}
    flow = commit_checkpoint(directory, "global", inputs, process={"name": "flow"})
    with pytest.raises(
        ValueError, match=r"'predictor-corrector' works with cosine, not .* 'flow', which is sampled by: euler, heun"
    ):
        stage.sample(flow, config(), tmp_path / "out", silent)
    with pytest.raises(ValueError, match=r"got parametrization 'image'; use 'velocity'"):
        stage.check(flow, config(sampler="euler", parametrization="image"))
    stage.check(flow, config(sampler="euler"))
    with pytest.raises(
        ValueError,
        match=r"sample\.label\) of a global transformer that was trained without labels",
    ):
        stage.check(checkpoints[1], config(label="B"))
    assert not (tmp_path / "out").exists()
