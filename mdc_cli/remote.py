"""Commands that use a service: submit, jobs, watch, cancel, sets."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from mdc_cli.client import DEFAULT_URL, Service, UnreachableError
from mdc_cli.local import ImageSize, Json, Method, Minutes, Yes
from mdc_cli.options import parse_settings
from mdc_cli.output import accuracy_table, percent, print_json, print_rows, progress_bar, say
from mdc_cli.run_summary import RunSummary, as_options, ask, warning
from mdc_core.config.presets import NAMED
from mdc_core.config.settings import CondenseConfig, DataFacts
from mdc_core.delivery.verdict import longest
from mdc_core.errors import MdcError

Url = Annotated[str, typer.Option(help="URL of the service.", envvar="MDC_URL")]
Key = Annotated[str | None, typer.Option(help="API key. [default: the local admin key]", envvar="MDC_KEY")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
ENDED = {"succeeded", "failed", "canceled"}
POLL_SECONDS = 1.0
_ID = re.compile(r"[a-z]+_[0-9a-z]+")
RESTART_SECONDS = 60
"""How long a service may be unreachable before watching gives up."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (submit, jobs, watch, cancel, sets):
        app.command()(command)


def submit(
    dataset: Annotated[
        str,
        typer.Argument(
            help=f"A named data set ({', '.join(NAMED)}), the id of an upload, or a zip or npz to upload."
        ),
    ],
    ipc: Annotated[int | None, typer.Option(help="Images per class of the whole set. [default: 10]")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the set. [default: DATASET-ipcN]")] = None,
    method: Method = None,
    minutes: Minutes = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings to start from. [default: depends on the data]")
    ] = None,
    condense: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the condensation.")
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--evaluate", metavar="NAME=VALUE", help="A setting of the evaluation."),
    ] = None,
    image_size: ImageSize = None,
    follow: Annotated[bool, typer.Option("--watch", help="Show the job's progress until it ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what was read, and what the job would take.")
    ] = False,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Submit a condensation job, after showing what it will take."""
    service = Service(url, key)
    if dataset not in NAMED and Path(dataset).exists():
        dataset = _upload(service, Path(dataset))
    elif dataset not in NAMED and not _ID.fullmatch(dataset):
        raise MdcError(
            f"there is no data set or file {dataset!r}: use {', '.join(NAMED)}, the id of an upload (`mdc datasets` "
            "lists them), or a zip or npz"
        )
    settings = parse_settings(condense) | {
        name: value for name, value in (("ipc", ipc), ("method", method)) if value is not None
    }
    options: dict[str, Any] = {"name": name, "preset": preset, "image_size": image_size, "minutes": minutes}
    body = {"dataset": dataset, "condense": settings, "evaluate": parse_settings(evaluate)}
    body |= {field: value for field, value in options.items() if value is not None}
    _show_and_ask(service.call("POST", "/v1/jobs", json={**body, "dry_run": True}), dry_run, yes, as_json)
    if dry_run:
        return
    job = service.call("POST", "/v1/jobs", json=body)
    if not as_json:
        say(f"Job {job['id']}, set {job['name']}. Watch it with: mdc watch {job['id']}")
    if follow:
        _watch_to_the_end(service, job["id"], as_json)
    elif as_json:
        print_json(job)


def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    query = {} if state is None else {"state": state}
    columns = ["job", "state", "data set", "set", "progress"]
    print_rows(Service(url, key).pages("/v1/jobs", limit, **query), as_json, columns, _job)


def watch(job: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Show a job's progress until it ends; exits with 1 if it fails. Ctrl-C stops watching, not the job."""
    _watch_to_the_end(Service(url, key), job, as_json)


