"""Boolean arrays as text that JSON can hold: bits, compressed."""

import base64
import binascii
import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor


def text_of(value: Any, shape: tuple[int, ...], what: str, remedy: str) -> str:
    """The text of an array or tensor of booleans; of a text, the same.

    Args:
        value: what a setting has.
        shape: that it must have.
        what: name of the setting, for messages.
        remedy: a sentence for an array of another shape or type.
    Raises: ValueError: anything else, with the value's shape and type.
    """
    if isinstance(value, str):
        booleans_of(value, shape, what)  # refused at once, not at the first use
        return value
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape != shape:
        raise ValueError(
            f"{what} has shape {array.shape} and type {array.dtype}; expected booleans of the shape {shape}: {remedy}"
        )
    return base64.b64encode(zlib.compress(np.packbits(array).tobytes(), 9)).decode()


def booleans_of(text: str, shape: tuple[int, ...], what: str) -> Tensor:
    """The booleans of a text of `text_of`, on the CPU.

    Raises: ValueError: it is none, or of another shape.
    """
    count = math.prod(shape)
    reader = zlib.decompressobj()
    try:
        # no more than a mask can have, whatever the text says
        packed = reader.decompress(base64.b64decode(text, validate=True), count // 8 + 2)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(
            f"{what} is text that is no mask ({error}); expected what to_dict() of an operator writes."
        ) from error
    if len(packed) != (count + 7) // 8:
        raise ValueError(
            f"{what} is a mask of another shape than {shape}; make the operator for the grid and detector it was written for."
        )
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.bool_)).reshape(shape)
