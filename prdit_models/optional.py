"""Packages that only some families need: imported when one is asked for, not with prdit."""

from importlib import import_module
from types import ModuleType


def optional(module: str, extra: str, what: str) -> ModuleType:
    """A module of an optional package.

    Args:
        module: its name.
        extra: of prdit, which installs it.
        what: needs it, in words.
    Raises: ValueError: it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(
            f"{what} needs the package {package}, which cannot be imported ({error}): pip install 'prdit[{extra}]'."
        ) from error
