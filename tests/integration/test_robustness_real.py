"""The awkward real files, folder by folder: what each is was looked up with pydicom and ITK, and by eye.

A folder that is not there is skipped by its name. Limits are the default ones, but for those that a test names.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from storage.documents.verdicts import IngestReport
from storage.errors import SourceError
from storage.geometry import AIR_HU, Volume
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.corpus.readers import PlainSeries, by_simple_itk, of_image, of_volume


class Found:
    """What became of one folder."""

    def __init__(self, source: Path, root: Path, config: IngestConfig) -> None:
        self.source = source
        self.report: IngestReport | None = None
        self.error = ""
        try:
            self.report = ingest(source, root / "store", config, runner=Local(1))
        except SourceError as error:
            self.error = str(error)
        used = [*self.report.committed, *self.report.unchanged] if self.report else []
        left = [*self.report.skipped, *self.report.quarantined] if self.report else []
        self.codes = Counter(str(entry.reason) for entry in left)
        self.messages = {str(entry.reason): str(entry.message) for entry in left}
        self.store = VolumeStore.open(root / "store") if used else None
        self.ids = [str(entry.volume_id) for entry in used]

    def volume(self) -> Volume:
        """The only volume."""
        (volume_id,) = self.ids
        assert self.store is not None
        return self.store.read_level(volume_id)

    def scan(self) -> Any:
        """What is recorded of the only volume's scan."""
        assert self.store is not None
        return self.store.commit_record(self.ids[0]).scan


@pytest.fixture
def look(real_ct: Path, tmp_path: Path) -> Any:
    """Ingest one folder."""

    def ingest_it(name: str, **limits: Any) -> Found:
        folder = real_ct / "robustness" / name
        if not folder.exists():
            pytest.skip(f"{folder} is not there")
        settings: dict[str, Any] = {"spacing_mm": 2.0, "num_levels": 1} | limits
        return Found(folder, tmp_path, IngestConfig(**settings))

    return ingest_it


def some_places(volume: Volume, rng_seed: int, margin: int) -> np.ndarray:
    """200 random places in the middle of a volume."""
    size = np.asarray(volume.hu.shape)
    return volume.world_mm(np.random.default_rng(rng_seed).uniform(margin, size - 1 - margin, (200, 3)))


def test_head_with_tilt(look: Any) -> None:
    """Twelve slices of a head phantom, tilted by 18.5°, BodyPartExamined BRAIN: no chest."""
    assert look("head_phantom_gantry_tilt").codes == {"other_body_part": 1, "unknown_format": 1}


def test_head_with_tilt_is_too_few_slices_where_heads_are_wanted(look: Any) -> None:
    assert look("head_phantom_gantry_tilt", excluded_body_parts=()).codes == {"too_few_slices": 1, "unknown_format": 1}


def test_head_with_tilt_is_placed_right(look: Any) -> None:
    """With limits that let it in: HU at slice centres as plain pydicom has them, and the tilt of the header."""
    found = look(
        "head_phantom_gantry_tilt",
        excluded_body_parts=(),
        min_slices=8,
        min_length_mm=0.0,
        min_width_mm=0.0,
        spacing_mm=0.5,
    )
    uid = pydicom.dcmread(found.source / "I210", stop_before_pixels=True).SeriesInstanceUID
    plain = PlainSeries(found.source, str(uid))
    volume = found.volume()
    assert found.scan().tilt_deg == pytest.approx(18.5, abs=0.05)
    index = np.random.default_rng(0).integers((3, 150, 150), (9, 360, 360), (200, 3))
    world = plain.places[index[:, 0]] + index[:, 2:] @ plain.linear[:, :1].T + index[:, 1:2] @ plain.linear[:, 1:].T
    error = np.abs(of_volume(volume, world) - plain.hu[tuple(index.T)])
    assert np.median(error) <= 6.0  # noise between voxels of 0.48 mm
    assert np.corrcoef(of_volume(volume, world), plain.hu[tuple(index.T)])[0, 1] > 0.98


def test_localizer(look: Any) -> None:
    found = look("head_phantom_localizer")
    assert found.codes == {"localizer": 1, "dicomdir": 1}
    assert found.ids == []


