"""The formats that volumes are exported to: one row each. A new one is a module beside this and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.exports.dicom import export_dicom
from storage.exports.nifti import export_nifti
from storage.exports.ome_zarr import export_ome_zarr
from storage.exports.origin import Origin
from storage.volume_store import VolumeStore


@dataclass(frozen=True)
class ExportFormat:
    """One format.

    Attributes:
        title: for people.
        ending: of a volume's file or folder, which is called by its id.
        write: (path, store, origin, plane_done) -> writes one level of a volume to a path where nothing is; `plane_done` is called
            for each plane. Whoever calls it makes what is written durable, and gives it its final name.
    """

    title: str
    ending: str
    write: Callable[[Path, VolumeStore, Origin, Callable[[], None]], None]


EXPORTS: dict[str, ExportFormat] = {
    "nifti": ExportFormat("NIfTI-1, gzipped", ".nii.gz", export_nifti),
    "dicom": ExportFormat("DICOM series, CT Image Storage", "", export_dicom),
    "ome-zarr": ExportFormat("OME-Zarr 0.5, a copy with all levels", ".ome.zarr", export_ome_zarr),
}
