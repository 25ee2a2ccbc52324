"""One image of a DICOM series, classic or a frame of a multi-frame file: what its header says that decides which volume it is in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plane:
    """What the header of one image says.

    Attributes:
        file: relative path.
        frame: index of the frame in a multi-frame file, from 0; None where the file is one image.
        instance_uid: SOPInstanceUID.
        patient_id: in memory only, never written or put into a sentence.
        study_uid, frame_of_reference: UIDs, "" where absent.
        acquisition, kernel, temporal_position, stack_id: as text, "" where absent.
        shape: rows, columns.
        orientation: direction cosines of a row, then of a column; () where absent.
        pixel_mm: distance of rows, distance of columns; () where absent.
        position_mm: LPS centre of the first pixel; () where absent.
        position_unit_mm: value of the last digit written of each coordinate of the position; () where they are binary numbers.
        slope, intercept: HU = stored × slope + intercept; None where unknown.
        padding: lowest and highest stored value that is declared padding; None where none is.
        rescale_type: in capitals, "" where absent.
        image_type: the words of ImageType, in capitals.
        body_part: BodyPartExamined.
        number: InstanceNumber; None where unknown.
        num_in_acquisition: ImagesInAcquisition; None where unknown.
        fault: reason code and detail of why the image can be part of no volume, whatever the others are; None where it can.
    """

    file: str
    frame: int | None = None
    instance_uid: str = ""
    patient_id: str = ""
    study_uid: str = ""
    frame_of_reference: str = ""
    acquisition: str = ""
    kernel: str = ""
    temporal_position: str = ""
    stack_id: str = ""
    shape: tuple[int, int] = (0, 0)
    orientation: tuple[float, ...] = ()
    pixel_mm: tuple[float, ...] = ()
    position_mm: tuple[float, ...] = ()
    position_unit_mm: tuple[float, ...] = ()
    slope: float | None = None
    intercept: float | None = None
    padding: tuple[int, int] | None = None
    rescale_type: str = ""
    image_type: tuple[str, ...] = ()
    body_part: str = ""
    number: int | None = None
    num_in_acquisition: int | None = None
    fault: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """How sentences call the image."""
        return self.file if self.frame is None else f"{self.file}, frame {self.frame + 1}"
