"""`prdit maintain`: the maintenance that the deployment `maintenance/verify` does weekly, now. Imports wait until it runs."""

from typing import Annotated, Any

import typer

from flows.console import Json, Store, Workdir, clear_errors, show_result
from flows.faults import say_error


def maintain(
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check every byte of the store, too.")] = True,
    store: Store = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Verify the store, remove what retention does not keep, and measure the disk; settings are those of .prdit/site.yaml.

    Kept are the champion, every version with an alias, the newest champions before it, the newest runs, what was used lately, and
    what these were made from. The store is never touched. Exit 1 when something is damaged or lost.
    """
    with clear_errors():
        from flows.installation import installation, mlflow_address, site_config
        from flows.maintenance import damage_text, disk_text, summary
        from flows.maintenance import maintain as run_maintenance
        from flows.site import load_site
        from tasks.run.progress import show_progress

        site = load_site()
        given = {"workdir": str(workdir)} if workdir else {}
        config = site_config(site, store=str(store or ""), overrides=given)
        uri = mlflow_address()
        place = installation(config, site, uri)
        with show_progress("verify") as progress:
            found = run_maintenance(place, site.retention, uri, progress, verified=verify)

        def text() -> str:
            lines = [summary(found)]
            lines += [f"removed: {each.count} × {each.what}, {each.size_bytes / 1e9:.3f} GB" for each in found.removed]
            lines += [f"takes: {each.name} {each.size_bytes / 1e9:.3f} GB" for each in found.places]
            lines += [f"note: {note}" for note in found.notes]
            return "\n".join(lines + ([disk_text(found)] if found.is_low else []))

        value: dict[str, Any] = found.to_json()
        show_result(value, as_json, text)
        if found.damage and verify:
            say_error(damage_text(found))
            raise typer.Exit(1)
