"""`prdit reconstruct` from the command line to the page, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.reconstruct_run import Wanted, figures_table, parameters
from storage.documents.measurement import Measurement
from storage.documents.samples import Samples
from tasks.reconstruct.config import ReconstructConfig
from tests.unit.storage.radiograph_files import write_radiograph
from tests.unit.tasks.test_reconstruct import Case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


class Called:
    """The command with what every call of it needs."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.operator = folder / "operator.yaml"
        self.operator.write_text("name: downsampling\nfactor: 2\nnoise_std: 5\n")

    def __call__(self, measurement: Path, *arguments: str) -> Result:
        common = ["--model", self.case.checkpoint.uri, "--operator", str(self.operator)]
        common += [
            "--workdir",
            str(self.folder / "work"),
            "--set",
            "sample.num_threads=1",
            "--set",
            "sample.device=cpu",
        ]
        return CliRunner().invoke(app, ["reconstruct", str(measurement), *common, *arguments])


@pytest.fixture
def call(case: Case, tmp_path: Path) -> Called:
    return Called(case, tmp_path)


def words(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_a_stored_volume_is_measured_reconstructed_and_compared(call: Called, case: Case) -> None:
    arguments = ("--volume", "v2", "--samples", "2", "--steps", "4", "--set", "guide.data_std=0.4", "--json")
    shown = call(case.snapshot.path, *arguments)
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout.splitlines()[-1])
    found = value["reconstruction"]
    assert (found["num_samples"], found["truth"]["role"]) == (2, "held_out")
    samples = Samples.load(Path(value["ref"]["uri"]))
    assert samples.guided is not None
    assert (samples.guided.guide, samples.guided.settings) == ("projection", {"data_std": 0.4})
    assert (samples.sampler.output, samples.sampler.num_steps) == ("state", 4)
    assert Path(value["page"]).is_file()
    assert Measurement.load(Path(value["measurement"]["uri"])).noise_std == 5.0
    again = call(case.snapshot.path, *arguments[:-1])
    assert again.exit_code == 0, again.output
    assert "2 volumes cached" in again.stdout
    assert re.search(r"trilinear +\d", again.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 1, "is a volume store. Name the volume of it that is to be measured: --volume ID"),
        (("--volume", "v0"), 1, "The model was trained on volumes of the patient of v0"),
        (("--volume", "v2", "--guide", "best"), 1, "'best' is none; there are projection"),
        (("--volume", "v2", "--strength", "-1"), 2, "Invalid value for '--strength'"),
        (("--volume", "v2", "--set", "sample.redraw.most=2"), 2, "samples of a measurement are not drawn again"),
    ],
)
def test_refusals(call: Called, case: Case, arguments: tuple[str, ...], code: int, message: str) -> None:
    found = call(case.snapshot.path, *arguments)
    assert found.exit_code == code, found.output
    assert message in words(found.stderr)


def test_an_operator_that_cannot_be_read_and_a_missing_measurement_are_named(
    call: Called, case: Case, tmp_path: Path
) -> None:
    call.operator.write_text("- downsampling\n")
    found = call(case.snapshot.path, "--volume", "v2")
    assert found.exit_code == 2
    assert "the operator" in words(found.stderr)
    call.operator.write_text("name: downsampling\nfactor: 2\n")
    found = call(tmp_path / "nothing")
    assert found.exit_code == 1
    assert "does not exist" in words(found.stderr)
    np.save(tmp_path / "views.npy", np.zeros((1, 8, 8)))
    found = call(tmp_path / "views.npy", "--volume", "v2")
    assert found.exit_code == 1
    assert "volume 'v2' is one of a store, and" in words(found.stderr)
    found = call(tmp_path / "views.npy")
    assert found.exit_code == 1
    assert "an array without geometry" in words(found.stderr)


def test_radiographs_are_measured_by_their_own_geometry(call: Called, tmp_path: Path) -> None:
    films = tmp_path / "films"
    pixels = np.full((100, 100), 60000.0)
    pixels[30:70, 30:70] = 60000 * np.exp(-0.02 * 100)  # 100 mm of water
    write_radiograph(films / "1.dcm", pixels)
    write_radiograph(films / "2.dcm", pixels, ViewPosition="LL", PatientOrientation=["P", "F"])
    call.operator.write_text(
        "name: projection\nsource_to_isocentre_mm: 1600\nsource_to_detector_mm: 1800\nnoise_std: 5\n"
        "radiograph: {air_value: 60000, water_per_mm: 0.02}\n"
    )
    shown = call(films, "--samples", "1", "--steps", "2", "--json")
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout.splitlines()[-1])
    measurement = Measurement.load(Path(value["measurement"]["uri"]))
    assert [view["angle_deg"] for view in measurement.operator["views"]] == [0.0, 90.0]
    assert measurement.operator["detector_pitch_mm"] == [18.0, 18.0]  # a voxel of 16 mm, 1.125 times as large
    assert any("counts as air, though it has a shadow" in note for note in value["reconstruction"]["warnings"])
    again = call(films, "--samples", "1", "--steps", "2")
    assert "1 volumes cached" in again.stdout
    call.operator.write_text("name: projection\nradiograph: {air_value: 60000, water_per_mm: 0.02}\n")
    refused = call(films)
    assert refused.exit_code == 1
    assert "no DistanceSourceToDetector: set source_to_detector_mm in the operator" in words(refused.stderr)
    call.operator.write_text("name: downsampling\nfactor: 2\n")
    assert "Radiographs are measured by the operator projection" in words(call(films).stderr)


def test_runs_are_compared_by_operator_and_guide_without_paths_or_masks(case: Case, tmp_path: Path) -> None:
    operator = {"name": "mask", "region": "array", "kept": "A" * 300}
    how = ReconstructConfig.model_validate({"guide": "pigdm", "guide_settings": {"data_std": 0.5}})
    found = parameters(Wanted(tmp_path / "scan.nii.gz", case.checkpoint, operator, how))
    assert found["measure.operator.name"] == "mask"
    assert (found["reconstruct.guide"], found["reconstruct.guide_settings.data_std"]) == ("pigdm", 0.5)
    assert "measure.operator.kept" not in found
    assert "reconstruct.strength" not in found  # the guide's own
    assert not any(str(tmp_path) in str(value) for value in found.values())


def test_the_table_of_a_page_has_accuracy_where_the_truth_is_known_and_else_the_residual() -> None:
    found = {"unit": "mm", "num_samples": 2, "residuals": [1.0, 2.0], "truth": None}
    assert figures_table(found) == [{"volumes": 2, "residual (mm)": 1.5}]
    mean = {"psnr_db": 20.123, "ssim": 0.5, "error_hu": {"all": 50.04}, "residual": 3.0}
    row = {"volume": "mean", "PSNR (dB)": 20.12, "SSIM": 0.5, "error (HU)": 50.0, "residual (mm)": 3.0}
    assert figures_table(found | {"truth": {"accuracy": {"mean": mean}}}) == [row]
