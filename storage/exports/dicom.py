"""Writing volumes as DICOM: a series of CT Image Storage, an axial image per plane; docs/export.md has the table of attributes.

Source: PS3.3 A.3 (CT Image IOD), C.8.2.1 (CT Image module), C.12.1 (SOP Common: SyntheticData).
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from storage.exports.origin import Origin, uid
from storage.geometry import Volume
from storage.volume_store import VolumeStore

# Tags of a scan that are true of the resampled volume, too (docs/data-model.md). Not ReconstructionDiameter and SliceThickness:
# the grid has others; not StudyInstanceUID and SeriesInstanceUID: these images are not those of the scanner.
_KEPT = (
    "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanOptions", "BodyPartExamined", "PatientPosition",
    "PatientSex", "KVP", "XRayTubeCurrent",
)  # fmt: skip
_MAKER = "prdit"
_WINDOWS = (("SOFT TISSUE", 40, 400), ("LUNG", -600, 1500))
_MAX_SHORT = 16  # characters of value representation SH; the store has kernels of up to 64
_SYNTHETIC_COMMENT = "Synthetic data: not a scan of a person. Research use only."
_GUIDED_COMMENT = "Synthetic data, drawn towards a measurement: shows the person who was measured. Research use only."


def export_dicom(path: Path, store: VolumeStore, origin: Origin, plane_done: Callable[[], None]) -> None:
    """Write one level of a volume as a folder of images, see `storage.exports.formats.ExportFormat.write`."""
    path.mkdir(parents=True)
    digits = max(4, len(str(origin.num_planes)))
    for image in series(store.read_level(origin.volume_id, origin.level), origin):
        pydicom.dcmwrite(path / f"{image.InstanceNumber:0{digits}d}.dcm", image, enforce_file_format=True)
        plane_done()


def series(volume: Volume, origin: Origin) -> Iterator[Any]:
    """The images of a volume, from inferior to superior: one data set, changed for each image, to be used at once.

    Args:
        volume: the level that `origin` is about.
        origin: what is known of it.
    """
    identity = origin.identity
    data = _series_header(volume, origin, identity)
    x_mm, y_mm, z_mm = volume.origin_mm
    for index, plane in enumerate(volume.hu):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid("image", identity, index)
        data.InstanceNumber = index + 1
        data.ImagePositionPatient = _decimals(x_mm, y_mm, z_mm + index * volume.spacing_mm[2])
        data.PixelData = np.ascontiguousarray(plane, dtype="<i2").tobytes()
        yield data


def read_image(path: Path) -> Any:
    """The data set of an exported image. Raises: what pydicom raises, OSError."""
    return pydicom.dcmread(path)


def _series_header(volume: Volume, origin: Origin, identity: str) -> Dataset:
    """What all images of a series have in common."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 192"
    data.Modality, data.ImageType = "CT", ["DERIVED", "SECONDARY", "AXIAL"]
    for name in ("StudyDate", "StudyTime", "ContentDate", "ContentTime", "PatientBirthDate"):  # not in a store
        setattr(data, name, "")
    for name in ("ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator", "PatientSex"):
        setattr(data, name, "")
    data.AcquisitionNumber = data.KVP = None
    data.PatientPosition = data.Manufacturer = ""
    _say_who(data, origin)
    data.StudyInstanceUID = uid("study", *_study(origin, identity))
    data.SeriesInstanceUID = uid("series", identity)
    data.FrameOfReferenceUID = uid("frame", *_place(origin, identity))
    data.SeriesNumber = origin.level + 1
    data.SeriesDescription = _series_description(origin)
    data.DerivationDescription = origin.description
    if origin.generated is None:
        data.DerivationCodeSequence = [_code("113085", "Spatial resampling")]
    data.ContributingEquipmentSequence = [_equipment(origin)]
    if origin.synthetic:
        data.SyntheticData = "YES"
        guided = origin.generated is not None and origin.generated.guided is not None
        data.ImageComments = _GUIDED_COMMENT if guided else _SYNTHETIC_COMMENT
    if "BodyPartExamined" not in data:
        data.Laterality = ""  # asked for where the body part may be one of a pair
    _place_pixels(data, volume)
    return data


def _say_who(data: Dataset, origin: Origin) -> None:
    """Patient and scanner: of a scan what the allow-list kept, of a generated volume that there is none."""
    if origin.generated is not None:
        checkpoint = origin.generated.checkpoint.removeprefix("sha256:")
        data.PatientID = f"SYNTHETIC-{checkpoint[:12]}-{origin.volume_id if origin.seed is None else origin.seed}"[:64]
        data.PatientName = f"SYNTHETIC^{origin.volume_id}"
        data.Manufacturer, data.ManufacturerModelName, data.BodyPartExamined = _MAKER, origin.generated.family, "CHEST"
        return
    data.PatientID, data.PatientName = origin.patient_key, ""
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "prdit: allow-list of attributes"
    for name in _KEPT:
        value = origin.attributes.get(name)
        if value is not None and not (name == "ConvolutionKernel" and len(value) > _MAX_SHORT):
            setattr(data, name, _as_tag(name, value))
    if (age := origin.attributes.get("age_years")) is not None:
        data.PatientAge = f"{age:03d}Y"
    if origin.attributes.get("contrast"):
        data.ContrastBolusAgent = "unspecified"


def _as_tag(name: str, value: Any) -> Any:
    if name == "XRayTubeCurrent":
        return round(value)
    return format_number_as_ds(float(value)) if name == "KVP" else value


def _study(origin: Origin, identity: str) -> tuple[str, ...]:
    """What a study is known by: volumes of one examination are in one, generated volumes in one each."""
    if origin.generated is not None:
        return (identity,)
    return origin.patient_key, str(origin.attributes.get("StudyInstanceUID", origin.volume_id))


def _place(origin: Origin, identity: str) -> tuple[str, ...]:
    """What a frame of reference is known by: the levels of one volume share it."""
    return (identity,) if origin.generated is not None else (origin.patient_key, origin.volume_id)


def _series_description(origin: Origin) -> str:
    what = "SYNTHETIC " if origin.synthetic else ""
    how = f"generated by {origin.generated.family}" if origin.generated is not None else "resampled by prdit"
    return f"{what}{how}, {origin.spacing_mm:g} mm"[:64]


def _equipment(origin: Origin) -> Dataset:
    """Source: PS3.16 CID 7005."""
    item = Dataset()
    generated = origin.generated is not None
    purpose = ("109100", "Synthesizing Equipment") if generated else ("109102", "Processing Equipment")
    item.PurposeOfReferenceCodeSequence = [_code(*purpose)]
    item.Manufacturer = item.ManufacturerModelName = _MAKER
    item.SoftwareVersions = version("prdit")
    item.ContributionDescription = origin.description
    return item


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _place_pixels(data: Dataset, volume: Volume) -> None:
    """Geometry and form of the pixels: signed 16 bit, stored values are HU."""
    width_mm, height_mm, thickness_mm = volume.spacing_mm
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.PixelSpacing = _decimals(height_mm, width_mm)
    (data.SliceThickness,) = _decimals(thickness_mm)
    data.Rows, data.Columns = volume.hu.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "1", "0", "HU"
    data.WindowCenterWidthExplanation = [name for name, _, _ in _WINDOWS]
    data.WindowCenter = [str(centre) for _, centre, _ in _WINDOWS]
    data.WindowWidth = [str(width) for _, _, width in _WINDOWS]
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"


def _decimals(*numbers: float) -> list[str]:
    """Numbers as decimal strings of at most 16 characters."""
    return [format_number_as_ds(float(number)) for number in numbers]
