"""The retrieval index: a LanceDB table of windows, stamped with the model that filled it.

A window with picture and sound has three rows, "video", "audio" and "both"; one that has picture or sound
alone has that row; a still image has the row "image". A search names a modality, or names none: it then
compares with the fullest row of every window ("both" where there is one), so that a query about picture and
sound together ("a red star and three beeps") and a query about one of them meet every window exactly once.

Vectors have length 1 and the score is their dot product, the cosine. For a "both" row that is the sum of the
picture's and the sound's cosines over the length of the sum of their vectors: the fused score that training
has aligned with captions.

Every recording is written in one transaction of the store: a process killed at any moment leaves whole
recordings, and adding again goes on where it stopped. The search reads every row, so it is exact.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mllm.errors import ConfigError, MediaError, MllmError
from mllm.files import open_ordinary
from mllm.media.sources import MEDIA_SUFFIXES, walk_folders
from mllm.search.store import (
    create_table,
    exists,
    open_table,
    read_columns,
    read_stamp,
    require_writable,
    store_errors,
)

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder

DEFAULT_FOLDER = Path(".mllm/index")
SEARCHABLE = ("video", "audio", "both", "image")
_COMPACT_EVERY = 256  # recordings: every one is a small file of the table until the table is compacted


@dataclass(frozen=True)
class IndexInfo:
    """What an index says of itself; `stamp` is `Embedder.fingerprint()` of the model that filled it."""

    folder: Path
    model: str
    stamp: str
    dim: int
    created: str
    recordings: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Hit:
    """One window that a search found; times in seconds, `score` the cosine in -1..1."""

    id: str
    media_id: str
    path: str
    modality: str
    start: float
    end: float
    text: str
    score: float


@dataclass
class AddReport:
    """What `Index.add` did, path by path. `failed` and `passed_over` (of folders) hold (path, cause)."""

    added: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    windows: int = 0

    def line(self) -> str:
        """One line for people."""
        parts = [
            f"{len(self.added)} recordings added ({self.windows} rows)",
            f"{len(self.unchanged)} unchanged",
        ]
        for what, paths in (
            ("removed", self.pruned),
            ("failed", self.failed),
            ("passed over", self.passed_over),
        ):
            parts += [f"{len(paths)} {what}"] if paths else []
        return ", ".join(parts)


class Index:
    """An open index. Make one with `Index.open`."""

    def __init__(self, folder: Path, table: Any, embedder: Embedder):
        self.folder = folder
        self.table = table
        self.embedder = embedder

    @classmethod
    def open(
        cls, folder: str | Path, embedder: Embedder, rebuild: bool = False, create: bool = True
    ) -> Index:
        """Open the index in `folder`, or begin it.

        Args:
            rebuild: empty it, whatever state it is in, and stamp it with this embedder.
            create: False raises where there is no index yet.

        Raises:
            ConfigError: if another model filled it, if it is damaged or cannot be made, or if there is none
                and `create` is False.
        """
        folder = Path(folder)
        if not rebuild and (exists(folder) or not create):
            table = open_table(folder)
        else:
            stamp = {
                "model": embedder.name,
                "stamp": embedder.fingerprint(),
                "dim": embedder.dim,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            table = create_table(folder, stamp, rebuild)
        _check_model(read_stamp(table, folder), embedder, folder)  # another process may have been first
        return cls(folder, table, embedder)

    # --- fill -----------------------------------------------------------------------------------------------

    def add(
        self,
        paths: Sequence[str | Path],
        prune: bool = False,
        progress: Callable[[Path, str], None] | None = None,
    ) -> AddReport:
        """Index media files; folders are walked. What is there already, unchanged, is skipped.

        Args:
            paths: files (taken whatever their suffix) and folders (files with a suffix of `MEDIA_SUFFIXES`).
            prune: also remove the rows of files under these paths that are gone.
            progress: called with every file and what became of it: "added", "unchanged" or "failed: …"; and
                with folders that are not read: "passed over: …".

        Raises:
            MllmError: if a path does not exist.
        """
        report, known = AddReport(), self._known_files()
        roots = [Path(os.path.abspath(path)) for path in paths]
        for root in roots:
            if not root.exists() and not prune:
                raise MllmError(f"{root} does not exist: name a media file or a folder of them")

        def pass_over(path: Path, cause: str) -> None:
            report.passed_over.append((str(path), cause))
            if progress:
                progress(path, f"passed over: {cause}")

        for path in dict.fromkeys(file for root in roots for file in walk(root, pass_over)):
            try:
                status = self._add_file(path, known.get(_media_id(path)), report)
            except (MediaError, OSError, UnicodeError) as error:
                cause = " ".join(str(error).split())
                report.failed.append((str(path), cause))
                status = f"failed: {cause}"
            if progress:
                progress(path, status)
        if prune:
            gone = [
                file
                for file in known.values()
                if _is_under(file["path"], roots) and not Path(file["path"]).exists()
            ]
            report.pruned = sorted(file["path"] for file in gone)
            self.remove(file["media_id"] for file in gone)
        if report.added or report.pruned:
            self._compact()
        return report

    def remove(self, media_ids: Iterable[str]) -> None:
        """Delete all rows of these recordings."""
        ids = list(media_ids)
        for first in range(0, len(ids), 500):
            listed = ", ".join(_quoted(media_id) for media_id in ids[first : first + 500])
            with store_errors(self.folder):
                self.table.delete(f"media_id IN ({listed})")

    def _add_file(self, path: Path, known: dict[str, Any] | None, report: AddReport) -> str:
        with open_ordinary(path) as file:
            stat = os.fstat(file.fileno())
            if known and (known["size"], known["modified"]) == (stat.st_size, stat.st_mtime_ns):
                report.unchanged.append(str(path))
                return "unchanged"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if known and known["digest"] == digest:
            report.unchanged.append(str(path))
            return "unchanged"
        require_writable(self.folder)  # before a recording is decoded for nothing
        media_id = _media_id(path)
        vectors = list(self.embedder.windows(path, isolated=True))
        if not vectors:
            raise MediaError(f"{path} has neither picture nor sound to index")
        columns: dict[str, Any] = {"media_id": media_id, "path": str(path), "text": ""}
        columns |= {"size": stat.st_size, "modified": stat.st_mtime_ns, "digest": digest}
        both = {vector.start for vector in vectors if vector.modality == "both"}
        rows = [
            columns
            | {
                "id": f"{media_id}:{vector.modality}:{round(vector.start * 1000)}",
                "modality": vector.modality,
                "start": vector.start,
                "end": vector.end,
                "fullest": vector.modality == "both" or vector.start not in both,
                "vector": vector.vector,
            }
            for vector in vectors
        ]
        # One transaction: new rows in, rows of the file as it was before out.
        written = pa.Table.from_pylist(rows, schema=self.table.schema)
        with store_errors(self.folder):
            (
                self.table.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(f"media_id = {_quoted(media_id)}")
                .execute(written)
            )
        report.added.append(str(path))
        report.windows += len(rows)
        if len(report.added) % _COMPACT_EVERY == 0:
            self._compact()
        return "added"

    def _known_files(self) -> dict[str, dict[str, Any]]:
        names = ["media_id", "path", "size", "modified", "digest"]
        rows = read_columns(self.table, names, self.folder)
        return {row["media_id"]: row for row in rows.group_by(names).aggregate([]).to_pylist()}

    def _compact(self) -> None:
        with store_errors(self.folder):
            # Readers may still stand on a version of a moment ago.
            self.table.optimize(cleanup_older_than=timedelta(hours=1))

    # --- ask ------------------------------------------------------------------------------------------------

    def search(self, query: str | np.ndarray, k: int = 10, modality: str | None = None) -> list[Hit]:
        """The k best windows, best first; among equals by path and time.

        Args:
            query: text, or a unit vector [dim] of the shared space (search by example).
            modality: compare with rows of this modality alone; None with the fullest row of every window.

        Raises:
            ConfigError: for an unknown modality.
        """
        check_modality(modality)
        vector = (
            self.embedder.embed_text([query])[0] if isinstance(query, str) else np.asarray(query, np.float32)
        )
        where = f"modality = {_quoted(modality)}" if modality else "fullest"
        names = [name for name in Hit.__dataclass_fields__ if name != "score"]
        with store_errors(self.folder):
            found = (
                self.table.search(vector, vector_column_name="vector")
                .distance_type("dot")
                .bypass_vector_index()
                .where(where, prefilter=True)
                .select([*names, "_distance"])
                .limit(k)
                .to_arrow()
            )
        hits = [Hit(score=1.0 - row.pop("_distance"), **row) for row in found.to_pylist()]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path, hit.start))

    def find(self, query: str | np.ndarray, k: int = 10, modality: str | None = None) -> dict[str, list[Hit]]:
        """The k best recordings, best first: path -> its windows among the best, best first."""
        with store_errors(self.folder):
            rows = self.table.count_rows()
        limit = max(4 * k, 32)
        while True:
            files: dict[str, list[Hit]] = {}
            for hit in self.search(query, limit, modality):
                files.setdefault(hit.path, []).append(hit)
            if len(files) >= k or limit >= rows:
                return dict(list(files.items())[:k])
            limit *= 4

    def info(self) -> IndexInfo:
        """Model, size and contents."""
        return describe(self.folder)


def check_modality(modality: str | None) -> None:
    """Raises ConfigError for a modality that no row can have; None stands for the fullest row."""
    if modality is not None and modality not in SEARCHABLE:
        raise ConfigError(f"no modality '{modality}' in an index: choose from {', '.join(SEARCHABLE)}")


def describe(folder: str | Path) -> IndexInfo:
    """What the index in `folder` holds; needs no model.

    Raises:
        ConfigError: if there is none, or it is damaged.
    """
    folder = Path(folder)
    table = open_table(folder)
    stamp = read_stamp(table, folder)
    rows = read_columns(table, ["media_id", "modality", "start", "end", "fullest"], folder)
    counts = dict.fromkeys(SEARCHABLE, 0)
    for modality in rows["modality"].to_pylist():
        counts[modality] = counts.get(modality, 0) + 1
    fullest = rows.filter(rows["fullest"])
    seconds = float(np.sum(fullest["end"].to_numpy() - fullest["start"].to_numpy()))
    recordings = len(rows["media_id"].unique())
    return IndexInfo(folder, recordings=recordings, rows=counts, seconds=seconds, **stamp)


def walk(root: Path, passed_over: Callable[[Path, str], None] = lambda path, cause: None) -> Iterator[Path]:
    """Media files under a folder, see `mllm.media.sources.walk_folders`; what is no folder gives itself."""
    if not root.is_dir():
        yield from [root] if root.exists() else []
        return
    for folder, names in walk_folders(root, passed_over):
        for name in names:
            if Path(name).suffix.lower() in MEDIA_SUFFIXES:
                yield folder / name


def _check_model(stamp: dict[str, Any], embedder: Embedder, folder: Path) -> None:
    if stamp["stamp"] == embedder.fingerprint():
        return
    theirs, ours = f"{stamp['model']} ({stamp['stamp'][:12]})", f"({embedder.fingerprint()[:12]})"
    rebuild = f"fill it anew with mllm index add DIR --index {folder} --rebuild"
    if stamp["model"] == embedder.name:
        reason = f"before its weights changed {ours}, and their vectors don't compare: {rebuild}"
    else:
        choice = f"use --model {stamp['model']}, or {rebuild}"
        reason = f"not by {embedder.name} {ours}, and their vectors don't compare: {choice}"
    raise ConfigError(f"index {folder} was filled by model {theirs}, {reason}")


def _media_id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _is_under(path: str, roots: Sequence[Path]) -> bool:
    return any(Path(path) == root or root in Path(path).parents for root in roots)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
