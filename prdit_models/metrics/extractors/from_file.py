"""A feature network of the user's own: a TorchScript file, or safetensors of a known network."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prdit_models.metrics.extractors.astra import ChestResNet
from prdit_models.metrics.extractors.extractor import Extractor, Input, Size, check_sha256, checked_bytes
from prdit_models.metrics.extractors.medicalnet import MedicalNet
from prdit_models.metrics.extractors.resnet import load_strictly, unfilled

_NETWORKS: dict[str, type[nn.Module]] = {"medicalnet": MedicalNet, "astra": ChestResNet}
_TORCHSCRIPT = "torchscript"


@dataclass(frozen=True)
class FromFile:
    """A network from a file, and how volumes are put into it.

    Attributes:
        path: of the file.
        sha256: SHA-256 that it must have.
        width: length of a volume's features.
        network: `torchscript`: the file is a TorchScript module, which maps (B, channels, …) to (B, width), or to maps
            (B, width, …) whose mean is taken. It is a program: load only files whose maker you trust. `medicalnet`, `astra`: the
            file has these networks' weights as safetensors.
        title: the network in words, for the report.
        size, hu, values, axes, channels: see `Input`.
    """

    name: ClassVar[str] = "file"
    path: str
    sha256: str
    width: int = 2048
    network: str = _TORCHSCRIPT
    title: str = "network from a file"
    size: Size | None = None
    hu: tuple[float, float] | None = None
    values: tuple[float, float] = (0.0, 1.0)
    axes: str = "SPL"
    channels: int = 1

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected at least 1.")
        if self.network not in (_TORCHSCRIPT, *_NETWORKS):
            raise ValueError(f"network is {self.network!r}; expected one of {_TORCHSCRIPT}, {', '.join(_NETWORKS)}.")
        self.input()

    def input(self) -> Input:
        """How volumes are put in."""
        return Input(self.size, self.hu, self.values, self.axes, self.channels)

    def load(self) -> Extractor:
        """The extractor.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has another SHA-256, or is not what `network` says.
        """
        path = Path(self.path)
        data = checked_bytes(path, self.sha256)
        network: Callable[[Tensor], Tensor]
        if self.network == _TORCHSCRIPT:
            network = _script(data, path)
        else:
            network = unfilled(_NETWORKS[self.network])
            try:
                state = safetensors.torch.load(data)
            except SafetensorError as error:
                raise ValueError(
                    f"{path} is not a safetensors file ({error}); network {self.network} needs one. For TorchScript, set "
                    "evaluate.extractor.network=torchscript."
                ) from error
            load_strictly(network, state, str(path))
        weights = "sha256:" + self.sha256.lower().removeprefix("sha256:") + f" {self.network}"
        statement = f"{self.title}, from {path.name}, the file's SHA-256 checked: distances compare with others in its features."
        return Extractor(self.name, self.title, weights, self.width, statement, network, self.input())


def _script(data: bytes, path: Path) -> torch.jit.ScriptModule:
    try:
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not a TorchScript file ({str(error).splitlines()[0]}). Save one by torch.jit.script(network).save(path), "
            f"or name the network whose weights it has: evaluate.extractor.network={' or '.join(_NETWORKS)}."
        ) from error
    return module.eval().float()
