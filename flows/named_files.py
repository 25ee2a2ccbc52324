"""YAML files: the site's, and those called by name: benchmarks, policies, configurations of prdit and of other packages."""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from storage.errors import ConfigError

SITE_FILE = Path(".prdit") / "site.yaml"
_GROUP = "prdit.configurations"
_BENCHMARKS = Path(__file__).with_name("benchmarks")
_ROWS = "benchmark/"
_POLICIES = Path(__file__).with_name("policies")


@cache
def config_files() -> dict[str, Path]:
    """Configurations by name: prdit's, and those of packages with an entry point in the group `prdit.configurations`."""
    places = [(point.dist.name if point.dist else point.name, point.value) for point in entry_points(group=_GROUP)]
    found: dict[str, Path] = {}
    for owner, package in (("prdit", "flows.configs"), *places):
        for folder in _folders(owner, package):
            for path in sorted(folder.rglob("*.yaml")):
                name = path.relative_to(folder).with_suffix("").as_posix()
                if name in found and found[name] != path:
                    raise ConfigError(
                        f"the configuration {name!r} is registered twice: {found[name]}, and {path} of {owner}. "
                        "Rename one of them."
                    )
                found[name] = path
    return found


def _folders(owner: str, package: str) -> list[Path]:
    """Folders of a package; one without `__init__.py` may have several."""
    try:
        return [Path(path) for path in import_module(package).__path__]
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the configurations of {owner} cannot be read: {package!r}, which it names in the entry-point group {_GROUP}, is "
            f"not an importable package ({type(error).__name__}: {error}). Repair or uninstall {owner}."
        ) from error


def config_names() -> list[str]:
    """Names of the configurations that come with prdit and with packages that add some; without the rows of benchmarks, which are
    run by the flow `benchmark`.
    """
    return sorted(name for name in config_files() if not name.startswith(_ROWS))


def policy_names() -> list[str]:
    """Names of the policies of retraining that come with prdit."""
    return sorted(path.stem for path in _POLICIES.glob("*.yaml"))


def policy_file(name: str) -> Path:
    """File of a policy that comes with prdit."""
    return _POLICIES / f"{name}.yaml"


@cache
def benchmark_files() -> dict[str, Path]:
    """Benchmarks that come with prdit, by name."""
    return {f"benchmark/{path.stem}": path for path in sorted(_BENCHMARKS.glob("*.yaml"))}


def is_file_name(name_or_path: str) -> bool:
    """Whether a configuration or policy is given as a YAML file, not by name."""
    return Path(name_or_path).suffix in (".yaml", ".yml")
