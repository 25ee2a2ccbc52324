"""What `prdit doctor` says of the services of a site: settings, login, databases, artifacts, and each service by itself."""

import os
from pathlib import Path

from flows import services as local
from flows.databases import DatabaseError, databases, explanation, schema
from flows.doctor import Check
from flows.installation import site_config
from flows.named_files import SITE_FILE
from flows.serve import artifacts_place
from flows.server_settings import ServerSettings, server_settings
from flows.servers import check_login
from flows.site import SiteConfig, load_site
from storage.bucket_path import BucketPath
from storage.errors import ConfigError, UserError
from storage.places import as_place

_LINES = 6  # of a log


def check_services(state_dir: Path) -> list[Check]:
    """Findings on the services of this folder; none where there are none."""
    state_dir = state_dir.resolve()
    try:
        site, settings = load_site(), server_settings()
    except ConfigError as error:
        return [
            Check(name="site settings", status="fail", detail=str(error), remedy=f"correct {SITE_FILE} or the variable")
        ]
    if not (state_dir.is_dir() or SITE_FILE.is_file()):
        return []
    return [
        *_check_programs(state_dir, site),
        *_check_databases(settings, state_dir),
        _check_artifacts(settings, state_dir),
        *_check_store(site),
    ]


def _check_programs(state_dir: Path, site: SiteConfig) -> list[Check]:
    try:
        services = local.supervised(state_dir)
        found = local.processes(services)
    except local.ServiceError:
        if left := local.running_processes(state_dir):
            detail = f"supervisord has died; {len(left)} of its processes run on, and nobody starts them again"
            return [
                Check(name="services", status="fail", detail=detail, remedy="prdit up (ends them and starts all anew)")
            ]
        return [Check(name="services", status="warn", detail=f"none run ({state_dir})", remedy="prdit up")]
    except UserError as error:
        return [
            Check(name="services", status="fail", detail=str(error), remedy="have the folder removed, then prdit up")
        ]
    wanted = ["prefect", "mlflow", "worker", "watcher", "health", *(["listener"] if site.listener else [])]
    return [*(_check_program(state_dir, name, found.get(name)) for name in wanted), *_check_login(services)]


def _check_program(state_dir: Path, name: str, info: dict[str, object] | None) -> Check:
    log = state_dir / "logs" / f"{name}.log"
    state = str(info["statename"]) if info else "STOPPED"
    if state == "RUNNING" and info:
        return Check(name=f"service {name}", status="ok", detail=f"runs (process {info['pid']})")
    if state == "STARTING":
        return Check(name=f"service {name}", status="ok", detail="has been started less than a minute ago")
    if state == "STOPPED":
        loss = {
            "watcher": "new scans are not noticed",
            "listener": "no scans are received",
            "health": "one that hangs is not started again",
        }.get(name, "it was stopped")
        return Check(name=f"service {name}", status="warn", detail=f"does not run: {loss}", remedy="prdit up")
    last = " | ".join(local.last_output(state_dir, name).splitlines()[-_LINES:])
    what = "ended again and again and was given up" if state == "FATAL" else "has just ended and is being started again"
    return Check(
        name=f"service {name}",
        status="fail" if state == "FATAL" else "warn",
        detail=f"{what}; it last said: {last}",
        remedy=f"correct what {log} says, then prdit up",
    )


def _check_login(services: local.Services) -> list[Check]:
    try:
        check_login(services)
    except local.LoginError as error:
        remedy = "set PRDIT_AUTH as it was when they were started, or prdit down and prdit up to change it"
        return [Check(name="login", status="fail", detail=str(error), remedy=remedy)]
    except local.ServiceError as error:
        return [Check(name="login", status="fail", detail=str(error), remedy="prdit down, then prdit up")]
    if server_settings().login:
        return [Check(name="login", status="ok", detail="both servers ask for user and password")]
    return [
        Check(name="login", status="ok", detail="none is asked for: every user of this machine can use the servers")
    ]


def _check_databases(settings: ServerSettings, state_dir: Path) -> list[Check]:
    findings = []
    for database in databases(settings, state_dir):
        name = f"{database.label} database"
        try:
            state, revision = schema(database)
        except DatabaseError as error:
            remedy = "prdit restore FOLDER" if database.file else "start PostgreSQL, or correct PRDIT_DATABASE"
            findings.append(Check(name=name, status="fail", detail=str(error), remedy=remedy))
            continue
        if state in ("older", "newer"):
            remedy = "prdit down, then prdit migrate" if state == "older" else "install the newer version again"
            detail = explanation(database, state, revision)
            findings.append(Check(name=name, status="fail", detail=detail, remedy=remedy))
        else:
            size = f", {database.file.stat().st_size / 1e6:.0f} MB" if database.file and state == "current" else ""
            detail = f"{database.place}: {'not made yet' if state == 'empty' else f'schema {revision}{size}'}"
            findings.append(Check(name=name, status="ok", detail=detail))
    return findings


def _check_artifacts(settings: ServerSettings, state_dir: Path) -> Check:
    place = artifacts_place(settings, state_dir)
    if place.startswith("s3://"):
        return _check_bucket(place)
    there = next(path for path in (Path(place), *Path(place).parents) if path.exists())
    if os.access(there, os.W_OK):
        return Check(name="artifacts", status="ok", detail=place)
    return Check(name="artifacts", status="fail", detail=f"{there} is not writable", remedy="change its permissions")


def _check_store(site: SiteConfig) -> list[Check]:
    """Whether a store in a bucket answers; nothing is written there, and of a folder nothing is said."""
    try:
        store = as_place(site_config(site).store)
        if not isinstance(store, BucketPath):
            return []
        there = (store / "zarr.json").is_file()
    except UserError as error:
        return [Check(name="store", status="fail", detail=str(error), remedy=f"correct {SITE_FILE} or AWS_* variables")]
    return [Check(name="store", status="ok", detail=f"{store} answers" + ("" if there else "; no store is there yet"))]


def _check_bucket(place: str) -> Check:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    name = place.removeprefix("s3://").split("/")[0]
    try:
        quick = Config(connect_timeout=5, read_timeout=5, retries={"max_attempts": 0})
        endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
        boto3.client("s3", config=quick, endpoint_url=endpoint).head_bucket(Bucket=name)
    except (BotoCoreError, ClientError, ValueError) as error:
        remedy = (
            "correct PRDIT_ARTIFACTS, AWS_ENDPOINT_URL_S3 and the AWS credentials; make the bucket if there is none"
        )
        return Check(name="artifacts", status="fail", detail=f"{place} cannot be reached: {error}", remedy=remedy)
    return Check(name="artifacts", status="ok", detail=place)
