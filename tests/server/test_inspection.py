"""What looks into uploads has limits, ends with the API, and lets no name pass that breaks what reads it later."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sqlalchemy import update

from mdc_core.config.settings import DataFacts
from mdc_core.errors import DataError
from mdc_core.names import MAX_CLASSES, MAX_NAME, name_fault
from server.store.tables import Dataset
from server.uploads import inspect
from server.uploads.inspect import Inspections, inspect_upload
from tests.core.image_files import overlapping
from tests.server.archives import arrays, image, images, zipped
from tests.server.conftest import Api, sqlite_only

pytestmark = pytest.mark.process

NFD = unicodedata.normalize("NFD", "Äpfel")
ENVIRONMENT = inspect._environment()


def upload(api: Api, content: bytes, kind: str = "zip") -> Any:
    headers = {**api.admin, "Content-Type": f"application/{kind}"}
    return api.client.post("/v1/datasets", content=content, headers=headers)


def named(*classes: str) -> bytes:
    return arrays(classes=np.array(classes))


def child(code: str, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=stdin, stderr=subprocess.DEVNULL)


def test_an_inspection_that_takes_too_long_is_ended() -> None:
    with child(
        "from server.uploads import inspect as i; i.CPU_SECONDS = 1; i._limit()\nwhile True: pass",
        stdin=subprocess.PIPE,
    ) as looping:
        assert looping.wait(60) == -signal.SIGXCPU


def test_an_inspection_that_takes_too_much_memory_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By way of an interpreter that does as the module does, with less memory."""
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom server.uploads import inspect\n"
        "def hungry(path, name): return bytearray(2**31)\n"
        "inspect.inspect_upload = hungry\n"
        "sys.argv = sys.argv[2:]\nsys.exit(inspect.main())\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(DataError, match="send fewer"):
        Inspections().run(tmp_path / "upload", "x")


def test_an_inspection_ends_with_the_api(tmp_path: Path) -> None:
    fifo = tmp_path / "upload"
    os.mkfifo(fifo)  # opening it waits for ever
    command = [sys.executable, "-m", "server.uploads.inspect", str(fifo), "x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as waiting:
        assert waiting.stdin is not None
        waiting.stdin.close()
        assert waiting.wait(30) == 1
    inspections = Inspections()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            inspections.run(fifo, "x")
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    while not inspections._running:
        time.sleep(0.01)
    inspections.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(failures) == 1


def test_an_inspection_is_told_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MDC_SECRET",
        "AWS_SECRET_ACCESS_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "PGPASSWORD",
        "TOKEN",
    ):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in inspect._environment().values()


def test_notes_that_expand_in_an_image_are_not_read(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    for number in range(40):
        notes.add_text(f"n{number}", "x" * 900_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=notes)
    path = tmp_path / "upload"
    path.write_bytes(zipped({**images(4), "train/cat/noted.png": buffer.getvalue()}, zipfile.ZIP_STORED))
    with pytest.raises(DataError, match=r"noted\.png"):
        Inspections().run(path, "x")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\ud800b", "unprintable"),
        ("a\nb", "unprintable"),
        ("a\u202eb", "unprintable"),
        ("x" * (MAX_NAME + 1), "shorten it"),
        (" ", "empty"),
        ("x" * MAX_NAME, None),
        ("日本語 с пробелом", None),
    ],
)
def test_one_rule_for_names(name: str, told: str | None) -> None:
    fault = name_fault(name)
    assert fault is None if told is None else told in (fault or "")


@sqlite_only
@pytest.mark.parametrize("name", ["a\ud800b", "a\u0007b", "x" * 30_000, "\u200b"])
def test_uploads_with_bad_names_are_refused(api: Api, name: str) -> None:
    answer = upload(api, named(name, "dog"), "x-npz")
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "bad-dataset"
    assert len(answer.content) < 2000
    if "\ud800" not in name and len(name) < 400:
        members = images(4) | {f"train/{name}/0.png": image(), f"train/{name}/1.png": image()}
        assert upload(api, zipped(members)).status_code == 422
    assert api.client.get("/v1/datasets", headers=api.admin).status_code == 200


@sqlite_only
@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("kind", ["zip", "x-npz"])
def test_uploads_whose_members_share_bytes_are_refused(
    api: Api, tmp_path: Path, kind: str, which: str
) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(zipped(images(4)) if kind == "zip" else arrays())
    answer = upload(api, overlapping(path, which).read_bytes(), kind)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-dataset")
    assert "overlap" in answer.json()["detail"]


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    count = MAX_CLASSES + 1
    labels = np.tile(np.arange(count), 2)
    path.write_bytes(arrays(x_train=np.zeros((2 * count, 4, 4), np.uint8), y_train=labels))
    with pytest.raises(DataError, match=str(MAX_CLASSES - 1)):
        inspect_upload(path, "x")


def test_the_same_letters_are_the_same_class(tmp_path: Path) -> None:
    """Archives of one system write them in another form than those of another."""
    data = pytest.importorskip("mdc_core.data.load")
    composed = unicodedata.normalize("NFC", NFD)
    assert composed != NFD
    members = {f"train/{label}/{n}.png": image() for n in range(3) for label in (NFD, "dog")}
    members |= {f"test/{label}/0.png": image() for label in (composed, "dog")}
    path = tmp_path / "upload"
    path.write_bytes(zipped(members))
    _, facts = inspect_upload(path, "toy")
    assert facts.classes == ("dog", composed)
    assert data.survey(str(path)).classes == facts.classes


def test_rows_that_are_bad_already_are_shown(api: Api) -> None:
    made = upload(api, zipped(images(4))).json()
    facts = made["facts"] | {"classes": ["a\ud800b", "y" * 100_000]}
    with api.services.db.begin() as session:
        session.execute(update(Dataset).values(facts=facts))
    answer = api.client.get("/v1/datasets", headers=api.admin)
    assert answer.status_code == 200
    shown = next(row for row in answer.json()["data"] if row["id"] == made["id"])
    assert shown["facts"]["classes"][0] == "a\\ud800b"
    assert len(shown["facts"]["classes"][1]) < 1000
    job = api.client.post("/v1/jobs", json={"dataset": made["id"]}, headers=api.admin)
    assert job.status_code == 202, job.text
    assert api.client.get("/v1/jobs", headers=api.admin).status_code == 200
    assert DataFacts.model_validate(facts).classes[0] == "a\\ud800b"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_object_that_was_lost_or_damaged_is_healed_by_the_same_bytes(api: Api) -> None:
    content = zipped(images(4))
    made = upload(api, content).json()
    key = f"datasets/{made['sha256']}"
    for harm in (
        lambda: api.services.objects.delete(key),
        lambda: api.services.objects.put(key, b"x" * len(content)),
    ):
        harm()
        again = upload(api, content)
        assert (again.status_code, again.json()["id"]) == (200, made["id"])
        assert api.services.objects.get(key) == content
