"""The one place where a stored configuration becomes a network."""

from pkgutil import resolve_name
from typing import Any

from prdit_models.networks.config import NetworkConfig

Network = Any  # a PRDiT or a RefinedPRDiT: modules with `config`, `prepared` and the published keys


def build_network(config: NetworkConfig, *, attention: str = "auto", checkpointing: bool = False) -> Network:
    """A fresh network of a configuration: a `PRDiT`, or a `RefinedPRDiT` of a cascade.

    Args:
        config: of one network or of a cascade, see `prdit_models.networks.config.network_config`.
        attention, checkpointing: see `PRDiT`.
    """
    return resolve_name(config.network)(config, attention=attention, checkpointing=checkpointing)
