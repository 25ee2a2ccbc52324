"""A metric: how much air there is."""

from collections.abc import Mapping

import numpy as np

from prdit_models.metrics.metric import Comparison, Figure


class Air:
    titles: Mapping[str, str] = {"toy_air_share_gap": "Toy: share of air, generated minus real"}

    def of_volume(self, hu, setting):
        return float((hu < -900).mean())

    def compare(self, real, generated, setting):
        shares = [float(np.mean(side.seen["toy-air"])) for side in (generated, real)]
        gap = Figure(shares[0] - shares[1], len(real.ids), len(generated.ids), note="0 where both have as much air.")
        return Comparison({"toy_air_share_gap": gap}, details={"real": shares[1], "generated": shares[0]})


METRIC = Air()
