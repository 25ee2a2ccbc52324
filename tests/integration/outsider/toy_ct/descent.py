"""A guide: one step of steepest descent on the residual, as long as brings it nearest to the measurement."""

from dataclasses import dataclass
from typing import Any, ClassVar

from prdit_models.diffusion.steering import Change, products, rms
from prdit_models.inverse.window import within_window


@dataclass(frozen=True)
class Descent:
    name: ClassVar[str] = "toy-descent"
    differentiates: ClassVar[bool] = False
    moves_state: ClassVar[bool] = False

    measured: Any
    strength: float = 1.0

    def change(self, image, state, level):
        residual = self.measured.residual(image)
        downhill = self.measured.adjoint(residual)
        moved = self.measured.linear(downhill)
        length = products(residual, moved) / products(moved, moved).clamp(min=1e-30)
        return Change(self.strength * length.view(-1, 1, 1, 1, 1) * downhill, rms(residual) + self.measured.noise_std)

    def ended(self, state, image):
        """Without voxels beyond the window, and with the measurement that the sampler reached."""
        wanted = self.measured.forward(state)
        return within_window(self.measured, state, wanted), within_window(self.measured, image, wanted)

    def to_dict(self):
        return {"name": self.name, "strength": self.strength}
