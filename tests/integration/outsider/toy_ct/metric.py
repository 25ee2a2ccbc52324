"""A metric: how much air there is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prdit_models.metrics.metric import About, Comparison, Figure


@dataclass(frozen=True)
class AirSettings:
    below_hu: float = -900.0


class Air:
    settings = AirSettings
    figures: Mapping[str, About] = {"toy_air_share_gap": About("Toy: share of air, generated minus real")}

    def of_volume(self, hu, setting):
        return float((hu < setting.settings["toy-air"].below_hu).mean())

    def compare(self, real, generated, setting):
        shares = [float(np.mean(side.seen["toy-air"])) for side in (generated, real)]
        gap = Figure(shares[0] - shares[1], len(real.ids), len(generated.ids), note="0 where both have as much air.")
        return Comparison({"toy_air_share_gap": gap}, details={"real": shares[1], "generated": shares[0]})


METRIC = Air()