def test_pages_and_surviews(look: Any) -> None:
    """Five secondary captures under one UID, and the directory file."""
    found = look("head_phantom_exam_summary_mixed")
    if found.report is None:  # nothing in it is CT
        assert "secondary_capture" in found.error
        return
    assert set(found.codes) == {"secondary_capture", "dicomdir"}


def test_legacy_converted(look: Any) -> None:
    """Three slices as single images and as frames of one, of 38 × 23 pixels that are 0 and 1: never a chest."""
    found = look("legacy_enhanced_multiframe")
    assert found.ids == []
    assert found.codes == {"too_few_slices": 2, "unknown_format": 1}


def test_legacy_converted_is_read(look: Any) -> None:
    """With limits of size that let it in it is refused by its values: 0 and 1 are no HU."""
    found = look("legacy_enhanced_multiframe", min_slices=2, min_length_mm=0.0, min_width_mm=0.0)
    assert found.ids == []
    assert found.codes == {"not_hu": 2, "unknown_format": 1}


def test_low_resolution_chest(look: Any) -> None:
    """A series, the same chest as NRRD (listed once), another chest as NRRD with values to -1141, and a map of labels."""
    found = look("lowres_chest_CIP")
    assert found.codes == {
        "duplicate_volume": 1,
        "not_hu": 1,
        "unknown_format": 1,
    }  # ct-64.nrrd; lm-64.nrrd; License.txt
    assert len(found.ids) == 2
    assert found.store is not None
    by_format = {found.store.commit_record(volume_id).scan.format: [] for volume_id in found.ids}  # type: ignore[union-attr]
    for volume_id in found.ids:
        by_format[found.store.commit_record(volume_id).scan.format].append(found.store.read_level(volume_id))  # type: ignore[union-attr]
    (dicom,), nrrds = by_format["dicom"], by_format["nrrd"]
    folder = found.source / "ct-64Dicom"
    uid = str(pydicom.dcmread(folder / "IMG0001.dcm", stop_before_pixels=True).SeriesInstanceUID)
    world = some_places(dicom, 0, 12)
    agreement = [np.corrcoef(of_volume(dicom, world), other)[0, 1] for other in (
        PlainSeries(folder, uid).at(world), of_image(by_simple_itk(folder, uid), world)
    )]  # fmt: skip
    assert min(agreement) > 0.985  # a cubic spline on voxels of 4 mm, read between them by trilinear weights
    for name in ("ct-64.nrrd", "TestInput.nrrd"):
        image = sitk.ReadImage(str(found.source / name), sitk.sitkFloat64)
        middle = np.asarray(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
        nearest = min([dicom, *nrrds], key=lambda one: np.abs(_middle(one) - middle).max())
        assert np.abs(_middle(nearest) - middle).max() < 2.0
        world = some_places(nearest, 1, 12)
        assert np.corrcoef(of_volume(nearest, world), of_image(image, world))[0, 1] > 0.98
        assert nearest.hu.min() == AIR_HU


def _middle(volume: Volume) -> np.ndarray:
    return volume.world_mm((np.asarray(volume.hu.shape) - 1) / 2)


def test_two_slices_without_modality(look: Any) -> None:
    """CT image storage without Modality is CT; two slices are too few."""
    found = look("no_modality_single_slice")
    assert found.codes == {"too_few_slices": 1, "unknown_format": 1}


def test_single_slices_and_reformats(look: Any) -> None:
    """Two single axial slices of two people; coronal and sagittal reformats, named as derived whatever their RescaleType."""
    found = look("single_slice_and_reformats_CC-BY-4.0_COVID-19-NY-SBU")
    assert found.codes == {"too_few_slices": 2, "derived_reformat": 4}


def test_transfer_syntaxes_of_one_slice(look: Any) -> None:
    """One slice in sixteen files under one SOP instance and UID: ten are equal, six were coded with loss, none is a volume."""
    found = look("transfer_syntaxes")
    assert found.ids == []
    assert found.codes.pop("unknown_format") == 1
    # Equal pixels repeat; of the others the place is taken, or what is left are too few slices: both say why.
    assert set(found.codes) <= {"too_few_slices", "duplicate_slices", "derived_reformat"}
    assert sum(found.codes.values()) >= 1
