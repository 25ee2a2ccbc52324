"""Features of a network with seeded random weights, for runs without trained ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from prdit_models.metrics.extractors.extractor import Extractor
from prdit_models.metrics.extractors.medicalnet import FEATURE_WIDTH, INPUT, MedicalNet
from prdit_models.metrics.extractors.resnet import Bottleneck, unfilled, weights_digest

STATEMENT = (
    "the feature network has seeded random weights, so FID and MMD compare runs with each other only, not with papers."
)


@dataclass(frozen=True)
class RandomFeatures:
    """MedicalNet's architecture with random weights.

    Attributes:
        seed: of the weights.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more.")

    def load(self) -> Extractor:
        """The extractor; it needs no file."""
        network = random_medicalnet(self.seed)
        title = "random features (3D ResNet-50 with seeded random weights)"
        return Extractor(
            self.name, title, weights_digest(network), FEATURE_WIDTH, STATEMENT, network, INPUT, random=True
        )


def random_medicalnet(seed: int) -> MedicalNet:
    """The architecture with seeded random weights (He normal): one seed, one set of weights.

    Distances in such features compare runs of one project with each other; they are not the published figures.
    """
    model = unfilled(MedicalNet)
    generator = np.random.default_rng(
        seed
    )  # NumPy's normals are the same on every CPU; torch's depend on its vector width
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv3d):
            fan_in = math.prod(module.weight.shape[1:])
            values = generator.standard_normal(tuple(module.weight.shape), dtype=np.float32)
            module.weight.data.copy_(torch.from_numpy(values).mul_(math.sqrt(2.0 / fan_in)))
    for module in model.modules():
        if isinstance(module, Bottleneck):  # without batch statistics the sum of branches grows: keep its variance
            module.bn3.weight.data.fill_(math.sqrt(0.5))
            if module.downsample is not None:
                module.downsample[1].weight.data.fill_(math.sqrt(0.5))  # type: ignore[operator]
    return model
