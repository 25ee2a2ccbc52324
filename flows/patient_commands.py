"""`prdit lineage` and `prdit forget`: whose volumes something was made from, and how a patient is forgotten."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import (
    Json,
    Set,
    SiteOrConfig,
    Store,
    clear_errors,
    example,
    given_path,
    installed_settings,
    show_result,
)
from storage.bucket_path import BucketPath
from storage.places import as_place

_Workdirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--workdir",
        help="Working folder (default: the site's or the configuration's); repeat it for several.",
        parser=given_path,
    ),
]
logger = logging.getLogger("prdit.patients")
_FORGET = (
    example("prdit forget - --store .prdit/store")
    + " (asks for the PatientID, so that it does not land in the shell's history)\n\n`prdit forget --volume 6f1c… --yes`"
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("lineage", epilog=example("prdit lineage models:/prdit@champion"))(lineage)
    app.command("forget", epilog=_FORGET)(forget)


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="Run (name, folder, `latest`, MLflow id), checkpoint, samples or report (directory, reference as JSON, digest), "
            "models:/prdit@champion, snapshot (digest), id of a volume, or patient key."
        ),
    ],
    store: Store = None,
    config: SiteOrConfig = None,
    settings: Set = None,
    workdir: _Workdirs = None,
    as_json: Json = False,
) -> None:
    """Show whose volumes something was made from, and what was made of it: splits, models, samples, reports, registered versions.

    Patients are shown by their keys, which nobody can turn into a PatientID. What a forgotten patient was part of is marked.
    """
    with clear_errors():
        loaded, workdirs = _loaded(config, settings, store, workdir)
        found = _lineage(what, as_place(loaded.store), workdirs, loaded.ingest.key_file(as_place(loaded.store)))
        show_result(found.to_json(), as_json, found.text)


def _lineage(what: str, store: Path, workdirs: list[Path], key_file: Path) -> Any:
    from storage.errors import ConfigError
    from tasks.patients import lineage as lines
    from tasks.patients.made import made_in

    if _servers_are_down():
        logger.warning("MLflow of this folder does not run, so what it knows is left out: `prdit up` starts it")
    records = [one for workdir in workdirs for one in made_in(workdir)]
    runs: dict[str, str] = {}
    versions: list[Any] = []
    for tracked in _tracked(workdirs):
        from storage.registry import Registry

        records += tracked.made({one.digest for one in records})
        runs |= tracked.runs_of({one.digest for one in records})
        versions += Registry(tracked.uri).versions()
    known = lines.Known(store, workdirs, records, runs, versions)
    if what.startswith("models:/"):
        return lines.of_artifacts([_registered(what, versions)], known, what)
    if made := lines.refs_of_run(what, workdirs):
        return lines.of_artifacts(made[0], known, made[1])
    if ref := lines.ref_of(what, known):
        return lines.of_artifacts([ref], known, f"{ref.kind} {ref.digest}")
    if (store / "zarr.json").is_file() and (found := _of_store(what, store, known, key_file)):
        return found
    raise ConfigError(
        f"{what!r} is nothing that is known here: expected a run, the directory, reference or digest of an artifact, "
        f"models:/prdit@ALIAS, or a snapshot, volume or patient key of {store}. Working folders: {', '.join(map(str, workdirs))}."
    )


def _registered(what: str, versions: list[Any]) -> Any:
    """The checkpoint of a registered version, `models:/prdit@champion` or `models:/prdit/3`."""
    from storage.errors import ConfigError

    name = what.removeprefix("models:/")
    for version in versions:
        if name in (f"prdit/{version.version}", *(f"prdit@{alias}" for alias in version.aliases)):
            return version.checkpoint
    there = ", ".join(f"models:/prdit/{version.version}" for version in versions) or "none"
    raise ConfigError(f"There is no registered model {what}. There are: {there}.")


def _of_store(what: str, store: Path, known: Any, key_file: Path) -> Any:
    """The lineage of a snapshot, volume or patient of a store; None where it is none."""
    from storage.errors import ConfigError, InputError
    from storage.snapshots import find
    from storage.volume_store import VolumeStore
    from tasks.patients import lineage as lines
    from tasks.patients.patient import find_patient, key_of_volume

    opened = VolumeStore.open(store)
    try:
        key = key_of_volume(opened, what)
        return lines.of_volumes([what], key, known, f"volume {what}")
    except ConfigError:
        pass
    if lines.looks_like_key(what):
        try:
            patient = find_patient(opened, what, key_file)
            return lines.of_volumes(patient.volume_ids, patient.key, known, f"patient {patient.key}")
        except ConfigError:
            pass
    try:
        ref = find(opened, what)
    except InputError:
        return None
    return lines.of_artifacts([ref], known, f"snapshot {ref.digest}")


def forget(
    patient: Annotated[
        str | None,
        typer.Argument(help="PatientID; `-` asks for it (or reads a line of stdin), so that no shell remembers it."),
    ] = None,
    patient_key: Annotated[
        str | None, typer.Option("--patient-key", metavar="HEX", help="The patient's key instead of the PatientID.")
    ] = None,
    volume: Annotated[
        str | None, typer.Option("--volume", metavar="ID", help="The patient of this volume, instead.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, nothing is changed.")] = False,
    without_mlflow: Annotated[
        bool,
        typer.Option(
            "--without-mlflow",
            help="Do not ask the MLflow server: what it shows of the patient stays until this is run again without the option.",
        ),
    ] = False,
    store: Store = None,
    config: SiteOrConfig = None,
    settings: Set = None,
    workdir: _Workdirs = None,
    as_json: Json = False,
) -> None:
    """Delete everything of one patient: volumes, pictures, features, what MLflow shows; show first what that is, do it with --yes.

    A tombstone keeps the scans from coming back. Models and samples that learned from the patient are named, marked in MLflow, and
    cannot be promoted; their weights stay. Files in the inbox and in other sources are never deleted: the command counts them.
    Backups keep the patient until they are replaced. Killed at any point, the same command goes on.
    """
    with clear_errors():
        from storage.errors import ConfigError
        from storage.patient_key import load_patient_key
        from storage.volume_store import VolumeStore
        from tasks.patients.forget import Places, plan
        from tasks.patients.forget import forget as forget_patient
        from tasks.patients.patient import find_patient, key_of, key_of_volume

        if sum(given is not None for given in (patient, patient_key, volume)) != 1:
            raise ConfigError(
                "Name one patient: a PatientID, or `-` to be asked for it, or --patient-key HEX, or --volume ID."
            )
        loaded, workdirs = _loaded(config, settings, store, workdir)
        opened = VolumeStore.open(as_place(loaded.store))
        key_file = loaded.ingest.key_file(opened.path)
        text = ""
        if patient is not None:
            text = _asked() if patient == "-" else patient
            key = key_of(text, key_file, opened.path)
        else:
            key = patient_key if patient_key is not None else key_of_volume(opened, volume or "")
        inbox, arrivals = _inbox()
        who = find_patient(opened, key, key_file, text)
        if not without_mlflow:
            _check_servers()
        tracked = _tracked(workdirs, server=not without_mlflow)
        places = Places(opened, tuple(workdirs), tracked, inbox, arrivals, complete=not without_mlflow)
        found = plan(who, places, load_patient_key(key_file) if key_file.is_file() else None)
        value = found.to_json() | {"store": str(opened.path), "without_mlflow": without_mlflow, "done": None}
        if yes:
            value["done"] = forget_patient(found, places)
        show_result(value, as_json, lambda: forget_text(value))


def _asked() -> str:
    """A PatientID from a person or from stdin; it is not shown."""
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("PatientID (not shown): ")
    return sys.stdin.readline().rstrip("\r\n")


def _loaded(
    config: str | None, settings: list[str] | None, store: Path | None, workdirs: list[Path] | None
) -> tuple[Any, list[Path]]:
    loaded = installed_settings(config, settings, store=store, workdir=workdirs[0] if workdirs else None)
    return loaded, list(workdirs or [Path(loaded.workdir)])


def _tracked(workdirs: list[Path], *, server: bool = True) -> tuple[Any, ...]:
    """MLflow wherever something was recorded: the server (MLFLOW_TRACKING_URI, or of `prdit up`), and files of working folders."""
    from flows.installation import mlflow_address
    from tasks.patients.tracked import Tracked

    files = (workdir / "mlflow.db" for workdir in workdirs)
    uris = [f"sqlite:///{path}" for path in files if path.is_file()]
    if server and (uri := mlflow_address()):
        uris.insert(0, uri)
    return tuple(Tracked(uri) for uri in dict.fromkeys(uris))


def _servers_are_down() -> bool:
    """Whether this folder has an MLflow server that does not run."""
    from flows.databases import databases
    from flows.installation import mlflow_address
    from flows.server_settings import server_settings
    from flows.services import DEFAULT_STATE_DIR

    _, database = databases(server_settings(), DEFAULT_STATE_DIR)
    return (database.file is None or database.file.is_file()) and mlflow_address() is None


def _check_servers() -> None:
    """Raises: ConfigError: this folder's MLflow server does not run."""
    from storage.errors import ConfigError

    if _servers_are_down():
        raise ConfigError(
            "This folder has an MLflow server (`prdit up`, or PRDIT_DATABASE) that does not run, so what it has of a patient is "
            "not known. Nothing was changed. Start it (`prdit up`), or set MLFLOW_TRACKING_URI to its address, and run this again. "
            "--without-mlflow goes on without it: its runs and models keep what they show of the patient, and a champion that "
            "learned from the patient is not found."
        )


