"""Items: the recordings and pictures that an index finds, and the attributes that a search filters by."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from mllm.errors import ConfigError
from mllm.media.places import is_data_uri

SAID, WRITTEN = "said", "written"  # modalities of rows of text: what is said, what its owner wrote about it
BY_SUBTITLES, BY_TRANSCRIPT = "subtitles", "transcript"  # where what is said comes from
KINDS = ("video", "audio", "both", "image")  # of items, and modalities of rows of windows
ITEM_COLUMNS = ("item_id", "name", "source", "attributes")  # of every row in an index

Value: TypeAlias = str | int | float | bool
Attributes: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True)
class Item:
    """A recording or a still picture to index, and the result of a search.

    Attributes:
        source: a path, which is made absolute, or a URL, which is stored but never fetched here; None if the
            item has neither.
        name: for display; None keeps the name in the index, by default the source.
        attributes: string, number or boolean by name, for filters; None keeps those in the index.
        id: identifies the item in the index; by default derived from the source, or from the content of an
            item without a source.
        content: the recording itself, for an item that is not a file; read once and not stored.
        description: its owner's words about it, which a search finds as it finds the name; None keeps those
            in the index. None in results of a search.

    Raises:
        ConfigError: if it has neither source nor content nor id, or an attribute is invalid.
    """

    source: str | Path | None = None
    name: str | None = None
    attributes: Attributes | None = None
    id: str | None = None
    content: bytes | None = field(default=None, repr=False)
    description: str | None = None

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("id", self.id)):
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ConfigError(f"an item's {what} is a string that is not empty, not {value!r}")
        if self.description is not None and not isinstance(self.description, str):
            raise ConfigError(f"an item's description is a string, not {self.description!r:.80}")
        if self.source is None and self.content is None and self.id is None:
            raise ConfigError("an item needs a source (a path or URL), or its content as bytes")
        if isinstance(self.source, str) and is_data_uri(self.source):
            raise ConfigError("a data: URI is no source of an item: give its bytes as content")
        if self.attributes is not None:
            check_attributes(self.attributes, str(self.name or self.source or self.id or "the item"))

    @property
    def path(self) -> Path | None:
        """The absolute path of its file; None if its source is a URL, or missing."""
        if self.source is None or (isinstance(self.source, str) and "://" in self.source):
            return None
        return Path(os.path.abspath(self.source))

    @property
    def shown(self) -> str:
        """Its name for display: name, source or id, whichever comes first."""
        return str(self.name or self.source or self.id)


@dataclass(frozen=True)
class Indexed:
    """An item in the index and the state of its content.

    Attributes:
        size, modified, digest: of the content, in bytes, ns and as SHA-256.
        said_by: where what is said in it comes from, such as "transcript whisper-base" or "subtitles" with
            file and hash; None if nobody has listened to it.
        kind, duration: see `store.kind_of`; in s.
    """

    item: Item
    size: int
    modified: int
    digest: str
    said_by: str | None = None
    kind: str | None = None
    duration: float | None = None

    def is_in_place(self) -> bool:
        """Whether its file is still there, unchanged as far as size and time tell."""
        try:
            stat = os.stat(str(self.item.path))
        except (OSError, ValueError):
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size, self.modified)


def derived_id(text: str) -> str:
    """The id of an item with this source, 32 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of a row; rows from before there were attributes have none."""
    attributes = json.loads(row.get("attributes") or "{}")
    return Item(row["source"], row.get("name"), attributes, row["item_id"])


def find_item(items: Sequence[Item], name: str, folder: Path) -> Item:
    """The item with this id, path, name, or name of its file.

    Raises:
        ConfigError: if there is none, or more than one, in the index in `folder`.
    """
    path = os.path.abspath(name)
    found = [item for item in items if name == item.id or path == item.source]
    found = found or [item for item in items if name in (item.source, item.name)]
    found = found or [item for item in items if item.path and item.path.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{item.shown} ({item.id})" for item in found[:3])
        raise ConfigError(f"'{name}' is several items in index {folder}: {several}: give an id")
    near = get_close_matches(name, [item.shown for item in items], 1)
    remedy = f"did you mean '{near[0]}'?" if near else "mllm index list shows what there is"
    raise ConfigError(f"no item '{name}' in index {folder}: {remedy}")


def check_attributes(attributes: Attributes, where: str) -> None:
    """Raises ConfigError, beginning with `where`, unless these are strings, numbers or booleans by name."""
    if not isinstance(attributes, Mapping):
        raise ConfigError(f"{where}: attributes are an object of names and values, not {attributes!r:.80}")
    for key, value in attributes.items():
        if not isinstance(key, str) or not key.strip() or not key.isprintable():
            raise ConfigError(
                f"{where}: {key!r:.80} is no name of an attribute: give it printable characters"
            )
        if not is_value(value):
            raise ConfigError(
                f"{where}: attribute '{key}' is {value!r:.80}: give a string, number or boolean"
            )


def is_value(value: object) -> bool:
    """Whether a value is valid for an attribute: a Unicode string, a finite number or a boolean."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def kind(value: Value) -> str:
    """The JSON type of a value: string, number or boolean."""
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"
