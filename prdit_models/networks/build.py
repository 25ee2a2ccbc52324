"""The one place where a stored configuration becomes a network."""

from prdit_models.networks.cascade import RefinedPRDiT
from prdit_models.networks.config import CascadeConfig, NetworkConfig
from prdit_models.networks.prdit import PRDiT

Network = PRDiT | RefinedPRDiT


def build_network(config: NetworkConfig, *, attention: str = "auto", checkpointing: bool = False) -> Network:
    """A fresh network of a configuration.

    Args:
        config: of one network or of a cascade, see `prdit_models.networks.config.network_config`.
        attention, checkpointing: see `PRDiT`.
    """
    if isinstance(config, CascadeConfig):
        return RefinedPRDiT(config, attention=attention, checkpointing=checkpointing)
    return PRDiT(config, attention=attention, checkpointing=checkpointing)
