"""One row per family of parity entries: what is done about it, and by which check.

* checked: the product is compared with the arrays.
* oracle-only: published behaviour the product does not have; our own restatement in tests/oracles is compared.
* documentation: nothing to compute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from tests.parity import checks_metrics, checks_models, checks_oracles, checks_process
from tests.parity.measure import Measure
from tests.parity.sets import Entry

Status = Literal["checked", "oracle-only", "documentation"]
Check = Callable[[Path, Entry], list[Measure]]


@dataclass(frozen=True)
class Family:
    """Entries whose id matches `pattern` (fnmatch).

    Attributes:
        pattern, status, check, note: the row.
        places: where its check has something to say beyond the CPU in float32: `device` if it computes on tensors, `bf16` if
            what it computes is run under autocast, too.
    """

    pattern: str
    status: Status
    check: Check | None = None
    note: str = ""
    places: frozenset[str] = frozenset()


_DEVICE, _BF16 = frozenset({"device"}), frozenset({"device", "bf16"})


FAMILIES = (
    Family("patches_*", "checked", checks_models.check_patches, places=_DEVICE),
    Family("unpatchify_*", "checked", checks_models.check_unpatchify, places=_DEVICE),
    Family("state_dict_names", "checked", checks_models.check_state_dict_names),
    Family("timestep_embedding", "checked", checks_models.check_timestep_embedding, places=_DEVICE),
    Family("pos_enc", "checked", checks_models.check_position_table),
    Family("local_*", "checked", checks_models.check_local, places=_BF16),
    Family("full_*", "checked", checks_models.check_full, places=_BF16),
    Family("encode_*", "checked", checks_models.check_encode, places=_BF16),
    Family("init_stats", "checked", checks_models.check_init_stats),
    Family("q_sample", "checked", checks_process.check_q_sample, places=_DEVICE),
    Family("gen_noise_scale", "checked", checks_process.check_noise_scale),
    Family("respacing", "checked", checks_process.check_respacing),
    Family("sampler_coefficients", "checked", checks_process.check_coefficients),
    Family("sampler_pc_*", "checked", checks_process.check_sampler, places=_BF16),
    Family("sampler_ddim_*", "checked", checks_process.check_sampler, 'sampler "euler": Euler in angle', places=_BF16),
    Family("train_*", "checked", checks_process.check_train, places=_DEVICE),
    Family("ema_update", "checked", checks_process.check_ema, places=_DEVICE),
    Family("fid_*", "checked", checks_metrics.check_fid),
    Family("mmd_*", "checked", checks_metrics.check_mmd),
    Family("medicalnet_*", "checked", checks_metrics.check_medicalnet, places=_DEVICE),
    Family("ms_ssim*", "checked", checks_metrics.check_ms_ssim),
    Family("preproc_lidc", "checked", checks_oracles.check_lidc, "intensity; the store resamples in its own way"),
    Family("preproc_lidc_too_small", "oracle-only", checks_oracles.check_lidc, "the store pads with air"),
    Family("preproc_rad_t*_q0995", "checked", checks_oracles.check_rad, "from the box in HU on"),
    Family("preproc_rad_t*_q10", "oracle-only", checks_oracles.check_rad, "no published training without the cap"),
    Family("dataset_lidc_*", "oracle-only", checks_oracles.check_lidc_item),
    Family("splits", "oracle-only", checks_oracles.check_splits, "the product splits by patient and is sticky"),
    Family("preproc_rad_file", "documentation", note="layout of a published file; the store replaces it"),
    Family("config_numbers", "documentation", note="configuration is typed; numbers are not guessed from text"),
    Family("tf_state_dict_names", "documentation", note="the same names as state_dict_names"),
    Family("fm_euler_*", "checked", checks_process.check_flow_sampler, places=_BF16),
    Family("fm_heun_*", "checked", checks_process.check_flow_sampler, "two evaluations a step", places=_BF16),
    Family("fm_loss", "checked", checks_process.check_flow_loss, places=_BF16),
    Family("tf_full_*", "checked", checks_models.check_tf, 'ModelConfig(arithmetic="tf")', places=_BF16),
    Family("tf_sampler_*", "checked", checks_process.check_tf_sampler, "noise std 1", places=_BF16),
    Family("sr_forward*", "checked", checks_models.check_sr, places=_BF16),
)


def family_of(entry_id: str) -> Family:
    """The one family an entry belongs to.

    Raises: LookupError: if no family or more than one matches.
    """
    found = [family for family in FAMILIES if fnmatchcase(entry_id, family.pattern)]
    if len(found) != 1:
        raise LookupError(
            f"Parity entry {entry_id!r} matches {[family.pattern for family in found] or 'no family'}; every id needs exactly "
            "one row in tests/parity/registry.py."
        )
    return found[0]


def measure(folder: Path, entry: Entry) -> list[Measure]:
    """Run an entry's check (of a family that has one)."""
    family = family_of(entry["id"])
    assert family.check is not None, f"{entry['id']}: {family.status}, nothing to compare"
    return family.check(folder, entry)
