"""Coarse masks from training to samples: shown as the volume is, recorded, resumed, asked for by file or volume, and forgotten."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from prdit_models.coarse_mask import BODY, CHANNELS, LUNGS, labels_of_mask, mask_of_volume
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.documents.checkpoint import CoarseMask
from storage.documents.samples import GivenMask, Samples
from storage.errors import InputError
from storage.exports.nifti import write_nifti
from storage.files import sha256_file
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.evaluate.drawn import sampler_table
from tasks.model.checkpoint import load_info
from tasks.model.view import ViewConfig
from tasks.patients.made import SHOWS, affected_by, made_in
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import StoredVolume, measure_stage
from tasks.reconstruct.setting import Setting
from tasks.reconstruct.stage import reconstruct_stage
from tasks.run.stage import RunContext
from tasks.sample import run as sampling
from tasks.sample.config import SampleConfig
from tasks.sample.mask import SampleMask, sample_mask
from tasks.sample.run import sample
from tasks.sample.stage import sample_stage
from tasks.train.augmentation import Augmentation, AugmentationConfig
from tasks.train.data import ViewDataset
from tasks.train.loader import Loader, Order
from tasks.train.loop import Stopped, Training
from tasks.train.mask import MaskConfig, Masker, coarse_mask
from tasks.train.setup import assemble
from tests.factories import global_config, local_config, make_data, train_spec, trained
from tests.unit.tasks.checkpoints import TINY, commit_checkpoint, network

WINDOW = HounsfieldWindow(-1000.0, 1000.0, -1.0, 1.0)
MASK = CoarseMask(channels=CHANNELS, cell=2)
MASKED = dataclasses.replace(TINY, mask_channels=2, mask_cell=2)  # 8 voxels of 16 mm
_SHORT = {"num_volumes": 2, "num_steps": 4, "num_threads": 1, "device": "cpu"}


def silent(done: int, total: int) -> None:
    pass


def config(**changes: Any) -> SampleConfig:
    return SampleConfig.model_validate(_SHORT | changes)


class World:
    """A store of three volumes of 16 voxels of 8 mm, and models of 8 voxels of 16 mm of it, with a mask and without."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshot, self.split = make_data(root)
        inputs = {"snapshot": self.snapshot, "split": self.split}
        self.model = network(MASKED)
        self.masked = commit_checkpoint(root / "masked", "global", inputs, model=self.model, mask=MASK)
        self.plain = commit_checkpoint(root / "plain", "global", inputs)
        self.context = RunContext(workdir=root / "work")

    def seen(self, volume_id: str) -> np.ndarray:
        """A volume as the models see it, HU."""
        return np.clip(VolumeStore.open(self.snapshot.path).read_view(volume_id, 8, 16), -1000, 1000)

    def asked(self, **changes: Any) -> SampleMask:
        found = sample_mask(self.masked, load_info(self.masked), config(**changes))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def hu_of(directory: Path) -> np.ndarray:
    store = VolumeStore.open(directory / "samples.zarr")
    return np.stack([store.read_level(name).hu for name in store.volume_ids()]).astype(np.float64)


# -- training ---------------------------------------------------------------------------------------------------------


def dataset(world: World, augmentation: Augmentation, view: ViewConfig, cell: int = 2) -> ViewDataset:
    store = VolumeStore.open(world.snapshot.path)
    masker = Masker(CoarseMask(channels=CHANNELS, cell=cell), WINDOW, view, store.spacing_mm)
    return ViewDataset(store, ["v0", "v1"], view, WINDOW, 1, augmentation=augmentation, masker=masker)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_have_the_masks_of_their_volumes_as_they_are_shown(world: World, num_workers: int) -> None:
    changes = Augmentation(AugmentationConfig(flip=0.5, rotation_deg=10.0, offset_hu=20.0), max_shift=4)
    data = dataset(world, changes, ViewConfig(size=16, edge=16))
    loader = Loader(data, Order(len(data), 4, seed=3), lambda turn, generator: {}, 1, num_workers, pin=False)
    batches = loader.batches(0)
    seen = []
    for _ in range(2):
        loaded = next(batches)
        assert loaded.masks is not None
        assert loaded.masks.shape == (4, 2, 8, 8, 8)
        for volume, mask in zip(loaded.volumes, loaded.masks, strict=True):
            assert torch.equal(mask, mask_of_volume(WINDOW.to_hu(volume[0].numpy()), 8.0, 2))
            seen.append(mask)
    assert all(0.2 < float(mask[0].mean()) < 0.9 and float(mask[1].mean()) > 0.02 for mask in seen)
    assert len({mask.numpy().tobytes() for mask in seen}) > 4  # each change has its own


