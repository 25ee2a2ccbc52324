"""Import and export: bit-identical weights, recorded facts, forward passes as recorded, samples by hand."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prdit_models.networks.build import build_network
from prdit_models.networks.config import CascadeConfig, ModelConfig, NetworkConfig, model_config
from storage.artifacts import Ref, artifact_files, commit_artifact, load_provenance, verify_artifact
from storage.errors import DamagedArtifactError
from storage.files import read_json, write_json_atomic
from storage.volume_store import VolumeStore
from tasks.convert.exporting import export_checkpoint
from tasks.convert.importing import ImportSettings, import_checkpoint
from tasks.model.checkpoint import load_model
from tasks.sample import run as sampling
from tasks.sample.config import SampleConfig
from tasks.sample.draw import volume_seed
from tests.parity import sets
from tests.parity.frequencies import recorded_frequencies
from tests.unit.tasks.checkpoints import commit_checkpoint
from tests.unit.tasks.foreign_files import FLOW, LOCAL, NETWORKS, REFINED, TF, TINY, published, save, weights

NAMES = {"prdit": "PRDiT-custom", "fm": "PRDiT-custom", "tf": "DiT-custom", "sr": "PRDiT-custom"}
CPU = torch.device("cpu")


def silent(done: int, total: int) -> None:
    pass


def bring(path: Path, folder: Path, **settings: Any) -> Ref:
    return import_checkpoint(path, folder, ImportSettings(**settings), silent)


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        value.dtype == found[key].dtype and value.numpy().tobytes() == found[key].numpy().tobytes()
        for key, value in expected.items()
    )


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("variant", NETWORKS)
def test_round_trip_of_every_variant(tmp_path: Path, variant: str) -> None:
    network = NETWORKS[variant]
    content = published(network, NAMES[variant])
    content["ema"]["t_embedder.mlp.0.bias" if variant != "sr" else "base.t_embedder.mlp.0.bias"][0] = -0.0
    ref = bring(save(tmp_path / "a.pt", content), tmp_path / "in")
    verify_artifact(ref)
    for kind, name in (("raw", "model"), ("ema", "ema")):
        model, info = load_model(ref, kind, CPU)
        assert same_bits(model.state_dict(), content[name])
        assert info.model == network.to_dict()
    exported = load(export_checkpoint(ref, tmp_path / "b.pt", silent))
    assert sorted(exported) == ["config", "ema", "epoch", "model", "train_steps"]
    assert (exported["epoch"], exported["train_steps"]) == (7, 130000)
    assert same_bits(exported["model"], content["model"])
    assert same_bits(exported["ema"], content["ema"])
    again = bring(tmp_path / "b.pt", tmp_path / "again")
    first, second = (read_json(r.path / "checkpoint.json") for r in (ref, again))
    assert {k: v for k, v in first.items() if k != "imported"} == {k: v for k, v in second.items() if k != "imported"}
    one, two = artifact_files(ref.path), artifact_files(again.path)
    assert all(one[name] == two[name] for name in ("model.safetensors", "ema.safetensors"))


@pytest.mark.parametrize(
    ("variant", "family", "noise_std", "hu_of_ends"),
    [
        ("prdit", "global", 0.5, (-1000.0, 1000.0)),
        ("fm", "global", 1.0, (-1000.0, 1000.0)),
        ("sr", "refiner", 0.5, (-1000.0, 1000.0)),
        ("tf", "global", 1.0, None),
    ],
)
def test_what_is_recorded(tmp_path: Path, variant: str, family: str, noise_std: float, hu_of_ends: Any) -> None:
    path = save(tmp_path / "a.pt", published(NETWORKS[variant], NAMES[variant]))
    ref = bring(path, tmp_path / "in")
    info = read_json(ref.path / "checkpoint.json")
    assert (ref.kind, info["family"]) == ("checkpoint", family)
    assert info["process"]["noise_std"] == noise_std
    assert (info["axes"], info["spacing_mm"], info["step"]) == ("xyz", 1.0, 130000)
    assert info["view"] == {"size": NETWORKS[variant].volume_size, "edge": 256, "centre": None}
    assert info["imported"]["variant"] == variant
    assert info["imported"]["per_scan_intensity"] is (variant != "tf")
    assert load_provenance(ref).config == {"imported": info["imported"]}
    _, read = load_model(ref, "ema", CPU)
    if hu_of_ends:
        assert tuple(read.window.to_hu(np.array([-1.0, 1.0]))) == hu_of_ends
    else:  # (v - 0.202013) / 0.200640 of v in [0, 1] for -1000 to 1500 HU
        ends = (np.array([0.0, 1.0]) - 0.202013) / 0.200640
        np.testing.assert_allclose(read.window.to_hu(ends), [-1000.0, 1500.0])


def test_a_local_denoiser_and_other_data(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", published(LOCAL))
    ref = bring(path, tmp_path / "in", dataset="rad")
    info = read_json(ref.path / "checkpoint.json")
    assert info["family"] == "local"
    assert (info["axes"], info["spacing_mm"]) == ("zyx", 0.8)
    _, read = load_model(ref, "ema", CPU)
    np.testing.assert_allclose(read.window.to_hu(np.array([0.0, 1.0])), [-1000.0, 1000.0])  # RAD models work in [0, 1]
    assert read.voxel_mm == pytest.approx(0.8 * 256 / 8)
    given = {"axes": "xyz", "spacing_mm": 1.5, "window_hu": (-900.0, 400.0), "noise_std": 0.7}
    other = bring(path, tmp_path / "other", dataset="rad", **given)
    _, read = load_model(other, "ema", CPU)
    assert (read.axes, read.spacing_mm, read.process.noise_std) == ("xyz", 1.5, 0.7)
    assert (read.window.lower_hu, read.window.upper_hu, read.window.model_lower) == (-900.0, 400.0, 0.0)


def test_our_own_export_keeps_what_the_published_code_does_not(tmp_path: Path) -> None:
    ours = commit_checkpoint(tmp_path / "ours", "global", {})
    path = export_checkpoint(ours, tmp_path / "ours.pt", silent)
    back = bring(path, tmp_path / "back")
    info, original = read_json(back.path / "checkpoint.json"), read_json(ours.path / "checkpoint.json")
    for name in ("model", "view", "spacing_mm", "step", "family"):
        assert info[name] == original[name], name
    assert info["axes"] == "zyx"
    assert {k: info["intensity"][k] for k in original["intensity"]} == original["intensity"]
    assert info["imported"]["per_scan_intensity"] is False
    for kind in ("raw", "ema"):
        assert same_bits(load_model(back, kind, CPU)[0].state_dict(), load_model(ours, kind, CPU)[0].state_dict())
    content = load(path)
    record = content["config"]["prdit"]
    wrong: list[dict[str, Any]] = [
        {"axes": "abc"},
        {"edge": 256.5},
        {"edge": float("inf")},
        {"spacing_mm": float("nan")},
        {"centre": "x"},
        {"intensity": record["intensity"] | {"lower_hu": "a"}},
    ]
    for values in wrong:
        content["config"]["prdit"] = record | values
        with pytest.raises(ValueError, match=r"entry 'prdit' that is not what `prdit export-checkpoint` writes"):
            bring(save(tmp_path / "bad.pt", content), tmp_path / "bad")


def test_a_size_that_does_not_divide_the_published_box_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        ref = bring(save(tmp_path / "a.pt", published(TINY)), tmp_path / "in", volume_size=24)
    assert "24 does not divide the box of 256 voxels" in caplog.text
    assert read_json(ref.path / "checkpoint.json")["view"]["edge"] == 24


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    content = published(TINY)
    content["model"] = {key: value.bfloat16() for key, value in content["model"].items()}
    content["ema"] = {key: value.half() for key, value in content["ema"].items()}
    ref = bring(save(tmp_path / "a.pt", content), tmp_path / "in")
    for kind, name in (("raw", "model"), ("ema", "ema")):
        state = load_model(ref, kind, CPU)[0].state_dict()
        assert all(torch.equal(state[key].double(), value.double()) for key, value in content[name].items())


def test_misfits_are_refused_with_the_whole_list(tmp_path: Path) -> None:
    content = published(TINY)
    lost = [key for key in content["model"] if key.startswith("fine.blocks.0.")]
    for key in lost:
        del content["model"][key]
    content["model"] |= {f"extra.{i:02d}": torch.zeros(1) for i in range(15)}
    content["model"]["fine.final_layer.linear.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"missing .*extra .*misshapen .*under 'model' in a.pt; nothing was") as caught:
        bring(save(tmp_path / "a.pt", content), tmp_path / "in")
    text = str(caught.value)
    assert all(repr(key) in text for key in lost)
    assert all(f"'extra.{i:02d}'" in text for i in range(15))
    assert "fine.final_layer.linear.bias: (3,) instead of (16,)" in text
    assert not (tmp_path / "in").exists()


def test_values_that_are_not_finite_are_refused_with_the_whole_list(tmp_path: Path) -> None:
    content = published(TINY)
    content["ema"]["fine.final_layer.linear.bias"][3] = float("nan")
    content["ema"]["coarse.mlp_denoise.linear_final.bias"][0] = float("inf")
    with pytest.raises(ValueError, match=r"not finite in \['coarse.*linear_final.bias', 'fine.*linear.bias'\].*'ema'"):
        bring(save(tmp_path / "a.pt", content), tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_folder_holds_one_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", published(TINY))
    monkeypatch.chdir(tmp_path)
    ref = import_checkpoint(path, None, ImportSettings(), silent)
    assert ref.path.parent == tmp_path / ".prdit" / "imported"
    assert ref.path.name == read_json(ref.path / "checkpoint.json")["imported"]["source_sha256"][:12]
    assert import_checkpoint(path, None, ImportSettings(), silent) == ref
    with pytest.raises(FileExistsError, match=r"imported with other settings.*--output"):
        import_checkpoint(path, None, ImportSettings(axes="zyx"), silent)
    with (ref.path / "ema.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    with pytest.raises(DamagedArtifactError, match=r"ema\.safetensors was changed"):
        import_checkpoint(path, None, ImportSettings(), silent)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        bring(path, tmp_path / "busy")
    assert [p.name for p in (tmp_path / "busy").iterdir()] == ["note.txt"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", published(TINY))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tasks.convert.importing.commit_artifact", full)
    with pytest.raises(OSError, match="disk full"):
        bring(path, tmp_path / "in")
    ours = commit_checkpoint(tmp_path / "ours", "global", {})
    monkeypatch.setattr("tasks.convert.exporting.torch.save", full)
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(ours, tmp_path / "b.pt", silent)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "ours"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "yxz"}, r"axis order is 'yxz'; expected 'xyz'"),
        ({"dataset": "nlst"}, r"Unknown data set 'nlst'; expected one of \['lidc', 'rad'\]"),
        ({"noise_std": 0.0}, r"noise_std is 0.0; expected a positive number"),
        ({"spacing_mm": float("nan")}, r"spacing_mm is nan"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportSettings(**settings)


@pytest.mark.parametrize(
    ("network", "process", "named"),
    [
        (dataclasses.replace(TINY, norm="rms", qk_norm=True), {}, ["norm 'rms'", "qk_norm"]),
        (dataclasses.replace(TINY, position="rotary", voxel_mm=2.0), {}, ["position 'rotary'"]),
        (dataclasses.replace(TINY, num_classes=3), {}, ["num_classes 3"]),
        (dataclasses.replace(TINY, out_channels=1), {"prediction": "image"}, ["prediction 'image'"]),
        (TINY, {"num_steps": 500}, ["num_steps 500"]),
        (CascadeConfig(ModelConfig(32, 6, 4, 1, 24, 1, 0), REFINED), {}, ["chained refinements"]),
        (CascadeConfig(REFINED.head, TF), {}, ["refinement of a model with arithmetic 'tf'"]),
        (
            CascadeConfig(dataclasses.replace(REFINED.head, out_channels=1), FLOW),
            {"name": "flow", "noise_std": 1.0},
            ["flow"],
        ),
    ],
)
def test_arithmetic_of_our_own_is_not_exported(
    tmp_path: Path, network: NetworkConfig, process: dict[str, Any], named: list[str]
) -> None:
    ref = commit_checkpoint(tmp_path / "x", "global", {})
    info = read_json(ref.path / "checkpoint.json") | {"model": network.to_dict()}
    info["process"] = {"noise_std": 0.5} | process
    write_json_atomic(ref.path / "checkpoint.json", info)
    ref = commit_artifact(ref.path, "checkpoint", stage="x", recipe=1, inputs={}, config={})
    with pytest.raises(ValueError, match="cannot compute this model: it has no") as caught:
        export_checkpoint(ref, tmp_path / "b.pt", silent)
    assert all(text in str(caught.value) for text in named)
    assert not (tmp_path / "b.pt").exists()


def test_export_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = bring(save(tmp_path / "a.pt", published(TINY)), tmp_path / "in", noise_std=0.7)
    with pytest.raises(FileExistsError, match="never overwrite"):
        export_checkpoint(ref, tmp_path / "a.pt", silent)
    with pytest.raises(ValueError, match="needs a checkpoint, got a samples"):
        export_checkpoint(ref.model_copy(update={"kind": "samples"}), tmp_path / "b.pt", silent)
    with caplog.at_level(logging.WARNING, logger="prdit.convert"):
        export_checkpoint(ref, tmp_path / "b.pt", silent)
    assert "noise of std 0.5, this model needs 0.7" in caplog.text
    (ref.path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        export_checkpoint(ref, tmp_path / "c.pt", silent)


def test_published_names_are_written(tmp_path: Path) -> None:
    network = model_config("XS/4/0", 8)
    path = save(tmp_path / "a.pt", {"ema": weights(network)})
    ref = bring(path, tmp_path / "in", variant="tf", volume_size=8)
    assert load(export_checkpoint(ref, tmp_path / "b.pt", silent))["config"]["model"] == "DiT-XS/4/0"
    assert read_json(ref.path / "checkpoint.json")["imported"]["substituted"] == "model"


PARITY = [
    ("full_tinyA_s8_d2", "prdit"),
    ("full_tinyB_s16_d2", "fm"),  # one output channel: the network of flow matching
    ("local_xs4_0_s8", "fm"),
    ("tf_full_d2", "tf"),
    ("tf_full_d0", "tf"),
    ("fm_loss", "fm"),
    ("sr_forward", "sr"),
]


def _parity_network(parity: dict[str, sets.Entry], entry: sets.Entry) -> NetworkConfig:
    if entry["id"] == "fm_loss":
        return sets.config_of(parity["fm_euler_n1"]["args"])
    if entry["id"] != "sr_forward":
        return sets.config_of(entry["args"])
    args = entry["args"]
    sizes = (args["sr_patch_size"], args["sr_stride"], args["sr_padding"], args["sr_hidden_size"])
    return CascadeConfig(ModelConfig(args["target_size"], *sizes, 1, 0), sets.config_of(args["base"]))


@pytest.mark.parametrize(("entry_id", "variant"), PARITY)
@torch.no_grad()
def test_an_imported_model_computes_the_recorded_output(
    tmp_path: Path, parity_dir: Path, entry_id: str, variant: str
) -> None:
    parity = sets.entries(parity_dir)
    entry = parity[entry_id]
    network = _parity_network(parity, entry)
    state = sets.weights(parity_dir, entry, sets.shapes_of(build_network(network)))
    base = network.base if isinstance(network, CascadeConfig) else network
    given = {"variant": variant, "volume_size": network.volume_size, "num_heads": base.num_heads}
    ref = bring(
        save(tmp_path / "a.pt", {"module." + key: value for key, value in state.items()}), tmp_path / "in", **given
    )
    model, info = load_model(ref, "ema", CPU)
    assert info.model == network.to_dict()
    stored = {name: sets.tensor(value) for name, value in sets.arrays(parity_dir, entry).items()}
    if entry_id == "fm_loss":
        velocity = model(stored["x_t"], 1000.0 * stored["t"])
        loss = (velocity - (stored["x_data"] - stored["x_noise"])).square().flatten(1).mean(1)
        np.testing.assert_allclose(loss, stored["loss"], rtol=1e-5)
        return
    with recorded_frequencies():
        found = model(stored["x"], stored["t"])
    tolerance = entry["tolerance"]
    np.testing.assert_allclose(found, stored["y"], atol=tolerance["suggested_atol"], rtol=tolerance["suggested_rtol"])
    exported = load(export_checkpoint(ref, tmp_path / "b.pt", silent))
    assert sets.state_digest(exported["ema"]) == entry["weights"]["sha256_state"]


def hu_of(ref: Ref, folder: Path, **changes: Any) -> np.ndarray:
    values = {"num_volumes": 1, "num_steps": 3, "num_threads": 1, "device": "cpu", "nifti": False} | changes
    sampling.sample(ref, SampleConfig.model_validate(values), folder, silent)
    return VolumeStore.open(folder / "samples.zarr").read_level("generated-00000").hu


@torch.no_grad()
def test_sampling_a_flow_matching_import_by_hand(tmp_path: Path) -> None:
    ref = bring(save(tmp_path / "a.pt", published(FLOW)), tmp_path / "in")
    with pytest.raises(
        ValueError, match=r"'predictor-corrector' works with cosine, not .* sampled by: euler, heun \(sample\.sampler\)"
    ):
        hu_of(ref, tmp_path / "refused")
    found = hu_of(ref, tmp_path / "out", sampler="euler", num_steps=1)
    generator = torch.Generator().manual_seed(volume_seed(42, 0))
    z = torch.randn((1, 1, 8, 8, 8), generator=generator)  # std 1, time 0
    network = build_network(FLOW).eval()
    network.load_state_dict(weights(FLOW, 2))  # of `ema`
    x = z + network(z, torch.zeros(1))
    by_hand = np.rint(1000.0 * x[0, 0].double().numpy()).transpose(2, 1, 0)  # (x, y, z) to (z, y, x)
    assert np.abs(found - by_hand).max() <= 1
    assert read_json(tmp_path / "out" / "samples.json")["sampler"]["process"]["noise_std"] == 1.0


@pytest.mark.parametrize("variant", ["prdit", "tf", "sr"])
def test_sampling_every_other_import(tmp_path: Path, variant: str) -> None:
    path = save(tmp_path / "a.pt", published(NETWORKS[variant], NAMES[variant]))
    turned, straight = (
        hu_of(bring(path, tmp_path / axes, axes=axes), tmp_path / f"s-{axes}") for axes in ("xyz", "zyx")
    )
    np.testing.assert_array_equal(turned, straight.transpose(2, 1, 0))
    assert np.abs(straight - straight.transpose(2, 1, 0)).max() > 10
    record = read_json(tmp_path / "s-xyz" / "samples.json")["sampler"]
    assert record["process"]["noise_std"] == (1.0 if variant == "tf" else 0.5)
