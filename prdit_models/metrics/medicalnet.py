"""The 3D ResNet-50 whose pooled features the distances are measured in (MedicalNet architecture)."""

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_WIDTH = 2048
EXPANSION = 4
# (planes, blocks, stride, dilation) of the four stages; the last two are dilated instead of strided: output stride 8
STAGES = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 6, 1, 2), (512, 3, 1, 4))
MIN_EDGE = 8
_COUNTER = "num_batches_tracked"  # bookkeeping of training; no effect on features
_NAMES_SHOWN = 8  # of keys that do not fit


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


class MedicalNet(nn.Module):
    """3D ResNet-50 with dilated last stages and global average pooling; always in evaluation mode.

    Source: Chen et al. 2019 (Med3D); SPEC §6.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        stages = []
        in_planes = 64
        for planes, num_blocks, stride, dilation in STAGES:
            blocks = [Bottleneck(in_planes, planes, stride, dilation)]
            in_planes = planes * EXPANSION
            blocks += [Bottleneck(in_planes, planes, 1, dilation) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "MedicalNet":
        """Stay in evaluation mode: batch statistics would make a volume's features depend on its batch."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features of volumes.

        Args:
            x: volumes in model range [-1, 1], shape (B, 1, D, H, W), edges of at least 8 voxels.
        Returns: shape (B, 2048).
        Raises: ValueError: if the shape does not fit.
        """
        if x.dim() != 5 or x.shape[1] != 1 or min(x.shape[2:]) < MIN_EDGE:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; MedicalNet takes (B, 1, D, H, W) with edges >= {MIN_EDGE}."
            )
        with _float32_convolutions():
            h = F.relu(self.bn1(self.conv1(x)), inplace=True)
            h = F.max_pool3d(h, 3, stride=2, padding=1)
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                h = stage(h)
        return h.mean(dim=(2, 3, 4))


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Inside, cuDNN's convolutions round nothing to TF32, its default: features must not depend on the device."""
    settings: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def random_medicalnet(seed: int) -> MedicalNet:
    """The architecture with seeded random weights (He normal): one seed, one set of weights.

    Distances in such features compare runs of one project with each other; they are not the published figures.

    Args:
        seed: seed of the weights.
    """
    model = MedicalNet()
    generator = np.random.default_rng(
        seed
    )  # NumPy's normals are the same on every CPU; torch's depend on its vector width
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            fan_in = math.prod(module.weight.shape[1:])
            values = generator.standard_normal(tuple(module.weight.shape), dtype=np.float32)
            module.weight.data.copy_(torch.from_numpy(values).mul_(math.sqrt(2.0 / fan_in)))
    for module in model.modules():
        if isinstance(module, Bottleneck):  # without batch statistics the sum of branches grows: keep its variance
            module.bn3.weight.data.fill_(math.sqrt(0.5))
            if module.downsample is not None:
                module.downsample[1].weight.data.fill_(math.sqrt(0.5))  # type: ignore[operator]
    return model


def weights_digest(model: nn.Module) -> str:
    """`sha256:<hex>` over the sorted state dict: key bytes, then the value's little-endian bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def load_medicalnet(path: Path, sha256: str) -> MedicalNet:
    """Published weights from a file that is exactly the expected one.

    Args:
        path: a `.safetensors` file, or a PyTorch file read with `weights_only=True`, with the state dict at the top or under
            `state_dict`; a leading `module.` of the keys is dropped.
        sha256: expected SHA-256 of the file, hex, with or without a leading `sha256:`.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has another SHA-256, holds no state dict, or its keys or shapes are not this network's (listed).
    """
    data = Path(path).read_bytes()
    found, expected = hashlib.sha256(data).hexdigest(), sha256.lower().removeprefix("sha256:")
    if found != expected:
        raise ValueError(
            f"Feature weights {path} have SHA-256 {found}, expected {expected}: another or damaged file. Fetch it again, or "
            "correct the digest in the configuration if the change is intended."
        )
    if Path(path).suffix == ".safetensors":
        state: Mapping[str, Tensor] = safetensors.torch.load(data)
    else:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    model = MedicalNet()
    _load_strictly(model, {key.removeprefix("module."): value for key, value in state.items()}, path)
    return model


def _load_strictly(model: MedicalNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict in which nothing is missing, extra or misshapen; batch counters may be absent."""
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
            f"{path} does not hold MedicalNet ResNet-50 weights: missing {_shorten(missing)}, extra {_shorten(extra)}, "
            f"misshapen {_shorten(misshapen)}. Features would be random; use resnet_50.pth of MedicalNet."
        )
    model.load_state_dict({**own, **state})


def _shorten(names: list[str]) -> str:
    """The first names of a list and how many more there are."""
    rest = len(names) - _NAMES_SHOWN
    return str(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