def test_mask_and_volume_are_flipped_together(world: World) -> None:
    view = ViewConfig(size=16, edge=16, centre=(8, 8, 4))  # not symmetric
    batches = {}
    for share in (0.0, 1.0):
        data = dataset(world, Augmentation(AugmentationConfig(flip=share)), view)
        made = Loader(data, Order(len(data), 2, seed=3), lambda turn, generator: {}, 1, 0, pin=False)
        batches[share] = next(made.batches(0))
    there, back = batches[0.0], batches[1.0]
    assert there.masks is not None
    assert back.masks is not None
    assert torch.equal(back.volumes, there.volumes.flip(-1))
    assert torch.equal(back.masks, there.masks.flip(-1))
    assert not torch.equal(back.masks, there.masks)


def test_boxes_of_several_edges_have_masks_of_their_own_voxels(world: World) -> None:
    data = dataset(world, Augmentation(num_edges=2), ViewConfig(size=8, edge=16, more_edges=(8,)), cell=1)
    made = Loader(data, Order(len(data), 8, seed=1), lambda turn, generator: {}, 1, 0, pin=False)
    loaded = next(made.batches(0))
    assert loaded.masks is not None
    assert set(loaded.edges.tolist()) == {0, 1}
    for volume, mask, edge in zip(loaded.volumes, loaded.masks, loaded.edges.tolist(), strict=True):
        assert torch.equal(mask, mask_of_volume(WINDOW.to_hu(volume[0].numpy()), (16.0, 8.0)[edge], 1))


def test_what_cannot_have_a_mask_is_refused() -> None:
    found = coarse_mask(MaskConfig(cell_mm=16.0), WINDOW, "zyx", 8.0)
    assert (found.channels, found.cell) == (("body", "lungs"), 2)
    with pytest.raises(InputError, match=r"mask.cell_mm is 16; the model's voxels are 10 mm.*Use 20"):
        coarse_mask(MaskConfig(), WINDOW, "zyx", 10.0)
    soft_tissue = HounsfieldWindow(-160.0, 240.0, -1.0, 1.0)
    with pytest.raises(InputError, match=r"from -160 to 240.*told apart at -500 HU"):
        coarse_mask(MaskConfig(), soft_tissue, "zyx", 8.0)
    with pytest.raises(InputError, match="'published-lidc'"):
        coarse_mask(MaskConfig(), HounsfieldWindow(-1000.0, 1000.0, -1.0, 1.0, "published-lidc"), "zyx", 8.0)
    assert global_config(mask="body-and-lungs").mask == MaskConfig()
    assert "mask" not in global_config().key_fields()
    assert global_config(mask={"cell_mm": 32}).key_fields()["mask"] == {"of": "body-and-lungs", "cell_mm": 32.0}


def test_a_masked_training_starts_as_one_without_and_resumes_to_the_bit(world: World, tmp_path: Path) -> None:
    data = world.snapshot, world.split
    local = trained(train_spec(local_config(steps=1, val_every=1), *data, tmp_path / "local"))
    settings: dict[str, Any] = {"steps": 3, "val_every": 3, "checkpoint_every": 1, "label_dropout": 0.0}
    plain = train_spec(global_config(**settings | {"steps": 1}), *data, tmp_path / "plain", start=local)
    trained(plain)
    masked = global_config(**settings, mask="body-and-lungs")
    whole, resumed = (train_spec(masked, *data, tmp_path / name, start=local) for name in ("whole", "resumed"))
    checkpoint = trained(whole)
    info = load_info(checkpoint)
    assert info.mask == MASK  # 16 mm of 8 mm voxels
    assert (info.model["mask_channels"], info.model["mask_cell"]) == (2, 2)

    def first_loss(folder: Path) -> float:
        return next(
            point["train/loss"]
            for line in (folder / "metrics.jsonl").open()
            if "train/loss" in (point := json.loads(line))
        )

    assert first_loss(whole.directory) == first_loss(plain.directory)  # the same arithmetic, to the bit
    training = Training(assemble(resumed), resumed)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 2)
    trained(resumed)
    for name in ("model", "ema"):
        ours, theirs = (load_tensors(folder / f"{name}.safetensors") for folder in (whole.directory, resumed.directory))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert np.abs(ours["fine.mask_embedder.weight"]).max() > 0  # it is trained
    held_out = assemble(whole).held_out
    assert held_out.conditions is not None
    assert held_out.conditions.mask is not None
    expected = mask_of_volume(WINDOW.to_hu(held_out.volumes[0, 0].numpy()), 8.0, 2)
    assert torch.equal(held_out.conditions.mask[0], expected)


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_a_stored_volume_is_asked_for_as_the_training_showed_it(world: World) -> None:
    found = world.asked(mask_volume="v2")
    assert torch.equal(found.tensor[0], mask_of_volume(world.seen("v2").astype(np.float32), 16.0, 2))
    assert found.given == GivenMask(volume_id="v2")