def cancel(job: JobId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Cancel a job."""
    stopped = Service(url, key).call("POST", f"/v1/jobs/{job}/cancel")
    if as_json:
        print_json(stopped)
    else:
        say(f"Job {job} is {stopped['state']}.")


def sets(
    name: Annotated[str | None, typer.Argument(help="Show only this set (NAME or NAME@VERSION).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List condensed sets, or show the accuracy of one at every size."""
    service = Service(url, key)
    if name is not None:
        one = service.call("GET", f"/v1/sets/{name}")
        print_json(one) if as_json else _print_set(one)
        return
    columns = ["set", "version", "ipc", "classes", "bytes", "accuracy, k=1", "k=N"]
    print_rows(service.pages("/v1/sets", limit), as_json, columns, _summary)


def _job(job: dict[str, Any]) -> list[str]:
    return [job["id"], job["state"], job["dataset"], job["name"], _progress(job)]


def _show_and_ask(plan: dict[str, Any], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Show what the service has read and expects; ask for confirmation if the job is long, except in a dry run."""
    estimate, less = plan["estimate"], plan["shorter"]
    config = CondenseConfig.model_validate(plan["condense"])
    summary = RunSummary(
        facts=DataFacts.model_validate(plan["facts"]),
        preset=plan["preset"],
        condense=config,
        loops=config.outer_loops,
        seconds=estimate["seconds"],
        seconds_pool=estimate["seconds_pool"],
        seconds_per_loop=estimate["seconds_per_outer_loop"],
        seconds_evaluation=estimate["seconds_evaluation"],
        memory_bytes=estimate["memory_bytes"],
        chosen=plan["chosen"],
    )
    if dry_run and as_json:
        print_json(plan)
    else:
        say(summary.text())
    if summary.is_long and less is not None:
        resized = [("--image-size", less["image_size"]), ("--preset", less["preset"])]
        options = [f"{option} {value}" for option, value in resized if value is not None]
        options += [*as_options(less["condense"]), *as_options(less["evaluate"], "--evaluate")]
        ask(warning(summary, " ".join(options), less["seconds"]), yes or dry_run)


def _upload(service: Service, path: Path) -> str:
    """Upload a data set; returns its id."""
    if path.is_dir():
        raise MdcError(
            f"{path} is a folder: zip it, with train/ and test/ at the top level, and submit the zip"
        )
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:63] or "data"
    media = "application/x-npz" if path.suffix == ".npz" else "application/zip"
    say(f"Uploading {path} ({path.stat().st_size} bytes)")
    with path.open("rb") as file:
        dataset = service.call(
            "POST", "/v1/datasets", params={"name": name}, content=file, headers={"Content-Type": media}
        )
    say(f"Data set {dataset['id']}")
    identifier: str = dataset["id"]
    return identifier


def _watch_to_the_end(service: Service, job_id: str, as_json: bool) -> None:
    """Follow a job and print its outcome. `MdcError` if it did not succeed."""
    job = follow_job(service, job_id)
    if as_json:
        print_json(job)
    if job["state"] != "succeeded":
        raise MdcError((job["error"] or {}).get("detail") or f"job {job_id} was {job['state']}")
    if not as_json:
        _print_set(service.call("GET", job["set"]["url"]))


def follow_job(service: Service, job_id: str) -> dict[str, Any]:
    """Follow a job to its end, with a progress bar per phase; returns its final state.

    If the event stream is unavailable or breaks, the service is polled once a second.
    """
    with progress_bar() as bar:
        phases: dict[str, TaskID] = {}
        after = ""
        while (job := _get_through_restart(service, f"/v1/jobs/{job_id}"))["state"] not in ENDED:
            _show(bar, phases, job["progress"])
            try:
                for event in service.events(f"/v1/jobs/{job_id}/events/stream", after):
                    after = event.id
                    if event.event == "progress":
                        _show(bar, phases, event.json())
                    else:
                        _say_state(event.json())
            except MdcError:
                time.sleep(POLL_SECONDS)
    return job


def _get_through_restart(service: Service, path: str) -> dict[str, Any]:
    """GET JSON from a service that may be restarting; jobs survive that."""
    began = time.monotonic()
    while True:
        try:
            document: dict[str, Any] = service.call("GET", path)
            return document
        except UnreachableError:
            if time.monotonic() - began > RESTART_SECONDS:
                raise
            time.sleep(POLL_SECONDS)


def _say_state(event: dict[str, Any]) -> None:
    """Print state changes that the progress bar does not show."""
    if event["state"] == "queued" and event["attempt"]:
        say(f"Attempt {event['attempt']} was interrupted: {event['detail']}. The job is queued again.")
    elif event["state"] == "canceling":
        say("The job was canceled; its worker is stopping it.")


def _show(bar: Progress, phases: dict[str, TaskID], progress: dict[str, Any]) -> None:
    if progress["phase"] not in phases:
        for earlier in phases.values():
            bar.update(earlier, completed=bar.tasks[earlier].total, detail="")
        phases[progress["phase"]] = bar.add_task(
            progress["phase"], total=progress["total"], completed=progress["step"], detail=""
        )
    detail = "" if progress["loss"] is None else f"loss {progress['loss']:.4g}, MLS {progress['mls']}"
    bar.update(phases[progress["phase"]], completed=progress["step"], total=progress["total"], detail=detail)


def _progress(job: dict[str, Any]) -> str:
    if job["state"] in ENDED:
        return str((job["error"] or {}).get("detail", ""))[:60]
    progress = job["progress"]
    return f"{progress['phase']} {progress['step']}/{progress['total'] or '?'}"


def _print_set(one: dict[str, Any]) -> None:
    rows = one["accuracy"]
    recipe = ""
    if rows:
        networks = "1 network" if rows[0]["repeats"] == 1 else f"{rows[0]['repeats']} networks"
        recipe = f", {rows[0]['network']}, {rows[0]['epochs']} epochs, {networks}"
    title = f"{one['name']}@{one['version']}{recipe}"
    accuracy_table(title, rows)


def _summary(one: dict[str, Any]) -> list[str]:
    rows = one["accuracy"]
    whole = longest(rows)
    ends = [percent(whole[0], "mdc"), percent(whole[-1], "mdc")] if whole else ["-", "-"]
    return [
        one["name"],
        str(one["version"]),
        str(one["ipc"]),
        str(len(one["classes"])),
        str(one["bytes"]),
        *ends,
    ]
