"""3D residual networks of bottlenecks, and loading of their weights."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)

EXPANSION = 4
MIN_EDGE = 8
_COUNTER = "num_batches_tracked"  # bookkeeping of training; no effect on features
_NAMES_SHOWN = 8  # of keys that do not fit


class Blocks(NamedTuple):
    """One of a network's four stages.

    Attributes:
        planes: channels of its 3³ convolutions; it has four times as many outside.
        number: of bottlenecks.
        stride: of the first bottleneck's 3³ convolution.
        dilation: of all 3³ convolutions.
    """

    planes: int
    number: int
    stride: int = 1
    dilation: int = 1


class Bottleneck(nn.Module):
    """1³ → 3³ (strided or dilated) → 1³ convolutions with batch norm, and a shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_planes = planes * EXPANSION
        self.conv1 = nn.Conv3d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_planes)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_planes != out_planes:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm3d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, D, H, W) to (B, 4·planes, D/stride, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + shortcut, inplace=True)


class ResNet3d(nn.Module):
    """First convolution, max-pool 3/2, four stages of bottlenecks, global mean; always in evaluation mode, without gradients.

    Args:
        channels: of the input.
        first: the first convolution, with 64 output channels.
        stages: the four stages.
    """

    def __init__(self, channels: int, first: nn.Conv3d, stages: Sequence[Blocks]) -> None:
        super().__init__()
        self._channels = channels
        self.conv1 = first
        self.bn1 = nn.BatchNorm3d(first.out_channels)
        made, in_planes = [], first.out_channels
        for planes, number, stride, dilation in stages:
            blocks = [Bottleneck(in_planes, planes, stride, dilation)]
            in_planes = planes * EXPANSION
            blocks += [Bottleneck(in_planes, planes, 1, dilation) for _ in range(number - 1)]
            made.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = made
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: batch statistics would make a volume's features depend on its batch."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features of volumes.

        Args:
            x: volumes in the network's range, shape (B, C, D, H, W), edges of at least 8 voxels.
        Returns: shape (B, 4·planes of the last stage).
        Raises: ValueError: if the shape does not fit.
        """
        if x.dim() != 5 or x.shape[1] != self._channels or min(x.shape[2:]) < MIN_EDGE:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; {type(self).__name__} takes (B, {self._channels}, D, H, W) with edges >= "
                f"{MIN_EDGE}."
            )
        with float32_convolutions():
            h = F.relu(self.bn1(self.conv1(x)), inplace=True)
            h = F.max_pool3d(h, 3, stride=2, padding=1)
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                h = stage(h)
        return h.mean(dim=(2, 3, 4))


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Inside, cuDNN's convolutions round nothing to TF32, its default: features must not depend on the device."""
    settings: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def weights_digest(model: nn.Module) -> str:
    """`sha256:<hex>` over the sorted state dict: key bytes, then the value's little-endian bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def unfilled(kind: type[Network]) -> Network:
    """A network whose weights are yet to be set: drawing initial ones would take seconds."""
    with torch.device("meta"):
        network = kind()
    return network.to_empty(device="cpu")


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict in which nothing is missing, extra or misshapen; batch counters may be absent.

    Args:
        model: float32; values of other types are converted.
        state: the weights by key.
        where: the file, for messages.
    Raises: ValueError: keys or shapes are not this network's (listed).
    """
    own = model.state_dict()
    missing = sorted(key for key in own if key not in state and not key.endswith(_COUNTER))
    extra = sorted(set(state) - set(own))
    shared = sorted(set(state) & set(own))
    misshapen = [
        f"{key}: {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in shared
        if state[key].shape != own[key].shape
    ]
    if missing or extra or misshapen:
        raise ValueError(
            f"{where} does not hold weights of {type(model).__name__}: missing {_shorten(missing)}, extra {_shorten(extra)}, "
            f"misshapen {_shorten(misshapen)}. Name the file of this network's weights."
        )
    counters = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(_COUNTER)}
    model.load_state_dict({**counters, **state})


def _shorten(names: list[str]) -> str:
    """The first names of a list and how many more there are."""
    rest = len(names) - _NAMES_SHOWN
    return str(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