def labels_16(world: World) -> np.ndarray:
    """Labels of v1 on the voxels of the store."""
    hu = VolumeStore.open(world.snapshot.path).read_level("v1").hu.astype(np.float32)
    return labels_of_mask(mask_of_volume(hu, 8.0, 1), 1)


def write_labels(path: Path, labels: np.ndarray, spacing_mm: float = 8.0, origin_mm: float = 100.0) -> Path:
    write_nifti(path, Volume(labels.astype(np.int16), (spacing_mm,) * 3, (origin_mm,) * 3))
    return path


def test_labels_are_shares_of_cells_in_the_middle_of_the_file(world: World, tmp_path: Path) -> None:
    labels = labels_16(world)
    path = write_labels(tmp_path / "labels.nii.gz", labels)
    found = world.asked(mask=str(path))
    blocks = [flags.reshape(4, 4, 4, 4, 4, 4).mean(axis=(1, 3, 5)) for flags in (labels >= BODY, labels == LUNGS)]
    np.testing.assert_allclose(found.tensor[0].numpy(), np.stack(blocks), atol=1e-6)
    assert found.given == GivenMask(format="labels", files_digest=f"sha256:{sha256_file(path)}")
    assert 0.3 < blocks[0].mean() < 0.9
    assert blocks[1].mean() > 0.03
    # the same place with air around it, and stored in other directions
    wide = write_labels(tmp_path / "wide.nii.gz", np.pad(labels, 5), origin_mm=-3.0)
    turned = nibabel.as_closest_canonical(nibabel.load(path))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    for other in (wide, tmp_path / "turned.nii.gz"):
        assert torch.allclose(world.asked(mask=str(other)).tensor, found.tensor, atol=1e-6), other


def test_a_scan_is_asked_for_by_its_own_body_and_lungs(world: World, tmp_path: Path) -> None:
    hu = VolumeStore.open(world.snapshot.path).read_level("v1").hu
    fine = hu.repeat(2, 0).repeat(2, 1).repeat(2, 2)  # voxels of 4 mm
    fine += np.random.default_rng(0).integers(-20, 21, fine.shape, np.int16)  # a scan has no lungs of one value
    write_nifti(tmp_path / "scan.nii.gz", Volume(fine, (4.0,) * 3, (7.0,) * 3))
    found = world.asked(mask=str(tmp_path / "scan.nii.gz"))
    assert torch.equal(found.tensor, world.asked(mask_volume="v1").tensor)
    assert found.given.format == "nifti"
    assert found.given.files_digest is not None


def test_masks_that_cannot_be_used_are_refused(world: World, tmp_path: Path) -> None:
    labels = labels_16(world)
    file = write_labels(tmp_path / "labels.nii.gz", labels)

    def refused(sentence: str, checkpoint: Ref = world.masked, **changes: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            sample_mask(checkpoint, load_info(checkpoint), config(**changes))

    refused(r"\(sample.mask\) of a model that was trained without one", world.plain, mask=str(file))
    refused(r"\(sample.mask_volume\) of a model that was trained", world.plain, mask_volume="v1")
    refused("'v7' .* is not one of the 3 volumes", mask_volume="v7")
    refused("There is nothing at .*none.nii", mask=str(tmp_path / "none.nii"))
    refused(r"has labels \[3\]; expected 0", mask=str(write_labels(tmp_path / "three.nii.gz", labels + (labels > 1))))
    refused("neither body nor lungs", mask=str(write_labels(tmp_path / "empty.nii.gz", 0 * labels)))
    image = nibabel.load(file)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "placeless.nii.gz")
    refused("cannot be used: .*a coded sform and a coded qform", mask=str(tmp_path / "placeless.nii.gz"))
    tilted = np.array(nibabel.load(file).affine)
    tilted[:3, :3] = tilted[:3, :3] @ np.array(
        [[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]
    )
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), tilted), tmp_path / "tilted.nii.gz")
    refused("is oblique or tilted", mask=str(tmp_path / "tilted.nii.gz"))
    (tmp_path / "text.nii.gz").write_text("no NIfTI")
    refused("cannot be used", mask=str(tmp_path / "text.nii.gz"))
    with pytest.raises(ValueError, match="both set"):
        config(mask=str(file), mask_volume="v1")
    with pytest.raises(ValueError, match="guidance needs one of them"):
        config(guidance_scale=2.0)


# -- samples ----------------------------------------------------------------------------------------------------------


