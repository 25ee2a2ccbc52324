"""The interface of a feature extractor, how volumes are put into its network, and the table of extractors."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.extractors.resnet import float32_convolutions
from prdit_models.registry import Registry

Size = tuple[int, int, int]
_AXES = {"S": 0, "I": 0, "P": 1, "A": 1, "L": 2, "R": 2}  # directions of the axes of a volume, z, y, x: SPL
_AGAINST = "IAR"
_RECIPE = 1  # of the arithmetic of `Input.of`


@dataclass(frozen=True)
class Input:
    """How volumes are put into a network.

    Attributes:
        size: edges (z, y, x) that volumes are resized to; None: as they are.
        hu: Hounsfield units that become `values`, what is outside saturates; None: the model's window becomes the model's range.
        values: range of the network's input.
        axes: directions in which the axes of the network's input point, three of S or I, P or A, L or R in any order; a volume's
            axes (z, y, x) are SPL.
        channels: equal channels of the network's input.

    Raises: ValueError: at construction, an empty range, a size that is not positive, or other axes.
    """

    size: Size | None = None
    hu: tuple[float, float] | None = None
    values: tuple[float, float] = (0.0, 1.0)
    axes: str = "SPL"
    channels: int = 1

    def __post_init__(self) -> None:
        if sorted(_AXES.get(letter, -1) for letter in self.axes) != [0, 1, 2]:
            raise ValueError(f"axes is {self.axes!r}; expected one letter each of S or I, P or A, L or R, such as SPL.")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size is {list(self.size)}; expected three edges of at least 1 voxel, z, y, x.")
        for name, ends in (("hu", self.hu), ("values", self.values)):
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name} is {list(ends)}; the lower end must lie below the upper.")
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; expected at least 1.")

    def of(self, hu: Tensor, window: HounsfieldWindow) -> Tensor:
        """What the network is given.

        Axes that shrink are averaged ("area"), then those that grow are interpolated linearly between voxel centres.

        Args:
            hu: shape (B, D, H, W), axes (z, y, x).
            window: of the model that the volumes belong to.
        Returns: shape (B, channels, …), the axes in the order of `axes`.
        """
        x = hu.to(torch.float32)
        if self.size is not None:
            x = _resized(x.unsqueeze(1), self.size).squeeze(1)
        if self.hu is None:
            x = window.to_model(x)
        else:
            (low, high), (first, last) = self.hu, self.values
            x = ((x - low) / (high - low)).clamp(0, 1) * (last - first) + first
        x = x.permute(0, *(1 + _AXES[letter] for letter in self.axes))
        x = x.flip([1 + place for place, letter in enumerate(self.axes) if letter in _AGAINST])
        return x.unsqueeze(1).expand(-1, self.channels, -1, -1, -1)


def _resized(x: Tensor, size: Size) -> Tensor:
    smaller = tuple(min(new, old) for new, old in zip(size, x.shape[2:], strict=True))
    if smaller != tuple(x.shape[2:]):
        x = F.interpolate(x, smaller, mode="area")
    return x if smaller == size else F.interpolate(x, size, mode="trilinear", align_corners=False)


@dataclass(frozen=True)
class Extractor:
    """A feature network, ready to use, and the statement that goes with its numbers wherever they appear.

    Attributes:
        name: in the table of extractors.
        title: the network in words.
        weights: digest of its weights.
        width: length of a volume's features.
        statement: what distances can be compared with, one sentence for report and metrics.
        network: maps what `input` makes to (B, width), or to maps (B, width, …), whose mean is taken; in float32.
        input: how volumes are put in.
        random: whether its weights are random.
    """

    name: str
    title: str
    weights: str
    width: int
    statement: str
    network: Callable[[Tensor], Tensor]
    input: Input
    random: bool = False

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the weights and of how volumes are put in: features of equal digests can be compared."""
        values = {"weights": self.weights, "input": asdict(self.input), "recipe": _RECIPE}
        return "sha256:" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def input_size(self) -> Size | None:
        """Edges (z, y, x) that volumes are resized to; None: as they are."""
        return self.input.size

    def to(self, device: torch.device) -> "Extractor":
        """Move the network; the extractor itself."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    @torch.no_grad()
    def features(self, hu: Tensor, window: HounsfieldWindow) -> Tensor:
        """Features of volumes, on the device of the volumes.

        Args:
            hu: saturated to the window, shape (B, D, H, W), axes (z, y, x).
            window: of the model that the volumes belong to.
        Returns: float32, shape (B, width).
        Raises: ValueError: the network refuses the volumes, or gives something of another shape.
        """
        with float32_convolutions():
            found = self.network(self.input.of(hu, window))
        if not isinstance(found, Tensor) or found.dim() < 2 or tuple(found.shape[:2]) != (len(hu), self.width):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"The feature network {self.title} gives {got} for {len(hu)} volume(s); expected ({len(hu)}, {self.width}), or "
                "maps of that many channels. Correct evaluate.extractor, or use another file."
            )
        return found.flatten(2).mean(2).float() if found.dim() > 2 else found.float()


class ExtractorSettings(Protocol):
    """A row of the table: a frozen dataclass whose fields are `evaluate.extractor` of a configuration, beside the name.

    A field `path` says where a file is, not what is in it: it enters neither cache keys nor MLflow, so a digest must stand beside
    it.
    """

    name: ClassVar[str]

    def load(self) -> Extractor:
        """The extractor.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file has another digest or content than expected, or a package is missing.
        """


EXTRACTORS: Registry[type[Any]] = Registry(
    "extractor",
    "prdit.extractors",
    {
        "auto": "prdit_models.metrics.extractors.auto:Auto",
        "astra": "prdit_models.metrics.extractors.astra:Astra",
        "medicalnet": "prdit_models.metrics.extractors.medicalnet:MedicalNetFile",
        "file": "prdit_models.metrics.extractors.from_file:FromFile",
        "random": "prdit_models.metrics.extractors.random:RandomFeatures",
    },
    needs=("name", "load"),
)


def key_of(settings: ExtractorSettings) -> dict[str, Any]:
    """What decides the features, as JSON values: name and settings, without the path of a file."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]
    values.pop("path", None)
    return {"name": settings.name} | values


def checked_bytes(path: Path, sha256: str) -> bytes:
    """The content of a file that is exactly the expected one.

    Args:
        path: of the file.
        sha256: expected SHA-256, hex, with or without a leading `sha256:`.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another SHA-256.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"evaluate.extractor.path is {path}, and there is no such file. Correct the path, or choose another extractor."
        ) from error
    found, expected = hashlib.sha256(data).hexdigest(), sha256.lower().removeprefix("sha256:")
    if found != expected:
        raise ValueError(
            f"Feature weights {path} have SHA-256 {found}, expected {expected}: another or damaged file. Fetch it again, or "
            "correct the digest in the configuration (evaluate.extractor.sha256) if the change is intended."
        )
    return data


def check_sha256(name: str, value: str) -> None:
    """Raise ValueError unless a setting is a SHA-256 in hex, with or without a leading `sha256:`."""
    digits = value.lower().removeprefix("sha256:")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"{name} is {value!r}; expected the 64 hex digits that sha256sum prints for the file.")
