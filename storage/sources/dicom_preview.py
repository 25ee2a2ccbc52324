"""One image of a DICOM series for a preview, where its pixels can be read at little cost."""

import numpy as np
from numpy.typing import NDArray

from storage.sources.dicom_codecs import PIXEL_DATA_TAGS, FrameReader
from storage.sources.dicom_errors import DECODE_ERRORS
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_frames import GROUP_TAGS, frame_headers, has_frames
from storage.sources.dicom_values import tag_number
from storage.sources.files import open_file
from storage.sources.source import ScanRequest

MAX_BYTES = 64 << 20  # of a file
MAX_PIXELS = 2048 * 2048
_RESCALE = ("RescaleSlope", "RescaleIntercept")


def preview(request: ScanRequest) -> NDArray[np.float32] | None:
    """The image in the file that is the middle one by name, or the middle one of several in it, see `Format.preview`."""
    try:
        with open_file(request.source, request.files[len(request.files) // 2]) as stream:
            if stream.seek(0, 2) > MAX_BYTES:
                return None
            data = read_data_set(stream, tags=(*_RESCALE, *GROUP_TAGS, *PIXEL_DATA_TAGS))
        reader = FrameReader(data)
        if reader.form.rows * reader.form.columns > MAX_PIXELS:
            return None
        frame = reader.form.num_frames // 2
        stored = reader.read(frame)
        header = frame_headers(data, _RESCALE, [frame])[0] if has_frames(data) else data
    except DECODE_ERRORS:
        return None
    slope, intercept = (tag_number(header, name) for name in _RESCALE)
    return stored.astype(np.float32) * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
