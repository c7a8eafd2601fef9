"""Filters: OpenAI's filter objects, compiled to SQL; `mllm.search.expressions` has a form in one line.

    {"type": "eq" | "ne" | "gt" | "gte" | "lt" | "lte", "key": "year", "value": 2020}
    {"type": "in" | "nin", "key": "speaker", "value": ["ann", "bob"]}
    {"type": "and" | "or", "filters": [...]}

Keys are attributes of items and, where no item has an attribute of that name, `FIELDS`: the length of a
recording ("duration"), where in it something lies ("start", "end"; in s, or as mm:ss), and what the recording
has ("modality": "video" without sound, "audio" without picture, "both", or "image").

An item without the attribute, or with a value of another type, passes only "ne" and "nin". Strings are
ordered by code point, so dates written as 2026-11-27 compare as dates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from typing import Any

from mllm.errors import ConfigError
from mllm.search.expressions import DEEPEST, Filters, parse_clock
from mllm.search.items import KINDS, Value, is_value, kind
from mllm.search.store import quoted

FIELDS = {"duration": "duration", "start": "start", "end": "end", "modality": "kind"}  # columns by name
_ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_NOT_IN = {"ne": "eq", "nin": "in"}
_TYPES = ("eq", *_ORDER, *_NOT_IN, "in", "and", "or")
_MOST_COMPARISONS, _MOST_VALUES = 100, 1000  # safe limits for the store's query planner


def fields_of(table: Any) -> Mapping[str, str]:
    """The fields that the table of an index has; those of an earlier version have none."""
    return FIELDS if "kind" in table.schema.names else {}


def to_sql(
    filters: Filters, known: Mapping[str, AbstractSet[str]], columns: Mapping[str, str] = FIELDS
) -> str:
    """Compiles a filter to an SQL condition on the columns of an index.

    Args:
        known: types (see `items.kind`) of the attributes in the index, by name.
        columns: see `fields_of`.

    Raises:
        ConfigError: if the filter is malformed or too large, or if no item has an attribute of this name and
            type.
    """
    count = 0

    def compile_one(one: object, depth: int) -> str:
        nonlocal count
        if not isinstance(one, Mapping) or one.get("type") not in _TYPES:
            raise ConfigError(
                f"a filter is an object whose type is one of {', '.join(_TYPES)}: not {one!r:.80}"
            )
        nested = one["type"] in ("and", "or")
        fields = {"type", "filters"} if nested else {"type", "key", "value"}
        if set(one) != fields:
            raise ConfigError(f"a filter '{one['type']}' has {', '.join(sorted(fields))}: not {one!r:.80}")
        if not nested:
            count += 1
            if count > _MOST_COMPARISONS:
                raise ConfigError(f"a filter of over {_MOST_COMPARISONS} comparisons: use 'in' with a list")
            return _comparison(one["type"], one["key"], one["value"], known, columns)
        parts = one["filters"]
        if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
            raise ConfigError(f"a filter '{one['type']}' joins a list of filters: not {parts!r:.80}")
        if depth == DEEPEST:
            raise ConfigError(f"a filter nested over {DEEPEST} levels deep: join its parts in one list")
        return "(" + f" {one['type'].upper()} ".join(compile_one(part, depth + 1) for part in parts) + ")"

    return compile_one(filters, 0)


def _comparison(
    operator: str,
    key: object,
    value: Any,
    known: Mapping[str, AbstractSet[str]],
    columns: Mapping[str, str],
) -> str:
    if operator in _NOT_IN:
        return f"({_comparison(_NOT_IN[operator], key, value, known, columns)} IS NOT TRUE)"
    if not isinstance(key, str) or key not in (known.keys() | columns.keys()):
        raise ConfigError(_unknown(key, known))
    values = value if operator == "in" else [value]
    if not isinstance(values, list | tuple) or not values or len(values) > _MOST_VALUES:
        raise ConfigError(
            f"'{key}': 'in' and 'nin' take a list of 1 to {_MOST_VALUES} values: not {value!r:.80}"
        )
    if key not in known:
        return _field(operator, key, values)
    for one in values:
        if not is_value(one):
            raise ConfigError(f"'{key}' is compared with a string, number or boolean: not with {one!r:.80}")
        if kind(one) not in known[key]:
            raise ConfigError(_of_another_type(key, one, known[key]))
    if operator in _ORDER:
        return _ordered(key, _ORDER[operator], values[0])
    by_kind = {what: [one for one in values if kind(one) == what] for what in ("number", "string", "boolean")}
    numbers, texts = by_kind["number"], by_kind["string"] + by_kind["boolean"]
    parts = [f"{_number(key)} IN ({', '.join(map(_double, numbers))})"] if numbers else []
    if texts:
        listed = ", ".join(quoted(json.dumps(one, ensure_ascii=False)) for one in texts)
        parts.append(f"{_json(key)} IN ({listed})")
    return f"({' OR '.join(parts)})"


def _field(operator: str, key: str, values: Sequence[Any]) -> str:
    column = f'"{FIELDS[key]}"'
    if key == "modality":
        odd = [one for one in values if operator in _ORDER or one not in KINDS]
        if odd:
            raise ConfigError(f"'modality' is or is not one of {', '.join(KINDS)}: not {odd[0]!r:.80}")
        return f"({column} IN ({', '.join(map(quoted, values))}))"
    seconds = ", ".join(_double(_seconds(key, one)) for one in values)
    return f"({column} {_ORDER[operator]} {seconds})" if operator in _ORDER else f"({column} IN ({seconds}))"


def _seconds(key: str, value: Any) -> float:
    clock = parse_clock(value) if isinstance(value, str) else None
    if clock is not None:
        return clock
    if isinstance(value, str | bool) or not is_value(value):
        raise ConfigError(f"'{key}' is compared with seconds, or a time as mm:ss: not with {value!r:.80}")
    return float(value)


def _ordered(key: str, sign: str, value: Value) -> str:
    if isinstance(value, bool):
        raise ConfigError(f"'{key}' is {str(value).lower()} or not: compare it with eq (=) or ne (!=)")
    if isinstance(value, str):
        is_string = f"{_json(key)} LIKE '\"%'"
        return f"({is_string} AND json_get_string(attributes, {quoted(key)}) {sign} {quoted(value)})"
    return f"({_number(key)} {sign} {_double(value)})"


def _json(key: str) -> str:
    """The value as JSON text, with strings in quotes."""
    return f"json_extract(attributes, {quoted('$.' + json.dumps(key, ensure_ascii=False))})"


def _number(key: str) -> str:
    return f"TRY_CAST({_json(key)} AS DOUBLE)"  # NULL for a string, because of its quotes


def _double(value: Value) -> str:
    return f"CAST('{float(value)!r}' AS DOUBLE)"


def _unknown(key: object, known: Mapping[str, AbstractSet[str]]) -> str:
    if not known:
        return f"no item has attributes, nor {key!r:.80}: give them with mllm index add … --attributes FILE"
    near = get_close_matches(str(key), known, 1)
    listed = ", ".join(sorted(known)[:20]) + (" …" if len(known) > 20 else "")
    return f"no item has the attribute {key!r:.80}: " + (
        f"did you mean '{near[0]}'?" if near else f"there are {listed}"
    )


def _of_another_type(key: str, value: Value, kinds: AbstractSet[str]) -> str:
    remedy = ""
    if isinstance(value, int | float) and "string" in kinds:
        remedy = f"""; in quotes it is a string: '{key}="{json.dumps(value)}"'"""
    return (
        f"attribute '{key}' is a {' or '.join(sorted(kinds))}, and {value!r:.80} is a {kind(value)}{remedy}"
    )
