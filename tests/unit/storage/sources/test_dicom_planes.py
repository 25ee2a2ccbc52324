"""What the header of one image says, in one form however it is written."""

from typing import Any

import pytest
from pydicom.dataset import Dataset

from storage.sources.dicom_planes import plane_of


@pytest.mark.parametrize(
    ("tag", "attribute", "values", "expected"),
    [
        ("AcquisitionNumber", "acquisition", ["1", "01", "+1", "1.0"], "1"),
        ("TemporalPositionIdentifier", "temporal_position", ["3", "003"], "3"),
        ("StackID", "stack_id", ["2", "02", " 2 "], "2"),
        ("StackID", "stack_id", ["A", "A "], "A"),
        ("AcquisitionNumber", "acquisition", ["", None], ""),
        ("ConvolutionKernel", "kernel", ["B40f", "B40F", "b40f "], "B40F"),
        ("ConvolutionKernel", "kernel", [["Br40", "3"], ["BR40", "3"]], "BR40\\3"),
    ],
)
def test_what_tells_volumes_apart_has_one_form(tag: str, attribute: str, values: list[Any], expected: str) -> None:
    for value in values:
        header = Dataset()
        setattr(header, tag, value)
        assert getattr(plane_of(header, "a"), attribute) == expected
