"""What every format shares: the hash of a scan's values."""

import hashlib

import numpy as np
import pytest

from storage.sources.source import pixel_digest

HU = np.random.default_rng(0).integers(-32768, 32767, (3, 5, 4), endpoint=True).astype(np.int16)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, ">i2", np.int32])
def test_digest_is_of_values_not_of_types(dtype: object) -> None:
    assert pixel_digest(HU.astype(dtype)) == hashlib.sha256(HU.astype("<i2").tobytes()).hexdigest()
    assert pixel_digest(np.asfortranarray(HU.astype(dtype))) == pixel_digest(HU)


@pytest.mark.parametrize("value", [0.5, 32768.0, -40000.0, np.inf, np.nan])
@pytest.mark.filterwarnings("error")
def test_digest_of_values_that_are_no_int16(value: float) -> None:
    hu = HU.astype(np.float32)
    hu[2, 1, 1] = value
    assert pixel_digest(hu) == hashlib.sha256(hu.astype("<f4").tobytes()).hexdigest()
    assert pixel_digest(hu) != pixel_digest(HU)