def _inbox() -> tuple[Path, Path]:
    """Folders of the inbox and of its batches, by the settings of the site."""
    from flows.site import load_site

    site = load_site()
    return Path(site.inbox.folder), Path(site.inbox.arrivals)


def forget_text(value: dict[str, Any]) -> str:
    """A plan, or what was done, for people."""
    done = value["done"]
    lines = [
        f"patient {value['patient_key']}: {len(value['volumes'])} volume(s) of {value['num_scans']} scan(s) in {value['store']}"
        + (f"; forgotten before, on {value['forgotten_before'][:10]}" if value["forgotten_before"] else "")
    ]
    lines += [f"  volume {name}" for name in value["volumes"]]
    lines.append("went into" if value["affected"] else "went into nothing that is recorded")
    for one in value["affected"]:
        refused = "  [refused for promotion]" if one["digest"] in value["refused"] else ""
        lines.append(f"  {one['how']:<28} {one['kind']:<10} {one['digest'][:19]}…  {one['uri']}{refused}")
    lines += [f"  unfinished: {path} (it cannot go on; `prdit prune` removes it)" for path in value["unfinished"]]
    lines += [f"  registered: {name}, refused for promotion" for name in value["versions"]]
    if value["champion_learned_from_the_patient"]:
        lines.append(
            "  THE CHAMPION LEARNED FROM THIS PATIENT. It keeps its alias, so that nothing that uses it stops at once. Replace it: "
            "retrain, or `prdit models rollback` to one that did not."
        )
    if value["without_mlflow"]:
        lines.append(
            "  THE MLFLOW SERVER WAS NOT ASKED (--without-mlflow). It keeps what it shows of the patient, and models that learned "
            "from the patient can be promoted there. The patient counts as not wholly forgotten (`prdit verify` says so) until "
            "`prdit forget` was run again without that option."
        )
    if value["files_in_inbox"]:
        lines.append(
            f"in the inbox: {value['files_in_inbox']} file(s) of the patient. Delete them: prdit only reads the inbox."
        )
    if done is None:
        lines += [f"  a process works on {path}: end it first" for path in value["busy"]]
        lines.append(
            "nothing was changed; --yes deletes it. Weights, and backups, are not changed by that (docs/operations.md)."
        )
    else:
        lines.append(
            f"done: {done['deleted_volumes']} volume(s) deleted, {done['snapshots_that_say_so']} snapshot(s) say so, "
            f"{done['redacted_files']} file(s) redacted, and {len(done['redacted_in_mlflow'])} in MLflow, "
            f"{done['marked_runs']} run(s) marked, {done['links_removed']} link(s) of batches removed"
        )
    if isinstance(as_place(value["store"]), BucketPath):
        lines.append(
            "the store is in a bucket: other machines that worked with it keep copies of volumes (PRDIT_CACHE) and verdicts "
            "(.prdit/s3) of the patient until the same command was run there, and the bucket keeps old versions where it is set to."
        )
    return "\n".join(lines)
