"""What every format shares: the hash of a scan's values, errors as part of a sentence."""

import hashlib

import numpy as np
import pytest

from storage.geometry import AIR_HU, FILL_HU
from storage.sources.source import SourceVolume, oriented_digest, pixel_digest, short

HU = np.random.default_rng(0).integers(-32768, 32767, (3, 5, 4), endpoint=True).astype(np.int16)
CT = HU.clip(AIR_HU, None)


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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("decoder failed:\n  at byte 3"), "ValueError: decoder failed"),
        (ValueError("\n it ends too early.\n"), "ValueError: it ends too early"),
        (RuntimeError(": "), "RuntimeError"),
        (EOFError(), "EOFError"),
        (OSError(5, "Input/output error"), "OSError: Input/output error"),
    ],
)
def test_what_a_decoder_says_can_stand_in_a_sentence(error: Exception, text: str) -> None:
    assert short(error) == text


STORED = {  # values of CT (z, y, x) as (k, j, i), and the LPS steps of i, j, k
    "y flipped": (CT[:, ::-1], [[1, 0, 0], [0, -1, 0], [0, 0, 1]]),
    "turned by 180 degrees": (CT[:, ::-1, ::-1], [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
    "head first": (CT[::-1], [[1, 0, 0], [0, 1, 0], [0, 0, -1]]),
    "sagittal": (CT.transpose(2, 0, 1), [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "a little oblique": (CT[:, :, ::-1], [[-0.99, 0.14, 0], [0.14, 0.99, 0], [0, 0, 1]]),
}


@pytest.mark.parametrize("what", STORED)
def test_a_copy_has_one_digest_however_its_axes_are_stored(what: str) -> None:
    stored, steps = STORED[what]
    volume = SourceVolume(stored, (1.0,) * 3, (0.0,) * 3, np.array(steps, float), {}, pixel_digest(stored))
    assert volume.pixel_digest != pixel_digest(CT)
    assert oriented_digest(volume) == pixel_digest(CT)


@pytest.mark.parametrize("flip", [1, -1])
def test_fill_that_one_copy_declares_and_another_has_as_air_is_the_same(flip: int) -> None:
    declared = np.where(CT == AIR_HU, FILL_HU, CT).astype(np.float32)
    assert (declared == FILL_HU).any()
    steps = np.diag([flip, 1.0, 1.0])
    one = SourceVolume(declared[:, :, ::flip], (1.0,) * 3, (0.0,) * 3, steps, {}, pixel_digest(declared[:, :, ::flip]))
    assert oriented_digest(one) == pixel_digest(CT) != one.pixel_digest
