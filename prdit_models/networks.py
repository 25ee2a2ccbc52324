"""The one place where a stored configuration becomes a network."""

from prdit_models.cascade import RefinedPRDiT
from prdit_models.config import CascadeConfig, NetworkConfig
from prdit_models.prdit import PRDiT

Network = PRDiT | RefinedPRDiT


def build_network(config: NetworkConfig, *, attention: str = "auto", checkpointing: bool = False) -> Network:
    """A fresh network of a configuration.

    Args:
        config: of one network or of a cascade, see `prdit_models.config.network_config`.
        attention, checkpointing: see `PRDiT`.
    """
    if isinstance(config, CascadeConfig):
        return RefinedPRDiT(config, attention=attention, checkpointing=checkpointing)
    return PRDiT(config, attention=attention, checkpointing=checkpointing)
