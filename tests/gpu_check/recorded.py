"""The recorded arrays of the published code, where they are, with the product on the device."""

from collections.abc import Iterator

import torch

from tests.gpu_check.parity_limits import BF16, TIME_TABLE, device_limit
from tests.gpu_check.report import Row, compared, skipped
from tests.gpu_check.setting import Setting
from tests.parity import registry, sets
from tests.parity.location import is_parity_set, parity_folder
from tests.parity.measure import Measure
from tests.parity.placement import computing_on

_TINY_PARAMETERS = 1.1e6
_LONG = "_n1000_"


def rows(setting: Setting) -> Iterator[Row]:
    """Each entry whose check computes on the device, in each precision that has something to say about it."""
    folder = parity_folder()
    if not is_parity_set(folder):
        yield skipped("recorded arrays", "not there; PRDIT_PARITY_DIR names their folder")
        return
    for entry_id, entry in sets.entries(folder).items():
        places = registry.family_of(entry_id).places
        if "device" not in places or (setting.tiny and not _is_small(entry_id, entry)):
            continue
        for precision in setting.precisions:
            if precision == "bf16" and "bf16" not in places:
                continue
            group = f"recorded arrays, {precision}"
            if setting.out_of_time:
                yield skipped(entry_id, "budget", group=group)
                continue
            with (
                computing_on(setting.device),
                torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False),
            ):
                measures = registry.measure(folder, entry)
            yield _worst(entry_id, measures, precision, group)


def _is_small(entry_id: str, entry: sets.Entry) -> bool:
    return entry.get("weights", {}).get("n_params", 0) <= _TINY_PARAMETERS and _LONG not in entry_id


def _worst(entry_id: str, measures: list[Measure], precision: str, group: str) -> Row:
    """The entry by the comparison that comes nearest to its limit."""

    def limit(measure: Measure) -> float:
        if precision == "bf16":
            return BF16 * measure.scale
        if entry_id == "timestep_embedding":
            return TIME_TABLE * measure.scale
        return device_limit(measure.tolerance, measure.scale)

    def nearness(measure: Measure) -> float:
        allowed = limit(measure)
        if not measure.error <= allowed:
            return float("inf")
        return measure.error / allowed if allowed else 0.0

    worst = max(measures, key=nearness)
    return compared(entry_id, worst.error, limit(worst), note=worst.what, group=group, comparisons=len(measures))