def test_samples_follow_record_and_show_their_mask(world: World, tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.nii.gz", labels_16(world))
    ways: dict[str, dict[str, Any]] = {
        "none": {},
        "file": {"mask": str(path)},
        "volume": {"mask_volume": "v0"},
        "guided": {"mask": str(path), "guidance_scale": 3.0},
    }
    for name, changes in ways.items():
        sample(world.masked, config(**changes), tmp_path / name, silent)
    hu = {name: hu_of(tmp_path / name) for name in ways}
    for name in ("file", "volume", "guided"):
        assert np.abs(hu[name] - hu["none"]).max() > 5  # HU
    assert np.abs(hu["guided"] - hu["file"]).max() > 5
    assert not (tmp_path / "none" / "mask.nii.gz").exists()
    samples = Samples.load(tmp_path / "file")
    assert samples.sampler.mask == GivenMask(format="labels", files_digest=f"sha256:{sha256_file(path)}")
    assert "mask" not in json.loads((tmp_path / "none" / "samples.json").read_text())["sampler"]
    assert ("Mask", "of a file (labels), guidance 1") in sampler_table(samples)  # of the report
    assert Samples.load(tmp_path / "volume").sampler.mask == GivenMask(volume_id="v0")
    assert str(path) not in (tmp_path / "file" / "samples.json").read_text()  # a name may say who it is
    written, drawn = (nibabel.load(tmp_path / "file" / name) for name in ("mask.nii.gz", "nifti/0.nii.gz"))
    np.testing.assert_array_equal(written.affine, drawn.affine)
    found = world.asked(mask=str(path))
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), labels_of_mask(found.tensor[0], 2))
    assert bytes(written.header["descrip"].item()).startswith(b"synthetic: coarse mask")
    # what was written can be asked for again
    again = world.asked(mask=str(tmp_path / "file" / "mask.nii.gz"))
    assert torch.equal(again.tensor, (found.tensor >= 0.5).float())


def test_a_file_counts_by_its_content(world: World, tmp_path: Path) -> None:
    labels = labels_16(world)
    one, same = (write_labels(tmp_path / name, labels) for name in ("one.nii.gz", "same.nii.gz"))
    other = write_labels(tmp_path / "other.nii.gz", np.minimum(labels, BODY))
    made = {
        name: sample_stage(world.masked, config(num_volumes=1, **changes), world.context, silent).ref
        for name, changes in {
            "none": {},
            "one": {"mask": str(one)},
            "same": {"mask": str(same)},
            "other": {"mask": str(other)},
            "volume": {"mask_volume": "v2"},
        }.items()
    }
    assert made["one"] == made["same"]
    assert len({ref.uri for ref in made.values()}) == 4
    affected = affected_by(["v2"], made_in(world.context.workdir), world.snapshot.path)
    shown = [one.made.digest for one in affected if one.how == SHOWS and one.made.stage == "sample"]
    assert shown == [made["volume"].digest]  # derived from the patient, and goes with the patient


def test_a_reconstruction_takes_a_mask(world: World) -> None:
    setting = Setting.of(world.masked, config())
    operator = {"name": "downsampling", "factor": 2, "noise_std": 5.0}
    measurement = measure_stage(StoredVolume(world.snapshot, "v2"), operator, setting, world.context).ref
    made = {
        name: reconstruct_stage(
            world.masked, measurement, ReconstructConfig.model_validate(_SHORT | changes), world.context, silent
        ).ref
        for name, changes in {"none": {}, "masked": {"mask_volume": "v2", "guidance_scale": 2.0}}.items()
    }
    assert np.abs(hu_of(made["masked"].path) - hu_of(made["none"].path)).max() > 1
    written, drawn = (nibabel.load(made["masked"].path / name) for name in ("mask.nii.gz", "nifti/0.nii.gz"))
    np.testing.assert_array_equal(written.affine, drawn.affine)  # of the patient's place, as the samples
    assert Samples.load(made["masked"].path).sampler.mask == GivenMask(volume_id="v2")


def test_a_mask_is_read_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = sampling.sample_mask, []
    monkeypatch.setattr(sampling, "sample_mask", lambda *given: seen.append(given) or read(*given))
    path = write_labels(tmp_path / "labels.nii.gz", labels_16(world))
    context = world.context.model_copy(update={"workdir": tmp_path / "work"})
    sample_stage(world.masked, config(num_volumes=1, mask=str(path)), context, silent)
    assert len(seen) == 1  # what the key names is what is drawn for, whatever happens to the file meanwhile
    operator, how = {"name": "downsampling", "factor": 2, "noise_std": 5.0}, _SHORT | {"mask": str(path)}
    setting = Setting.of(world.masked, config())
    measurement = measure_stage(StoredVolume(world.snapshot, "v2"), operator, setting, context).ref
    reconstruct_stage(world.masked, measurement, ReconstructConfig.model_validate(how), context, silent)
    assert len(seen) == 2
