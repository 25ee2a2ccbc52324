"""Reconstruction: what samples drawn towards a measurement are, what is said of them, and what is refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from prdit_models.families.denoiser import Denoiser
from storage.artifacts import Ref, artifact_files, load_provenance
from storage.checkpoints import load_tensors
from storage.documents.measurement import Measurement
from storage.documents.reconstruction import Reconstruction
from storage.documents.samples import Samples
from storage.errors import ComputationError, InputError
from storage.volume_store import VolumeStore
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import StoredVolume, load_measurement, measure_stage
from tasks.reconstruct.run import reconstruct
from tasks.reconstruct.setting import Setting
from tasks.reconstruct.stage import reconstruct_stage
from tasks.run.stage import RunContext
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import make_data
from tests.unit.tasks.checkpoints import commit_pair

HALF = {"name": "downsampling", "factor": 2, "noise_std": 5.0}
_SHORT = {"num_volumes": 3, "num_steps": 6, "num_threads": 1, "device": "cpu", "output": "state"}


def config(**changes: object) -> ReconstructConfig:
    return ReconstructConfig.model_validate(_SHORT | changes)


def silent(done: int, total: int) -> None:
    pass


class Case:
    """A checkpoint of 8³ voxels of 16 mm, trained on v0 and v1 of a store of three volumes, v2 held out."""

    def __init__(self, root: Path) -> None:
        self.snapshot, split = make_data(root)
        _, self.checkpoint = commit_pair(root, self.snapshot, split)
        self.setting = Setting.of(self.checkpoint, SampleConfig())
        self.context = RunContext(workdir=root / "work")

    def measured(self, operator: dict[str, Any] = HALF, volume_id: str = "v2", seed: int = 0) -> Ref:
        return measure_stage(StoredVolume(self.snapshot, volume_id, seed), operator, self.setting, self.context).ref

    def truth(self, volume_id: str = "v2") -> np.ndarray:
        hu = VolumeStore.open(self.snapshot.path).read_view(volume_id, 8, 16)
        return np.clip(hu, -1000, 1000)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


def hu_of(directory: Path) -> np.ndarray:
    store = VolumeStore.open(directory / "samples.zarr")
    return np.stack([store.read_level(name).hu for name in store.volume_ids()]).astype(np.float64)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def test_a_simulated_measurement_is_the_operators_with_noise_of_its_seed(case: Case) -> None:
    document, values = load_measurement(case.measured())
    blocks = case.truth().reshape(4, 2, 4, 2, 4, 2).mean(axis=(1, 3, 5))
    noise = 5.0 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(values[0].numpy(), blocks + noise[0].numpy(), atol=1e-3)
    assert document.simulated is not None
    assert (document.unit, document.shape, document.noise_std) == ("HU", (4, 4, 4), 5.0)
    assert (document.grid.shape, document.grid.spacing_mm) == ((8, 8, 8), (16.0,) * 3)
    assert document.grid.origin_mm == (4.0,) * 3  # two voxels of 8 mm, the first at 0
    assert load_measurement(case.measured(seed=1))[1].ne(values).all()
    record = load_provenance(case.measured())
    assert record.inputs == {"snapshot": case.snapshot}
    assert record.config["operator"]["name"] == "downsampling"


@pytest.mark.parametrize("guide", ["projection", "pigdm"])
def test_guided_samples_are_nearer_to_truth_and_measurement(case: Case, tmp_path: Path, guide: str) -> None:
    sample(case.checkpoint, SampleConfig.model_validate(_SHORT), tmp_path / "free", silent)
    measurement = case.measured()
    how = config(guide=guide, num_threads=2)
    reconstruct(case.checkpoint, measurement, how, tmp_path / guide, silent)
    truth, free, guided = case.truth(), hu_of(tmp_path / "free"), hu_of(tmp_path / guide)
    mean = load_tensors(tmp_path / guide / Reconstruction.ESTIMATE)["mean"]
    np.testing.assert_allclose(mean, np.clip(guided, -1000, 1000).mean(axis=0), atol=1e-2)
    assert rms(mean - truth) < min(rms(each - truth) for each in free)
    measured = load_measurement(measurement)[1][0].numpy()

    def residual(hu: np.ndarray) -> float:
        return rms(measured - hu.reshape(4, 2, 4, 2, 4, 2).mean(axis=(1, 3, 5)))

    assert residual(guided.mean(axis=0)) < 4 * 5.0  # of its noise; without a guide:
    assert residual(free.mean(axis=0)) > 500
    found = Reconstruction.load(tmp_path / guide)
    assert found.truth is not None
    assert found.residuals == pytest.approx([residual(np.clip(each, -1000, 1000)) for each in guided], rel=1e-4)
    assert found.truth.accuracy["mean"].residual == pytest.approx(residual(mean), rel=1e-4)
    assert found.truth.accuracy["mean"].error_hu["all"] == pytest.approx(np.abs(mean - truth).mean(), rel=1e-4)


def test_strength_0_gives_the_bits_of_stage_sample(case: Case, tmp_path: Path) -> None:
    sample(case.checkpoint, SampleConfig.model_validate(_SHORT), tmp_path / "free", silent)
    reconstruct(case.checkpoint, case.measured(), config(strength=0.0), tmp_path / "guided", silent)
    np.testing.assert_array_equal(hu_of(tmp_path / "guided"), hu_of(tmp_path / "free"))
    reconstruct(case.checkpoint, case.measured(), config(), tmp_path / "pulled", silent)
    assert np.abs(hu_of(tmp_path / "pulled") - hu_of(tmp_path / "free")).max() > 1


def test_a_killed_run_goes_on_to_the_same_bytes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurement = case.measured()
    reconstruct(case.checkpoint, measurement, config(), tmp_path / "whole", silent)
    real_draw, calls = Denoiser.generate, []

    def dies_at_the_third(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_draw(*arguments, **named)

    monkeypatch.setattr(Denoiser, "generate", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(case.checkpoint, measurement, config(), tmp_path / "killed", silent)
    assert not (tmp_path / "killed" / Reconstruction.NAME).exists()
    reconstruct(case.checkpoint, measurement, config(), tmp_path / "killed", silent)
    assert len(calls) == 4
    assert artifact_files(tmp_path / "killed") == artifact_files(tmp_path / "whole")


def test_the_result_says_what_it_was_made_of_and_lies_where_the_scan_lies(case: Case, tmp_path: Path) -> None:
    measurement = case.measured()
    outcome = reconstruct_stage(case.checkpoint, measurement, config(), case.context, silent)
    assert load_provenance(outcome.ref).inputs == {"checkpoint": case.checkpoint, "measurement": measurement}
    assert reconstruct_stage(case.checkpoint, measurement, config(), case.context, silent).cached
    directory = outcome.ref.path
    mark = VolumeStore.open(directory / "samples.zarr").synthetic
    assert mark is not None
    assert mark.guided is not None
    assert (mark.checkpoint, mark.guided.measurement) == (case.checkpoint.digest, measurement.digest)
    assert (mark.guided.guide, mark.guided.strength) == ("projection", 1.0)
    assert Samples.load(directory).guided == mark.guided
    found = Reconstruction.load(directory)
    assert found.truth is not None
    assert (found.truth.role, found.num_samples, found.level) == ("held_out", 3, 0.9)
    assert set(found.truth.accuracy) == {"mean", "sample", "trilinear", "spline", "sirt"}
    assert list(found.truth.coverage) == ["0.5", "0.8", "0.9", "0.95"]
    assert found.truth.likeness is not None
    assert (found.truth.likeness.num_training, len(found.truth.likeness.to_training)) == (2, 3)
    estimate = load_tensors(directory / Reconstruction.ESTIMATE)
    image = nibabel.load(directory / "mean.nii.gz")
    np.testing.assert_allclose(np.asarray(image.dataobj).transpose(2, 1, 0), estimate["mean"], atol=0.5 + 1e-3)
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-4.0, -4.0, 4.0, 1])  # LPS (4, 4, 4)
    assert bytes(image.header["descrip"].item()).startswith(b"synthetic: mean of volumes generated")
    page = (directory / "reconstruction.html").read_text()
    assert "held out of the training" in page
    assert "trilinear interpolation" in page
    assert "<figcaption>what was measured</figcaption>" in page
    assert page.count("its error, −200 to 200 HU</figcaption>") == 5  # mean, sample, three baselines
    assert page.index("|mean − truth|, 0 to 300 HU</figcaption>") < page.index("one sample</figcaption>")
    assert outcome.figures["reconstruct/psnr_db"] == pytest.approx(found.truth.accuracy["mean"].psnr_db)


def test_what_is_drawn_lies_in_the_window_with_the_measurement_the_sampler_reached(case: Case, tmp_path: Path) -> None:
    """Clamped volumes have another one: the residual of what the sampler leaves grows, that of what ends in the window does not."""
    measurement = case.measured()
    reconstruct(case.checkpoint, measurement, config(), tmp_path / "ended", silent)
    loose = config(guide_settings={"within_window": False})
    reconstruct(case.checkpoint, measurement, loose, tmp_path / "loose", silent)
    ended, loose_hu = hu_of(tmp_path / "ended"), hu_of(tmp_path / "loose")
    assert ended.min() >= -1000
    assert loose_hu.min() < -1010
    found = [Reconstruction.load(tmp_path / name).residuals for name in ("ended", "loose")]
    assert np.mean(found[0]) < 0.9 * np.mean(found[1])


def test_tf_says_what_it_wants(case: Case, tmp_path: Path) -> None:
    reconstruct(case.checkpoint, case.measured(), config(guide="tf", strength=1e-3), tmp_path, silent)
    said = " ".join(Reconstruction.load(tmp_path).warnings)
    assert "Raise strength (10 to 50 times for volumes in HU), or measure X-rays" in said
    assert "schedule=published, num_steps=250" in said


def test_of_a_mask_the_voxels_that_were_not_measured_are_covered(case: Case, tmp_path: Path) -> None:
    measurement = case.measured({"name": "mask", "region": "half", "side": "left", "noise_std": 5.0})
    reconstruct(case.checkpoint, measurement, config(level=0.8), tmp_path, silent)
    found, estimate = Reconstruction.load(tmp_path), load_tensors(tmp_path / Reconstruction.ESTIMATE)
    held = (estimate["low"] <= case.truth()) & (case.truth() <= estimate["high"])
    assert found.truth is not None
    assert found.truth.coverage["0.8"] == pytest.approx(held[:, :, 4:].mean(), abs=1e-3)
    assert held[:, :, 4:].mean() != pytest.approx(held.mean(), abs=0.01)
    assert "of the voxels that were not measured lie" in (tmp_path / "reconstruction.html").read_text()


def test_a_training_patient_is_refused_unless_it_is_asked_for(case: Case, tmp_path: Path) -> None:
    measurement = case.measured(volume_id="v0")
    with pytest.raises(InputError, match=r"trained on volumes of the patient of v0.*held-out volume \(v2\)"):
        reconstruct_stage(case.checkpoint, measurement, config(), case.context, silent)
    reconstruct(case.checkpoint, measurement, config(num_volumes=1, trained_patients=True), tmp_path, silent)
    found = Reconstruction.load(tmp_path)
    assert found.truth is not None
    assert found.truth.role == "trained"
    assert "figures show memory" in found.warnings[0]
    assert found.truth.coverage == {}  # one sample has no spread
    assert set(load_tensors(tmp_path / Reconstruction.ESTIMATE)) == {"mean"}


def test_what_does_not_fit_is_named_before_any_work(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"guide: 'best' is none; there are projection"):
        reconstruct(case.checkpoint, case.measured(), config(guide="best"), tmp_path, silent)
    with pytest.raises(InputError, match="'projection' has no setting 'speed'"):
        reconstruct(case.checkpoint, case.measured(), config(guide_settings={"speed": 1}), tmp_path, silent)
    with pytest.raises(InputError, match=r"Unknown operator 'zoom'"):
        case.measured({"name": "zoom"})
    with pytest.raises(InputError, match="factor 3 does not divide"):
        case.measured({"name": "downsampling", "factor": 3})
    with pytest.raises(InputError, match=r"'v9' is not a volume of .*prdit ls"):
        case.measured(volume_id="v9")
    with pytest.raises(ValueError, match=r"redraw.most is 1; samples of a measurement are not drawn again"):
        config(redraw={"most": 1})
    with pytest.raises(InputError, match="Expected a measurement, got a checkpoint"):
        reconstruct(case.checkpoint, case.checkpoint, config(), tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_of_another_grid_is_refused(case: Case, tmp_path: Path) -> None:
    measurement = case.measured()
    document = Measurement.load(measurement.path)
    other = document.grid.model_copy(update={"spacing_mm": (8.0,) * 3})
    document.model_copy(update={"grid": other}).save(tmp_path)
    (tmp_path / Measurement.VALUES).write_bytes((measurement.path / Measurement.VALUES).read_bytes())
    moved = measurement.model_copy(update={"uri": str(tmp_path)})
    with pytest.raises(InputError, match=r"8 × 8 × 8 voxels of 8 mm; the model makes 8 × 8 × 8 of 16 mm"):
        reconstruct(case.checkpoint, moved, config(), tmp_path / "out", silent)


def test_a_strength_that_diverges_names_what_helps(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ComputationError, match=r"diverged.*lower strength .*or more steps"):
        reconstruct(case.checkpoint, case.measured(), config(strength=1e4), tmp_path, silent)
