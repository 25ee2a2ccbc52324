"""Policies of retraining by name: the YAML files of `flows/policies/`."""

from importlib.resources import files
from pathlib import Path

from flows.config import pydantic_explained
from flows.settings_text import read_settings
from storage.errors import ConfigError
from tasks.retrain.policy import RetrainPolicy

_FOLDER = Path(str(files("flows.policies")))


def policy_names() -> list[str]:
    """Names of the policies that come with prdit."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_policy(name_or_path: str) -> RetrainPolicy:
    """A policy by name or YAML file.

    Raises: ConfigError: no such policy, not YAML, an unknown key or a value out of range (every problem is listed), or a policy
        that can never fire.
    """
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        values = read_settings(Path(name_or_path))
    elif name_or_path in policy_names():
        values = read_settings(_FOLDER / f"{name_or_path}.yaml")
    else:
        raise ConfigError(
            f"policy {name_or_path!r} is not a policy of prdit; there are {', '.join(policy_names())}, and files whose name ends "
            "in .yaml"
        )
    with pydantic_explained(f"policy {name_or_path!r}", RetrainPolicy):
        return RetrainPolicy.model_validate(values)
