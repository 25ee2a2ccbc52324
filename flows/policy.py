"""Policies of retraining by name: the YAML files of `flows/policies/`."""

from pathlib import Path

from flows.named_files import is_file_name, policy_file, policy_names
from flows.settings_text import explained, read_settings
from storage.errors import ConfigError
from tasks.retrain.policy import RetrainPolicy


def load_policy(name_or_path: str) -> RetrainPolicy:
    """A policy by name or YAML file.

    Raises: ConfigError: no such policy, not YAML, an unknown key or a value out of range (every problem is listed), or a policy
        that can never fire.
    """
    if is_file_name(name_or_path):
        path = Path(name_or_path)
    elif name_or_path in policy_names():
        path = policy_file(name_or_path)
    else:
        raise ConfigError(
            f"policy {name_or_path!r} is not a policy of prdit; there are {', '.join(policy_names())}, and files whose name ends "
            "in .yaml"
        )
    values = read_settings(path, "the policy", "min_new_volumes: 10")
    with explained(f"policy {name_or_path!r}", RetrainPolicy):
        return RetrainPolicy.model_validate(values)
