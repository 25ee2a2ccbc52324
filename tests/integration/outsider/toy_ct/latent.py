"""A denoiser of the autoencoder's latents, which a critic pushes towards real ones: two optimisers that step in turn."""

from dataclasses import dataclass

import torch
from torch import nn

from prdit_models.diffusion.sampling import sample
from prdit_models.families.denoiser import adamw
from prdit_models.networks.weights import load_weights
from toy_ct.codec import Codec


@dataclass(frozen=True)
class LatentSettings:
    """Settings of the denoiser.

    Attributes:
        critic_lr: learning rate of the critic.
        critic_every: the critic steps once per this many steps.
    """

    critic_lr: float = 1e-3
    critic_every: int = 1


class Latent(nn.Module):
    """A frozen codec, a denoiser, a critic with a counter: a float64 buffer without axes."""

    def __init__(self, channels):
        super().__init__()
        self.codec = Codec(channels)
        self.denoiser = nn.Conv3d(channels + 1, channels, 3, padding=1)
        self.critic = nn.Conv3d(channels, 1, 3, padding=1)
        self.register_buffer("turns", torch.zeros((), dtype=torch.float64))

    def denoise(self, latents, t):
        time = (t.float() / 1000).expand(len(latents)).view(-1, 1, 1, 1, 1).expand(-1, 1, *latents.shape[2:])
        return self.denoiser(torch.cat([latents, time], 1))


class LatentFamily:
    title = "toy latent denoiser"
    settings = LatentSettings
    processes = ("cosine",)
    offers = ""
    needs = "toy latents"
    scale = 1
    turns = ("denoiser", "critic")

    def describe(self, settings, given):
        if given.process.prediction != "image":
            raise ValueError(f"process.prediction is {given.process.prediction!r}; the toy predicts the image.")
        return {"codec": dict(given.start)}

    def build(self, description, *, attention="auto", checkpointing=False):
        return Latent(description["codec"]["channels"])

    def begin(self, module, settings, start):
        load_weights(module.codec, start, "They must be those of the autoencoder.")

    def freeze(self, module, settings):
        module.codec.requires_grad_(False)

    def optimizers(self, module, training):
        rates = {"denoiser": training.lr, "critic": training.settings.critic_lr}
        parts = {"denoiser": module.denoiser, "critic": module.critic}
        return {turn: adamw([({"lr": rates[turn]}, list(part.parameters()))], 0.0) for turn, part in parts.items()}

    def draw(self, turn, description, training, shape, generator):
        latents = (description["codec"]["channels"], *(n // 2 for n in shape[1:]))
        t, eps = training.process.draw_times(1, generator)[0], training.process.noise(latents, generator)
        return {"t": t, "eps": eps}

    def losses(self, turn, network, batch, training):
        process = training.process
        if turn == "critic":
            network.turns += 1
            if int(network.turns) % training.settings.critic_every:
                return None
        with torch.no_grad():
            latents = network.codec.encoder(batch.volumes)
        t, eps = batch.draws["t"], batch.draws["eps"]
        image = network.denoise(process.q_sample(latents, t, eps), t)
        if turn == "critic":
            return {"loss": network.critic(image.detach()).mean() - network.critic(latents).mean().clamp(max=1.0)}
        fooled = -network.critic(image).mean()
        losses = process.losses(image, latents, eps, t)
        return {"loss": losses["loss"] + 1e-3 * fooled, "loss_image": losses["loss_image"]}

    def validate(self, module, held_out, training, batch_size):
        with torch.no_grad():
            latents, process = module.codec.encoder(held_out.volumes), training.process
            found = {}
            for name, t in process.validation_times().items():
                noise = [torch.Generator().manual_seed(place) for place in held_out.places]
                eps = torch.stack([process.noise(tuple(latents.shape[1:]), generator) for generator in noise])
                times = t.expand(len(latents))
                image = module.denoise(process.q_sample(latents, times, eps), times)
                found[name] = float(process.losses(image, latents, eps, times)["loss"])
        return {"loss": sum(found.values()) / len(found)} | found

    def evaluations(self, process, request):
        return process.evaluations(request.sampler)

    def check(self, description, process, request):
        self.evaluations(process, request)

    def generate(self, module, process, request, generators, callback=None):
        codec = module.codec
        result = sample(
            lambda x, t: module.denoise(x, t),
            process,
            request.sampler,
            volume_size=8,
            generators=generators,
            in_channels=codec.encoder.out_channels,
            callback=callback,
        )
        return codec.decoder(result.x0 if request.output == "image" else result.x)


FAMILY = LatentFamily()
