"""The retrieval index: items and the vectors of their windows in a LanceDB table, stamped with the model.

A window with picture and sound has three rows, "video", "audio" and "both"; one with only picture or sound
has that row; a still image has the row "image". Without a modality, a search compares with the fullest row of
every window ("both" if there is one), so that a query about picture and sound together ("a red star and three
beeps") and a query about one of them are compared with every window exactly once.

Vectors have length 1 and the score is their dot product, the cosine. For a "both" row that is the sum of the
picture's and the sound's cosines divided by the length of the sum of their vectors: the fused score that
training aligns with captions.

Every row holds the id, name, source and attributes of its item, so an item is written in one transaction and
a filter is part of the search: a process killed at any moment leaves whole items, and adding again continues
where it stopped. The search compares with every row that passes the filter, so it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm.errors import ConfigError
from mllm.records.transcript import Segment
from mllm.search.confidence import Calibration, load_calibration
from mllm.search.expressions import Filters
from mllm.search.filters import fields_of, to_sql
from mllm.search.fusion import REFERENCES, SAMPLE, Chance, RowSample
from mllm.search.guard import alone_at, store_errors
from mllm.search.items import ITEM_COLUMNS, KINDS, SAID, Item, find_item
from mllm.search.moments import Hit, HitList, Moment, by_item, fuse, hits_of
from mllm.search.query import Query, check_modality, check_vector
from mllm.search.store import (
    create_table,
    delete_items,
    exists,
    kind_of,
    migrate,
    nearest,
    open_table,
    quoted,
    read_columns,
    read_stamp,
    sample_rows,
    with_words,
)
from mllm.search.summary import IndexInfo, attribute_kinds, check_model, describe, filled_by
from mllm.search.words import WantedWords

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder
    from mllm.search.fill import AddReport, Transcriber

DEFAULT_FOLDER = Path(".mllm/index")
CANDIDATES = 512  # hits of a list from which moments are made, at least
MEANING = 0.5  # weight of texts found by their vectors beside those found by their words
_OF_HIT = ("id", *ITEM_COLUMNS, "modality", "start", "end")
_OF_TEXT = ("text", "words")


class Index:
    """An open index: `Index.open(folder).add([...])`, `.search("a dog barks")`."""

    def __init__(self, folder: Path, table: Any, embedder: Embedder):
        self.folder = folder
        self.table = table
        self.embedder = embedder
        self._kinds_at: tuple[int, dict[str, set[str]]] = (-1, {})
        self._sample: RowSample | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path = DEFAULT_FOLDER,
        embedder: Embedder | None = None,
        rebuild: bool = False,
        create: bool = True,
    ) -> Index:
        """Opens the index in `folder`, or creates it.

        Args:
            embedder: None loads the model that filled the index or, for a new one, the model that ships with
                mllm.
            rebuild: empty the index, whatever state it is in, and stamp it with this embedder.
            create: if False, a missing index is an error.

        Raises:
            ConfigError: if another model filled it, if it is damaged or cannot be created, or if there is
                none and `create` is False.
        """
        folder = Path(folder)
        begin = rebuild or (create and not exists(folder))
        table = None if begin else open_table(folder)
        if embedder is None:
            from mllm.search.embedder import Embedder

            embedder = Embedder.from_pretrained(None if begin else filled_by(folder))
        if table is None:
            stamp = {
                "model": embedder.name,
                "stamp": embedder.fingerprint(),
                "dim": embedder.dim,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            table = create_table(folder, stamp, rebuild)
        check_model(read_stamp(table, folder), embedder, folder)  # another process may have been first
        return cls(folder, table, embedder)

    # --- fill -----------------------------------------------------------------------------------------------

    def add(
        self,
        items: Iterable[Item | str | Path],
        prune: bool = False,
        progress: Callable[[str, str], None] | None = None,
        make_item: Callable[[Path], Item] = Item,
        transcriber: Transcriber | None = None,
    ) -> AddReport:
        """Indexes recordings and pictures. Content that is already indexed is not read again.

        Files with the same content are one item, also if one was moved since it was indexed; items that are
        given as such are kept apart. Subtitles beside a file (talk.srt, talk.vtt, talk.en.srt) say what is
        said in it.

        Args:
            items: items; or paths of files (taken whatever their suffix) and folders (walked for files with a
                suffix of `MEDIA_SUFFIXES`), which become items by `make_item`.
            prune: also remove items whose files were under these paths and no longer exist.
            progress: called with every item's name and its outcome: "added", "unchanged", "updated" or
                "failed: …"; and with folders that are skipped: "passed over: …".
            make_item: makes an item, with name and attributes, from a file.
            transcriber: writes down what is said in items without subtitles, also in those that are in the
                index already.

        Raises:
            MllmError: if a path does not exist.
            ConfigError: if the index cannot be written, or another model has filled it anew since.
        """
        from mllm.search.fill import Filling  # a search does not need the libraries that read media

        with alone_at(self.folder):
            migrate(self.table, self.folder)
            # It may have been filled anew since it was opened.
            check_model(read_stamp(self.table, self.folder), self.embedder, self.folder)
            filling = Filling(self.table, self.folder, self.embedder, progress, transcriber)
            return filling.run(items, prune, make_item)

    def remove(self, ids: Iterable[str]) -> None:
        """Deletes the items with these ids.

        Raises:
            ConfigError: if the index cannot be written.
        """
        with alone_at(self.folder):
            migrate(self.table, self.folder)
            delete_items(self.table, self.folder, list(ids))

    def items(self) -> list[Item]:
        """Every item in the index, by name."""
        from mllm.search.fill import read_items

        indexed = read_items(self.table, self.folder).values()
        return sorted((one.item for one in indexed), key=lambda item: item.shown)

    def item(self, name: str) -> Item:
        """The item with this id, path, name, or name of its file.

        Raises:
            ConfigError: if there is none, or more than one.
        """
        return find_item(self.items(), name, self.folder)

    # --- search ---------------------------------------------------------------------------------------------

    def moments(self, query: Query | str | np.ndarray, k: int = 10, offset: int = 0) -> list[Moment]:
        """The k best moments after the first `offset`, best first; what they are, `mllm.search.moments` says.

        Args:
            query: a text alone, or a vector, looks everywhere.

        Raises:
            MllmError: for a query that asks for nothing, or that nothing can be compared with.
        """
        found = self._moments(_as_query(query), lambda moments: len(moments) >= offset + k, offset + k)
        return found[offset : offset + k]

    def recordings(self, query: Query | str | np.ndarray, k: int = 10, offset: int = 0) -> list[list[Moment]]:
        """The k best recordings after the first `offset`, each as its moments, best first. See `moments`."""
        found = self._moments(
            _as_query(query), lambda moments: len(by_item(moments)) >= offset + k, offset + k
        )
        return list(by_item(found).values())[offset : offset + k]

    def _moments(self, query: Query, enough: Callable[[list[Moment]], bool], wanted: int) -> list[Moment]:
        vector = query.vector(self.embedder)
        unwanted = [WantedWords(text) for text in query.without]
        limit = CANDIDATES
        while limit < 4 * wanted:  # in steps, so that the pages of a search fit together
            limit *= 2
        while True:
            lists = self._lists(query, vector, limit)
            moments = fuse([_without(one, unwanted) for one in lists], query.fusion)
            if enough(moments) or all(len(one.hits) < limit for one in lists):
                self._set_confidence(query, moments)
                return moments
            limit *= 4

    def _set_confidence(self, query: Query, moments: list[Moment]) -> None:
        """Sets the confidence of moments if it was measured for such queries, which are texts alone."""
        if not query.is_plain or self._calibration is None:
            return
        best = {key: group[0].relevance for key, group in by_item(moments).items()}
        for moment in moments:
            others = (relevance for key, relevance in best.items() if key != str(moment.item.id))
            gap = moment.relevance - next(others, moment.relevance)
            moment.confidence = float(self._calibration(moment.relevance, gap))

    @cached_property
    def _calibration(self) -> Calibration | None:
        return load_calibration(self.folder, self.embedder.fingerprint())

    def _lists(self, query: Query, vector: np.ndarray, limit: int) -> list[HitList]:
        """The best hits by vectors of windows, by words of texts and, if only texts count, by their vectors.

        By its vectors every text fits a little: beside windows that would only disturb their order.
        """
        more = "" if query.filters is None else f" AND {self._passing(query.filters)}"
        if query.excluded is not None:
            more += f" AND item_id != {quoted(query.excluded)}"
        lists = []
        for modalities in query.window_lists:
            chance = self._chance(modalities or KINDS, query)
            found = self._nearest(vector, _rows_of(modalities) + more, limit, chance=chance)
            if query.threshold is not None:
                found = [hit for hit in found if hit.score >= query.threshold]
            lists.append(HitList(found, query.weight_of(modalities)))
        wanted = WantedWords(query.text or "")
        for channel in query.text_channels:
            where, weight = f"modality = {quoted(channel)}{more}", query.weight_of((channel,))
            lists.append(HitList(self._with_words(wanted, where, limit), weight))
            if not query.compares_windows:
                chance = self._chance((channel,), query)
                by_meaning = self._nearest(vector, where, limit, wanted, chance)
                lists.append(HitList(by_meaning, MEANING * weight))
        return [one for one in lists if one.weight]

    def _chance(self, modalities: Sequence[str], query: Query) -> Chance | None:
        """The cosines of rows of these modalities with other queries; of a sample that is kept while it fits.

        None if there is no such row, or if ranks count rather than cosines.
        """
        if query.fusion != "evidence":
            return None
        with store_errors(self.folder):
            rows = self.table.count_rows()
        if self._sample is None or not self._sample.rows / 2 <= rows <= self._sample.rows * 2:
            found = sample_rows(self.table, self.folder, ["modality", "vector"], SAMPLE)
            vectors = found["vector"].combine_chunks().flatten().to_numpy()
            vectors = vectors.reshape(len(found), self.embedder.dim)
            self._sample = RowSample(found["modality"].to_pylist(), vectors, rows)
        examples = bool(query.media) or query.like is not None
        return self._sample.chance(modalities, None if examples else self._references)

    @cached_property
    def _references(self) -> np.ndarray:
        return self.embedder.embed_text(REFERENCES)

    def search(
        self,
        query: str | np.ndarray,
        k: int = 10,
        modality: str | None = None,
        filters: Filters | None = None,
    ) -> list[Hit]:
        """The k best windows, best first; ties are sorted by name and time.

        Args:
            query: text, or a unit vector float32 [dim] of the shared space (search by example).
            modality: compare only with rows of this modality; None with the fullest row of every window.
            filters: a filter object in OpenAI's format over attributes (see `mllm.search.filters`); only the
                windows of items that pass it are compared.

        Raises:
            ConfigError: for an unknown modality, or a filter that no item could pass.
        """
        check_modality(modality)
        where = f"modality = {quoted(modality)}" if modality else "fullest"
        if filters is not None:
            where += f" AND {self._passing(filters)}"
        return self._nearest(self._vector(query), where, k)

    def _nearest(
        self,
        vector: np.ndarray,
        where: str,
        k: int,
        wanted: WantedWords | None = None,
        chance: Chance | None = None,
    ) -> list[Hit]:
        names = _OF_HIT if wanted is None else [*_OF_HIT, *_OF_TEXT]
        rows = nearest(self.table, self.folder, vector, where, names, k)
        return hits_of(rows, wanted, chance)

    def _with_words(self, wanted: WantedWords, where: str, k: int) -> list[Hit]:
        if not wanted:
            return []
        rows = with_words(self.table, self.folder, wanted.query, where, [*_OF_HIT, *_OF_TEXT], k)
        return hits_of(rows, wanted)

    def find(
        self,
        query: str | np.ndarray,
        k: int = 10,
        modality: str | None = None,
        filters: Filters | None = None,
    ) -> dict[str, list[Hit]]:
        """The k best items, best first: id -> its windows among the best, best first. See `search`."""
        vector = self._vector(query)
        with store_errors(self.folder):
            rows = self.table.count_rows()
        limit = max(4 * k, 32)
        while True:
            found: dict[str, list[Hit]] = {}
            for hit in self.search(vector, limit, modality, filters):
                found.setdefault(str(hit.item.id), []).append(hit)
            if len(found) >= k or limit >= rows:
                return dict(list(found.items())[:k])
            limit *= 4

    def _vector(self, query: str | np.ndarray) -> np.ndarray:
        if isinstance(query, str):
            return self.embedder.embed_text([query])[0]
        return check_vector(query, self.embedder.dim)

    def vector_of(self, item_id: str, start: float = 0.0, end: float = math.inf) -> np.ndarray:
        """The vector of an item, or of its windows from start to end (s): a query for more like it.

        Raises:
            ConfigError: if there is nothing in the index.
        """
        where = f"item_id = {quoted(item_id)} AND fullest"
        rows = read_columns(self.table, ["start", "end", "vector"], self.folder, where).to_pylist()
        vectors = [row["vector"] for row in rows if row["start"] <= end and row["end"] >= start]
        if not vectors:
            raise ConfigError(f"nothing of item {item_id} from {start:g} s on in index {self.folder}")
        summed = np.sum(vectors, axis=0, dtype=np.float64)
        return np.asarray(summed / max(float(np.linalg.norm(summed)), 1e-12), np.float32)

    def _passing(self, filters: Filters) -> str:
        """The condition of a filter; the attributes of the current version of the table are cached."""
        with store_errors(self.folder):
            version, fields = self.table.version, fields_of(self.table)
        if self._kinds_at[0] != version:
            self._kinds_at = (version, attribute_kinds(self.table, self.folder))
        return to_sql(filters, self._kinds_at[1], fields)

    def said(self, moment: Moment) -> list[Segment]:
        """What is said in a moment, as lines without the times of words."""
        where = f"item_id = {quoted(str(moment.item.id))} AND modality = {quoted(SAID)}"
        rows = read_columns(self.table, ["start", "end", "text"], self.folder, where).to_pylist()
        lines = sorted((row["start"], row["end"], row["text"]) for row in rows)
        return [Segment(*line) for line in lines if line[0] < moment.end and line[1] > moment.start]

    def kind(self, moment: Moment) -> str:
        """What a moment's recording is to be shown as: "image", "video" or "audio"."""
        where = f"item_id = {quoted(str(moment.item.id))} AND fullest"
        rows = read_columns(self.table, ["modality"], self.folder, where)
        kind = kind_of(rows["modality"].to_pylist())
        return "video" if kind == "both" else kind

    def info(self) -> IndexInfo:
        """Model, size and contents."""
        return describe(self.folder)


def _as_query(query: Query | str | np.ndarray) -> Query:
    if isinstance(query, Query):
        return query
    return Query(text=query) if isinstance(query, str) else Query(like=query)


def _rows_of(modalities: Sequence[str]) -> str:
    """The condition on rows of windows: of these modalities, or the fullest of each window."""
    return f"modality IN ({', '.join(map(quoted, modalities))})" if modalities else "fullest"


def _without(one: HitList, unwanted: Sequence[WantedWords]) -> HitList:
    """A list without texts that have words which are not meant."""
    hits = [hit for hit in one.hits if not any(words.matched(hit.text) for words in unwanted)]
    return HitList(hits, one.weight)
