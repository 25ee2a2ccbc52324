"""`origin.json` beside encoded volumes: what they were encoded from, and by what."""

from typing import ClassVar, Literal

from storage.documents.checkpoint import Intensity, View
from storage.documents.document import Document
from storage.documents.snapshot import Digest


class EncodedOrigin(Document):
    """All that decides what a volume is encoded to, and the snapshot that it is in.

    Attributes:
        encoder: digest of the checkpoint whose network encodes.
        weights: which of its two sets.
        snapshot: digest of the snapshot.
        view, intensity, axes: how volumes are shown to the network.
        device: kind of device that computed; another one rounds differently.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "origin.json"
    WHAT: ClassVar[str] = "description of encoded volumes"
    REMEDY: ClassVar[str] = "Remove the folder: a training encodes the volumes again."

    encoder: Digest
    weights: Literal["ema", "raw"]
    snapshot: Digest
    view: View
    intensity: Intensity
    axes: str
    device: str
