"""Radiographs of one patient by their path: DX, CR, XA and XRF images as measurements, apart from any store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from storage.errors import SourceError
from storage.files import sha256_json
from storage.sources.dicom_codecs import PIXEL_DATA_TAGS, FrameReader, num_frames
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_frames import GROUP_TAGS, frame_headers, has_frames
from storage.sources.dicom_pixels import without_overlays
from storage.sources.dicom_planes import declared_padding
from storage.sources.dicom_values import tag_text
from storage.sources.files import FoundFile, check_source, open_file, walk_source
from storage.sources.formats import read_source_file
from storage.sources.radiograph_header import C_ARMS, FILMS, TAGS, RadiographHeader, exposed, radiograph_header

MAX_EDGE = 8192  # rows or columns: 43 cm in pixels of 0.1 mm are 4300
_TAGS = (*TAGS, *GROUP_TAGS)


@dataclass(frozen=True)
class Radiograph:
    """One image, not read yet.

    Attributes:
        place: of its file, and its frame, for messages.
        file: path relative to the source.
        frame: from 0.
        header: what is known of it.
    """

    place: str
    file: str
    frame: int
    header: RadiographHeader


@dataclass(frozen=True)
class Radiographs:
    """The radiographs of a file or a folder, of one patient and study.

    Attributes:
        source: folder of the files.
        images: in the order of the files' paths and of their frames.
        digest: hash of the hashes of their files, whatever they are called.
        notes: sentences about files that are none.
    """

    source: Path
    images: tuple[Radiograph, ...]
    digest: str
    notes: tuple[str, ...]

    def read(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Pixel values of every image after the modality LUT, and which of them were exposed, (rows, columns).

        Raises: SourceError: an image cannot be decoded.
        """
        for file, images in groupby(self.images, key=lambda image: image.file):
            of_file = list(images)
            try:
                with open_file(self.source, file) as stream:
                    data = read_data_set(stream, tags=(*_TAGS, *PIXEL_DATA_TAGS))
                headers = _headers(data)
                reader = FrameReader(data, MAX_EDGE)
                for image in of_file:
                    header = headers[image.frame if len(headers) > 1 else 0]
                    yield _pixels(reader, image.frame, header)
            except DicomFault as fault:
                raise SourceError(f"{of_file[0].place} cannot be used: {fault.detail}. Leave it out.") from fault
            except DECODE_ERRORS as error:
                raise SourceError(
                    f"{of_file[0].place} cannot be read ({type(error).__name__}). Leave it out."
                ) from error


def find_radiographs(path: Path, frames: Sequence[int] = ()) -> Radiographs:
    """The radiographs of a file, or of a folder and the folders below.

    Args:
        path: where they are.
        frames: numbers from 1 of the frames that are used of files with several; all when empty.
    Raises: SourceError: nothing is there, no radiograph, one that cannot be used, or those of several patients or studies.
    """
    if path.is_file():
        names, source = [path.name], path.parent
    else:
        check_source(path)
        names, source = sorted(found.path for found in walk_source(path) if isinstance(found, FoundFile)), path
    images, digests, owners, others, copies = [], [], set(), 0, 0
    for name in names:
        digest, facts = read_source_file(source, name)
        if digest in digests:
            copies += 1
            continue
        found = _images(source, name, frames) if facts.format == "dicom" else []
        if not found:
            others += 1
            continue
        images += found
        digests.append(digest)
        owners.add((facts.patient_id, facts.study))
    if not images:
        raise SourceError(
            f"{path} has no radiograph ({others} other files). Give DICOM images of class DX, CR, XA or XRF, projections in mm of "
            "water as .npy, or an operator that measures a volume."
        )
    for what, each in (("patients (PatientID)", 0), ("studies (StudyInstanceUID)", 1)):
        if len({owner[each] for owner in owners}) > 1:
            raise SourceError(f"{path} has radiographs of several {what}. Give those of one examination.")
    left_out = [f"{others} files that are no radiographs were left out"] if others else []
    if copies:
        left_out.append(f"{copies} files were left out that are copies of others, byte by byte")
    return Radiographs(source, tuple(images), "sha256:" + sha256_json(sorted(digests)), tuple(left_out))


def _images(source: Path, name: str, frames: Sequence[int]) -> list[Radiograph]:
    """The images of a DICOM file; none where it is no radiograph."""
    try:
        with open_file(source, name) as stream:
            data = read_data_set(stream, pixels=False, tags=_TAGS)
        if tag_text(data, "SOPClassUID") not in FILMS | C_ARMS:
            return []
        count, headers = num_frames(data), _headers(data)
        wanted = [number - 1 for number in frames] if frames and count > 1 else range(count)
        if any(not 0 <= frame < count for frame in wanted):
            raise DicomFault("bad_number", f"it has {count} frames, and frames asks for {max(frames)}")
        found = []
        for frame in wanted:
            header = headers[frame if len(headers) > 1 else 0]
            facts = radiograph_header(header, frame, count if len(headers) == 1 else 1)
            place = f"{source / name}, frame {frame + 1}" if count > 1 else str(source / name)
            found.append(Radiograph(place, name, frame, facts))
    except DicomFault as fault:
        raise SourceError(f"{source / name} cannot be used: {fault.detail}. Leave it out, or correct it.") from fault
    except DECODE_ERRORS as error:
        raise SourceError(f"{source / name} cannot be read ({type(error).__name__}). Leave it out.") from error
    same = {(image.header.angle_deg, image.header.tilt_deg) for image in found}
    if len(found) > 1 and len(same) == 1 and found[0].header.angle_deg is not None:
        raise SourceError(
            f"{source / name} has {len(found)} frames of one view ({found[0].header.angle_deg:g}°), between which the patient "
            "moved. Choose one: frames: [1] under radiograph in the operator."
        )
    return found


def _headers(data: Dataset) -> list[Dataset]:
    """One header for all frames, or one each."""
    return frame_headers(data, TAGS) if has_frames(data) else [data]


def _pixels(reader: FrameReader, frame: int, header: Dataset) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    padding = declared_padding(header)
    stored = without_overlays(reader.read(frame), header, padding)
    values = np.asarray(apply_modality_lut(stored, header), dtype=np.float32)
    valid = exposed(header, (stored.shape[0], stored.shape[1]))
    if padding is not None:
        valid &= (stored < padding[0]) | (stored > padding[1])
    return values, valid
