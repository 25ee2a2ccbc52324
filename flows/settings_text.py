"""Settings as YAML text, in files and on the command line: one sentence for whatever is wrong with them, with file and line."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from storage.errors import ConfigError
from tasks.run.settings import SettingsError, wrong

_LARGEST = 2**20  # bytes; a configuration has a few thousand


class _Loader(yaml.SafeLoader):
    """Plain values only, and an error where a key is given twice: PyYAML takes the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    f"the key {key!r} is given twice, in lines {lines[key]} and {line}; leave one of them"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


def read_settings(path: Path, what: str = "the configuration", example: str = "base: small") -> dict[str, Any]:
    """The settings of a YAML file.

    Args:
        path: of it.
        what, example: what the file is, and a line of one, for messages.

    Raises: ConfigError: it cannot be read, is not YAML, gives a key twice, or holds no mapping.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{what} {path} has more than {_LARGEST} bytes; that is no file of settings")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{what} {path} is not UTF-8 text (line {line}, byte {error.start}); save it as UTF-8"
        ) from error
    values = parse(text, f"{what} {path}")
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise ConfigError(f"{what} {path} {found}; expected a mapping of settings, such as `{example}`")
    return values


def parse(text: str, where: str) -> Any:
    """The value of YAML text.

    Args:
        text: one document.
        where: what it is, for the message.
    Raises: ConfigError: it is not YAML of plain values.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {_reason(error.problem or error.context or 'not YAML')}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}, line {line}: a character that YAML does not allow, {chr(error.character)!r}"
            if isinstance(error.character, int)
            else f"{where}, line {line}: {error.reason}"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist
        raise ConfigError(f"{where}: {error}") from error


def _reason(problem: str) -> str:
    if "could not determine a constructor for the tag" in problem:
        tag = problem.rpartition("tag ")[2].replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag} is not allowed; settings are numbers, text, lists and mappings"
    return f"not YAML: {problem}"


@contextmanager
def explained(what: str, model: type[BaseModel]) -> Iterator[None]:
    """Turn pydantic's account of wrong settings into ours.

    Args:
        what: the settings, for the message.
        model: of them; its keys are named where one is unknown.
    Raises: ConfigError: settings are wrong; every problem is listed.
    """
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{what}:\n{explain(error, model)}") from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem: dotted key, what is wrong, and the keys that would be known."""
    lines = []
    for problem in error.errors():
        place = problem["loc"]
        key = ".".join(str(part) for part in place)
        if place and place[-1] == "[key]":
            name = ".".join(str(part) for part in place[:-1])
            lines.append(
                f"  {name}: not a name; use lower-case letters, digits and hyphens, such as local-2, and quotes around digits alone"
            )
        elif problem["type"] == "extra_forbidden":
            known = _known_keys(model, place[:-1])
            lines.append(f"  {key}: unknown key. Known here: {', '.join(known)}")
        elif isinstance(found := problem.get("ctx", {}).get("error"), SettingsError):
            lines += [f"  {key}{'' if line.startswith(':') else '.'}{line}" for line in str(found).splitlines()]
        elif problem["type"] == "value_error":
            lines.append(f"  {key + ': ' if key else ''}{found}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: not given, and it has no default")
        else:
            lines.append(f"  {key}: {wrong(problem)}")
    return "\n".join(lines)


def _known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    parts = list(place)
    while parts:
        annotation: Any = model.model_fields[str(parts.pop(0))].annotation
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            parts = parts[1:]
        options = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
        nested = [part for part in options if issubclass(part, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return sorted(model.model_fields)
