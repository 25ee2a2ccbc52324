"""The autoencoder: a family without a process, from which others start and which is not sampled."""

from dataclasses import dataclass

import torch
from torch import nn

from prdit_models.families.denoiser import adamw
from prdit_models.networks.prdit import trainable_parameters


@dataclass(frozen=True)
class CodecSettings:
    """Settings of the autoencoder.

    Attributes:
        channels: of the latents.
    """

    channels: int = 2

    def __post_init__(self):
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; expected at least 1.")


class Codec(nn.Module):
    """Blocks of 2³ voxels to latents and back."""

    def __init__(self, channels):
        super().__init__()
        self.encoder = nn.Conv3d(1, channels, 2, stride=2)
        self.decoder = nn.ConvTranspose3d(channels, 1, 2, stride=2)

    def forward(self, volumes):
        return self.decoder(self.encoder(volumes))


class CodecFamily:
    title = "toy autoencoder"
    settings = CodecSettings
    processes = ()
    offers = "toy latents"
    needs = ""
    scale = 1
    turns = ("codec",)

    def describe(self, settings, given):
        return {"channels": settings.channels, "size": given.size}

    def build(self, description, *, attention="auto", checkpointing=False):
        return Codec(description["channels"])

    def begin(self, module, settings, start):
        pass

    def freeze(self, module, settings):
        pass

    def optimizers(self, module, training):
        return {"codec": adamw([({"lr": training.lr}, trainable_parameters(module))], training.weight_decay)}

    def draw(self, turn, description, training, shape, generator):
        return {}

    def losses(self, turn, network, batch, training):
        return {"loss": (network(batch.volumes) - batch.volumes).square().mean()}

    def validate(self, module, held_out, training, batch_size):
        volumes = held_out.volumes
        with torch.no_grad():
            return {"loss": float((module(volumes) - volumes).square().mean())}

    def evaluations(self, process, request):
        return 1

    def check(self, description, process, request):
        raise ValueError("A toy autoencoder draws nothing; train a toy-latent on it and sample that.")

    def generate(self, module, process, request, generators, callback=None):
        raise NotImplementedError


FAMILY = CodecFamily()
