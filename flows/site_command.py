"""`prdit site`: the settings of an installation, with what each means. Imports wait until the command needs them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Json, clear_errors, given_path, show_result

if TYPE_CHECKING:
    from pydantic import BaseModel

_VARIABLES = ("PRDIT_DATABASE", "PRDIT_ARTIFACTS", "PRDIT_AUTH")
_SECRET = re.compile(r"password|passwd|secret|token|credential", re.IGNORECASE)
_HIDDEN = "<hidden>"
_USER_PART = re.compile(r"(?<=://)([^/@:]+):[^/@]+@")


def site(
    write: Annotated[
        bool, typer.Option("--write", help="Write them into a file that has none yet, each with its description.")
    ] = False,
    path: Annotated[
        Path | None, typer.Option("--file", help="The file (default: .prdit/site.yaml).", parser=given_path)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the settings of this installation: those of .prdit/site.yaml, and defaults for the rest; secrets are hidden.

    With --write, a file with every setting and its description is made, to be edited; one that exists is never replaced.
    """
    with clear_errors():
        from flows.named_files import SITE_FILE
        from flows.site import SiteConfig, load_site
        from storage.errors import AlreadyExistsError
        from storage.files import put_if_absent

        place = path or SITE_FILE
        if write:
            text = "\n".join([*_introduction(), *_lines(SiteConfig(), "", hide=False), ""])
            if not put_if_absent(place, text.encode()):
                raise AlreadyExistsError(f"{place} exists and is not replaced. Edit it, or move it away first.")
            show_result({"file": str(place)}, as_json, lambda: f"wrote {place}")
            return
        found = load_site(place)
        value = {
            "file": str(place) if place.exists() else None,
            "settings": public(found),
            "environment": _set_variables(),
        }
        show_result(value, as_json, lambda: "\n".join([_origin(value), *_lines(found, "", hide=True)]))


def _introduction() -> list[str]:
    return [
        "# Settings of this installation. Every key may be left out: its default then holds. `prdit site` prints what is in force.",
        "# The environment variables PRDIT_DATABASE, PRDIT_ARTIFACTS and PRDIT_AUTH come before the keys under `services`.",
        "",
    ]


def _origin(value: dict[str, Any]) -> str:
    origin = (
        f"# of {value['file']}" if value["file"] else "# defaults: there is no .prdit/site.yaml (`prdit site --write`)"
    )
    return "\n".join([origin, *(f"# {name} is set, and comes before the key" for name in value["environment"])])


def _set_variables() -> list[str]:
    """Variables that come before keys; their values stay where they are."""
    import os

    return [name for name in _VARIABLES if os.environ.get(name)]


def public(model: "BaseModel") -> dict[str, Any]:
    """Settings without passwords, as JSON values."""
    return {
        name: public(value) if hasattr(value := getattr(model, name), "model_fields") else _public(name, _plain(value))
        for name in type(model).model_fields
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; a secret of pydantic stays hidden."""
    return _HIDDEN if hasattr(value, "get_secret_value") else list(value) if isinstance(value, tuple) else value


def _public(name: str, value: Any) -> Any:
    """A value, hidden where it is a secret: by the name of its key, or a password in an address."""
    if isinstance(value, dict):
        return {key: _public(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(name, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET.search(name) and not name.endswith(("_file", "_variable")):
        return _HIDDEN
    if name == "url":  # of a webhook: whoever has the address may post to it
        return re.sub(r"^(https?://[^/]+/).*$", rf"\1{_HIDDEN}", value)
    return _USER_PART.sub(rf"\1:{_HIDDEN}@", value)


def _example(kind: "type[BaseModel]", indent: str) -> Iterator[str]:
    """YAML of a part that is not used: defaults, and … where a value must be given."""
    values = {
        name: "…" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
    }
    model: BaseModel = kind.model_construct(None, **values)
    yield from _lines(model, indent, hide=False)


def _lines(model: "BaseModel", indent: str, *, hide: bool) -> Iterator[str]:
    """YAML of settings, each below its description."""
    import textwrap

    import yaml

    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if field.description:
            yield from textwrap.wrap(
                field.description, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if hasattr(value, "model_fields"):
            inner = list(_lines(value, indent + "  ", hide=hide))
            yield f"{indent}{name}:" + ("" if inner else " {}")
            yield from inner
            continue
        value = _public(name, _plain(value)) if hide else _plain(value)
        nested = isinstance(value, dict | list)
        text = yaml.safe_dump(
            value if nested else {name: value}, default_flow_style=nested, width=10**6, allow_unicode=True
        ).strip()
        yield f"{indent}{name}: {text}" if nested else f"{indent}{text}"
        if value is None and (kind := _model_of(field.annotation)):
            yield from (f"{indent}# {line}" for line in (f"{name}:", *_example(kind, "  ")))


def _model_of(annotation: Any) -> "type[BaseModel] | None":
    from typing import get_args

    from pydantic import BaseModel

    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return kinds[0] if kinds else None
