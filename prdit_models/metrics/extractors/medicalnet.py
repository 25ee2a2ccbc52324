"""MedicalNet's 3D ResNet-50, the feature network of the published protocol; its weights are a file of the user's."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prdit_models.metrics.extractors.extractor import Extractor, Input, check_sha256, checked_bytes
from prdit_models.metrics.extractors.resnet import Blocks, ResNet3d, load_strictly, unfilled, weights_digest

FEATURE_WIDTH = 2048
# the last two stages are dilated instead of strided: output stride 8
STAGES = (Blocks(64, 3), Blocks(128, 4, stride=2), Blocks(256, 6, dilation=2), Blocks(512, 3, dilation=4))
INPUT = Input()  # the model's range at the model's resolution


class MedicalNet(ResNet3d):
    """3D ResNet-50 with dilated last stages and global average pooling.

    Source: Chen et al. 2019 (Med3D); SPEC §6.
    """

    def __init__(self) -> None:
        super().__init__(1, nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False), STAGES)


@dataclass(frozen=True)
class MedicalNetFile:
    """MedicalNet with weights from a file, such as resnet_50.pth of MedicalNet.

    Attributes:
        path: of the file, see `load_medicalnet`.
        sha256: SHA-256 that it must have.
    """

    name: ClassVar[str] = "medicalnet"
    path: str
    sha256: str

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)

    def load(self) -> Extractor:
        """The extractor. Raises: FileNotFoundError, ValueError: as `load_medicalnet`."""
        network, file = load_medicalnet(Path(self.path), self.sha256), Path(self.path).name
        statement = (
            f"ResNet-50 weights from {file}, the file's SHA-256 checked: distances compare with others in features of the same "
            "weights at the same resolution and window."
        )
        title = "MedicalNet 3D ResNet-50"
        return Extractor(self.name, title, weights_digest(network), FEATURE_WIDTH, statement, network, INPUT)


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
    state = _state(checked_bytes(path, sha256), path)
    network = unfilled(MedicalNet)
    load_strictly(network, {key.removeprefix("module."): value for key, value in state.items()}, str(path))
    return network


def _state(data: bytes, path: Path) -> Mapping[str, Tensor]:
    """The state dict in the bytes of a file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(data)
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} is neither a safetensors file nor a PyTorch file of weights alone ({type(error).__name__}). Name "
            "MedicalNet's resnet_50.pth, or its weights as .safetensors."
        ) from error
    return stored.get("state_dict", stored) if isinstance(stored, dict) else {}
