"""`prdit models`: versions of the registered model, promotion, rollback. Heavy libraries are imported where they are needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Json, SiteOrConfig, Workdir, clear_errors, example, installed_settings, show_result

if TYPE_CHECKING:
    from storage.documents.promotion import Decision
    from storage.registry import ModelVersion, Registry

_REASON = "Why, for those who read it later; in MLflow and in the decisions."
_SHOWN_TAGS = (
    "prdit.family",
    "prdit.volume_size",
    "prdit.step",
    "prdit.train_patients",
    "prdit.train_volumes",
    "prdit.snapshot",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    models = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        help="Versions of the registered model: champion, challenger.",
    )
    models.command("ls", epilog=example("prdit models ls"))(ls)
    models.command("show", epilog=example("prdit models show champion"))(show)
    models.command("promote", epilog=example('prdit models promote 3 --reason "read by two radiologists"'))(promote)
    models.command("rollback", epilog=example('prdit models rollback --reason "grain in the lungs"'))(rollback)
    app.add_typer(models, name="models")


def ls(config: SiteOrConfig = None, workdir: Workdir = None, as_json: Json = False) -> None:
    """List the versions of the registered model, oldest first, with what was decided about each."""
    with clear_errors():
        registry, _ = _opened(config, workdir)
        versions = [_row(one) for one in registry.versions()]
        value = {"model": registry.name, "mlflow": registry.uri, "versions": versions}
        show_result(value, as_json, lambda: _table(value))


def show(
    version: Annotated[str, typer.Argument(help="Number or alias of a version.")] = "champion",
    config: SiteOrConfig = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Show one version and every decision about it."""
    with clear_errors():
        from tasks.retrain.decisions import decisions

        registry, folder = _opened(config, workdir)
        found = _found(registry, version)
        made = [
            one for one in decisions(folder) if found.version in (one.challenger, one.champion, one.champion_before)
        ]
        value = {**_row(found), "tags": dict(found.tags), "decisions": [one.to_json() for one in made]}
        show_result(value, as_json, lambda: _details(value, made))


def promote(
    version: Annotated[str, typer.Argument(help="Number or alias of the version that becomes champion.")],
    reason: Annotated[str, typer.Option(help=_REASON)],
    config: SiteOrConfig = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Make a version champion: what `models:/prdit@champion` names from then on, and what challengers are compared with."""
    with clear_errors():
        from storage.errors import ConfigError
        from tasks.retrain.decisions import promote as run_promote

        if not reason.strip():
            raise ConfigError("--reason is empty; say why, for those who read it later.")
        registry, folder = _opened(config, workdir)
        decision = run_promote(registry, folder, _found(registry, version).version, reason=reason, by="command")
        show_result(decision.to_json(), as_json, lambda: _sentence(decision))


def rollback(
    reason: Annotated[str, typer.Option(help=_REASON)] = "",
    config: SiteOrConfig = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Make the champion before the last promotion champion again. Exit 2, and nothing changed, where there is none."""
    with clear_errors():
        from tasks.retrain.decisions import rollback as run_rollback

        registry, folder = _opened(config, workdir)
        decision = run_rollback(registry, folder, reason=reason)
        show_result(decision.to_json(), as_json, lambda: _sentence(decision))


def _opened(config: str | None, workdir: Path | None) -> "tuple[Registry, Path]":
    """The registered model of a working folder's MLflow, and the folder of its decisions."""
    from flows.installation import registry_uri
    from storage.registry import Registry

    place = Path(installed_settings(config, workdir=workdir).workdir).resolve()
    return Registry(registry_uri(place), workdir=place), place / "decisions"


def _found(registry: "Registry", version: str) -> "ModelVersion":
    from storage.errors import ConfigError

    found = registry.find(version)
    if found is None:
        versions = registry.versions()
        known = [*(alias for one in versions for alias in one.aliases), *(str(one.version) for one in versions)]
        raise ConfigError(
            f"Model {registry.name} of MLflow at {registry.uri} has no version {version!r}; it has {', '.join(known) or 'none'}."
        )
    return found


def _row(version: "ModelVersion") -> dict[str, Any]:
    """One version, as `--json` gives it."""
    tags = version.tags
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "created": version.created,
        "checkpoint": version.checkpoint.model_dump(mode="json"),
        "run_id": version.run_id,
        "train_patients": tags.get("prdit.train_patients", ""),
        "train_volumes": tags.get("prdit.train_volumes", ""),
        "snapshot": tags.get("prdit.snapshot", ""),
        "decision": tags.get("prdit.decision", ""),
        "reason": tags.get("prdit.reason", ""),
        "refused": version.refused,
    }


def _table(value: dict[str, Any]) -> str:
    if not value["versions"]:
        return f"MLflow at {value['mlflow']} has no version of model {value['model']}: no retraining has registered one yet."
    lines = [
        f"{'version':>7}  {'aliases':<20}  {'created (UTC)':<19}  {'checkpoint':<12}  {'trained on':<13}  decision"
    ]
    for row in value["versions"]:
        digest = row["checkpoint"]["digest"].removeprefix("sha256:")[:12]
        patients = f"{row['train_patients']} patients" if row["train_patients"] else "not known"
        what = (
            f"refused: {row['refused']}"
            if row["refused"]
            else ": ".join(filter(None, (row["decision"], row["reason"])))
        )
        aliases = ", ".join(row["aliases"])
        lines.append(
            f"{row['version']:>7}  {aliases:<20}  {row['created'][:19]}  {digest}  {patients:<13}  {what}".rstrip()
        )
    return "\n".join(lines)


def _details(value: dict[str, Any], made: "list[Decision]") -> str:
    lines = [f"version {value['version']}" + (f" ({', '.join(value['aliases'])})" if value["aliases"] else "")]
    lines += [f"checkpoint {value['checkpoint']['digest']}", f"MLflow run {value['run_id'] or 'not known'}"]
    lines += [f"{tag.removeprefix('prdit.')} {value['tags'][tag]}" for tag in _SHOWN_TAGS if tag in value["tags"]]
    if value["refused"]:
        lines.append(f"must not be promoted: {value['refused']}")
    return "\n".join([*lines, *(f"{one.created[:19]}  {_sentence(one)}" for one in made)])


def _sentence(decision: "Decision") -> str:
    champion = "no champion" if decision.champion is None else f"champion is version {decision.champion}"
    before = "" if decision.champion_before in (None, decision.champion) else f" (before: {decision.champion_before})"
    about = "" if decision.challenger in (None, decision.champion) else f"version {decision.challenger} "
    return f"{about}{decision.action} by {decision.by}: {champion}{before}. {decision.reason}"
