"""Filters by attribute: what they let through, how the command line writes them, and what they refuse."""

from __future__ import annotations

import itertools
import operator
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm.errors import ConfigError
from mllm.search.expressions import parse_expression, parse_filters, parse_value
from mllm.search.filters import to_sql
from mllm.search.index import Index
from mllm.search.items import Item
from tests.search.test_index import CountingEmbedder, full, recording

ITEMS = {
    "ann20": {"speaker": "ann", "year": 2020, "public": True},
    "ann21": {"speaker": "ann", "year": 2021.5, "public": False},
    "bob": {"speaker": "bob", "year": 2019, "date": "2026-11-27"},
    "odd": {"speaker": 'O\'Neill; DROP TABLE "windows" --', "année 'x'": '日本 \\ \n" 🎬', "year": "2020"},
    "bare": {},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("filters")
    index = Index.open(folder / "index", CountingEmbedder())
    index.add(
        Item(recording(folder / f"{name}.mp4", {"video": [1, 0, 0, 0]}), name, attributes)
        for name, attributes in ITEMS.items()
    )
    return index


SIGNS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")


def names(index: Index, filters) -> set[str]:
    return {hit.item.shown for hit in index.search("1 0 0 0", 100, filters=filters)}


def short(index: Index, *words: str) -> set[str]:
    return names(index, parse_filters(words))


def test_the_short_form(index):
    assert short(index, "speaker=ann") == {"ann20", "ann21"}
    assert short(index, "speaker = ann", "year>2020") == {"ann21"}
    assert short(index, "year>=2020") == {"ann20", "ann21"}
    assert short(index, "year < 2020.0") == {"bob"}
    assert short(index, "year<=2020") == {"ann20", "bob"}
    assert short(index, "public=true") == {"ann20"}
    assert short(index, "date>=2026-11") == {"bob"}
    assert short(index, "date>2026-11-27") == set()
    assert short(index, 'year="2020"') == {"odd"}
    assert short(index, 'speaker==O\'Neill; DROP TABLE "windows" --') == {"odd"}
    assert short(index, 'année \'x\'="日本 \\\\ \\n\\" 🎬"') == {"odd"}
    assert short(index, '{"type": "in", "key": "speaker", "value": ["bob", "zoe"]}') == {"bob"}
    assert parse_filters([]) is None


def test_expressions(index):
    def read(text: str) -> set[str]:
        return names(index, parse_expression(text))

    assert read("speaker = ann and year > 2020") == {"ann21"}
    assert read("year > 2020 or speaker = bob") == {"ann21", "bob"}
    assert read("speaker = bob or speaker = ann and public = true") == {"ann20", "bob"}
    assert read("(speaker = bob or speaker = ann) AND public != true") == {"ann21", "bob"}
    assert read("speaker in (bob, zoe) or (year=2020)") == {"ann20", "bob"}
    assert read('speaker not in ("ann", bob)') == {"odd", "bare"}
    assert read("""speaker = "O'Neill; DROP TABLE \\"windows\\" --" or speaker = zoe""") == {"odd"}
    assert read('"année \'x\'" = "日本 \\\\ \\n\\" 🎬"') == {"odd"}
    both = [
        {"type": "eq", "key": "a b", "value": "c (d)"},
        {"type": "in", "key": "e", "value": [1, "x and y"]},
    ]
    assert parse_expression('a b = c (d) and e in (1, "x and y")') == {"type": "and", "filters": both}
    assert parse_expression("sand=1 or band=android") == {
        "type": "or",
        "filters": [
            {"type": "eq", "key": "sand", "value": 1},
            {"type": "eq", "key": "band", "value": "android"},
        ],
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("band = Sand and Roll", "'Roll' in 'band = Sand and Roll' is no comparison: write key=value"),
        ("a = 1 and", "'' in 'a = 1 and' is no comparison"),
        ("(a = 1", "opens a bracket that nothing closes: add ')'"),
        ("(a = 1))", "')' in '(a = 1))' is no comparison"),
        ("a in (1, 2", "opens a bracket that nothing closes"),
        ("a in 1", "'a in 1' is no comparison"),
        ("not a = 1 = 2 (", None),
        ("(" * 2000, "a filter nested over 8 levels deep"),
        ("a" + " " * 4000, "a filter of over 4000 characters: write it as an object in JSON"),
    ],
)
def test_what_is_no_expression_is_one_line(text, error):
    if error is None:  # odd, but a key and its value
        assert parse_expression(text) == {"type": "eq", "key": "not a", "value": "1 = 2 ("}
        return
    with pytest.raises(ConfigError) as caught:
        parse_expression(text)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="ab1 =!<>(),\"\\'\nandorotinAND", max_size=40))
def test_any_text_is_an_expression_or_one_line(text):
    refused = ""
    try:
        assert parse_expression(text)["type"] in ("and", "or", *SIGNS)
    except ConfigError as error:
        refused = str(error)
    assert "\n" not in refused


def test_fields_of_recordings_and_windows(tmp_path):
    """Length, place and kind, of an index without attributes; an attribute of the same name goes before."""
    index = Index.open(tmp_path / "index", CountingEmbedder())
    recording(tmp_path / "clips/long.mp4", *[{"video": [1, 0, 0, i / 100]} for i in range(60)])
    recording(tmp_path / "clips/sound.wav", {"audio": [1, 0, 0, 1]})
    recording(tmp_path / "clips/full.mp4", full([1, 0, 1, 1], [1, 0, 1, 1]))
    index.add([tmp_path / "clips"])

    def found(text: str) -> set[str]:
        hits = index.search("1 0 0 0", 100, filters=parse_expression(text))
        return {f"{hit.item.path.stem} {hit.start:g}" for hit in hits}

    assert found("duration >= 1:00 and start >= 0:01:54 and end < 120") == {"long 114", "long 116"}
    assert found("duration < 60") == {"sound 0", "full 0"}
    assert found("modality = both or modality in (audio, image)") == {"sound 0", "full 0"}
    assert found("modality != video and duration = 2") == {"sound 0", "full 0"}
    for text, error in (
        ("duration > long", "'duration' is compared with seconds, or a time as mm:ss: not with 'long'"),
        ("modality = smell", "'modality' is or is not one of video, audio, both, image: not 'smell'"),
        ("modality > both", "'modality' is or is not one of"),
    ):
        with pytest.raises(ConfigError, match=error):
            found(text)
    index.add([Item(tmp_path / "clips/sound.wav", attributes={"duration": "long"})])
    assert found("duration = long") == {"sound 0"}


def test_who_lacks_an_attribute_meets_only_the_negative(index):
    assert short(index, "public!=true") == {"ann21", "bob", "odd", "bare"}
    assert short(index, "year!=2020") == {"ann21", "bob", "odd", "bare"}  # the year "2020" is a string
    nobody = {"type": "nin", "key": "speaker", "value": ["ann", "bob"]}
    assert names(index, nobody) == {"odd", "bare"}
    either = {"type": "in", "key": "year", "value": [2020, "2020"]}
    assert names(index, either) == {"ann20", "odd"}


def test_a_filter_works_before_the_best_are_taken(tmp_path):
    rng = np.random.default_rng(0)
    index = Index.open(tmp_path / "index", CountingEmbedder())
    for number in range(40):
        path = recording(tmp_path / f"{number}.mp4", {"video": [1, 0, 0, float(rng.random())]})
        index.add([Item(path, str(number), {"rare": number == 17, "n": number})])
    last = index.search("1 0 0 0", 40)[-1].item
    assert index.search("1 0 0 0", 1, filters={"type": "eq", "key": "n", "value": last.attributes["n"]})
    (hits,) = index.find("1 0 0 0", 3, filters={"type": "eq", "key": "rare", "value": True}).values()
    assert hits[0].item.shown == "17"


def test_filters_let_through_what_python_does(index):
    """Random filters, nested, against an evaluation of the same by hand."""
    compare = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}

    def same(a, b) -> bool:
        return isinstance(a, bool) == isinstance(b, bool) and a == b

    def meets(attributes: dict, one: dict) -> bool:
        if one["type"] in ("and", "or"):
            return (all if one["type"] == "and" else any)(meets(attributes, part) for part in one["filters"])
        found, value = attributes.get(one["key"]), one["value"]
        match one["type"]:
            case "eq" | "ne":
                return same(found, value) == (one["type"] == "eq")
            case "in" | "nin":
                return any(same(found, other) for other in value) == (one["type"] == "in")
        comparable = isinstance(found, str) == isinstance(value, str) and not isinstance(found, bool | None)
        return comparable and compare[one["type"]](found, value)

    rng = random.Random(0)
    values = {
        key: sorted({a[key] for a in ITEMS.values() if key in a}, key=str)
        for key in ("speaker", "year", "public", "date", "année 'x'")
    }

    def draw(depth: int) -> dict:
        if depth and rng.random() < 0.5:
            return {"type": rng.choice(["and", "or"]), "filters": [draw(depth - 1) for _ in range(3)]}
        key = rng.choice(list(values))
        kinds = ["eq", "ne", "in", "nin"] + ([] if key == "public" else list(compare))
        kind = rng.choice(kinds)
        value = rng.choice(values[key])
        return {"type": kind, "key": key, "value": [value] if kind in ("in", "nin") else value}

    for _ in range(60):
        filters = draw(2)
        assert names(index, filters) == {name for name, a in ITEMS.items() if meets(a, filters)}, filters


NASTY = [
    "'",
    '"',
    "\\",
    "';--",
    "%",
    "_",
    "$",
    "$.a",
    "a.b",
    "[0]",
    "*",
    "(a)",
    "a]",
    "日本",
    "🎬",
    "true",
    " x ",
]


def test_any_text_is_only_text(tmp_path):
    """No name and no value of an attribute is read as SQL or as a path of JSON."""
    index = Index.open(tmp_path / "index", CountingEmbedder())
    values = [*NASTY, "", "\n\t\x01\x7f", "null", "x" * 2000]
    index.add(
        Item(recording(tmp_path / f"{i}.mp4", {"video": [1, 0, 0, 0]}), str(i), dict.fromkeys(NASTY, value))
        for i, value in enumerate(values)
    )
    pairs = list(itertools.product(NASTY, enumerate(values)))
    for key, (i, value) in random.Random(0).sample(pairs, 60):
        assert names(index, {"type": "eq", "key": key, "value": value}) == {str(i)}, (key, value)
        at_least = {"type": "gte", "key": key, "value": value}
        assert names(index, at_least) == {str(j) for j, other in enumerate(values) if other >= value}


@pytest.mark.parametrize(
    ("filters", "error"),
    [
        (
            {"type": "eq", "key": "speeker", "value": "ann"},
            "no item has the attribute 'speeker': did you mean",
        ),
        ({"type": "ne", "key": "zzz", "value": 1}, "attribute 'zzz': there are année 'x', date, public"),
        ({"type": "eq", "key": "speaker", "value": 7}, "'speaker' is a string, and 7 is a number; in quotes"),
        ({"type": "gt", "key": "date", "value": True}, "'date' is a string, and True is a boolean"),
        ({"type": "gt", "key": "public", "value": True}, "'public' is true or not: compare it with eq"),
        ({"type": "eq", "key": "year", "value": None}, "'year' is compared with a string, number or boolean"),
        ({"type": "eq", "key": "year", "value": [2020]}, "not with [2020]"),
        ({"type": "eq", "key": "year", "value": float("nan")}, "not with nan"),
        (
            {"type": "in", "key": "year", "value": 2020},
            "'in' and 'nin' take a list of 1 to 1000 values: not 2020",
        ),
        ({"type": "in", "key": "year", "value": []}, "take a list of 1 to 1000 values"),
        ({"type": "in", "key": "year", "value": list(range(1001))}, "take a list of 1 to 1000 values"),
        ({"type": "eq", "key": ["year"], "value": 1}, "no item has the attribute ['year']"),
        ({"type": "like", "key": "year", "value": 1}, "a filter is an object whose type is one of eq, gt"),
        ({"type": "eq", "key": "year"}, "a filter 'eq' has key, type, value"),
        ({"type": "eq", "key": "year", "value": 1, "or": 1}, "a filter 'eq' has key, type, value"),
        ({"type": "and", "filters": []}, "a filter 'and' joins a list of filters"),
        ({"type": "or", "filters": "x"}, "a filter 'or' joins a list of filters"),
        ({"type": "or", "filters": [1]}, "a filter is an object"),
        ({"type": ["eq"]}, "a filter is an object"),
        ("year = 1", "a filter is an object"),
        (
            {"type": "or", "filters": [{"type": "ne", "key": "year", "value": 1}] * 101},
            "over 100 comparisons",
        ),
    ],
)
def test_wrong_filters_are_one_line(index, filters, error):
    with pytest.raises(ConfigError) as caught:
        index.search("1 0 0 0", filters=filters)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_largest_filters_are_answered(index):
    one = {"type": "ne", "key": "year", "value": 1}
    wide = {"type": "or", "filters": [one] * 100}
    many = {"type": "nin", "key": "year", "value": list(range(1000))}
    deep = one
    for _ in range(8):
        deep = {"type": "and", "filters": [deep]}
    for filters in (wide, many, deep):
        assert names(index, filters) == set(ITEMS)
    with pytest.raises(ConfigError, match="nested over 8 levels deep"):
        index.search("1 0 0 0", filters={"type": "and", "filters": [deep]})


def test_wrong_words_of_the_command_line():
    for word in ("year", "=2020", "", ">=3"):
        with pytest.raises(ConfigError, match="is no comparison: write key=value"):
            parse_filters([word])
    for word in ("{", "{" * 100_000):
        with pytest.raises(ConfigError, match="is not JSON"):
            parse_filters([word])


def test_values_are_typed_as_json_is():
    typed = {"1": 1, "1.5": 1.5, "-2e3": -2000.0, "true": True, '"1"': "1"}
    texts = ["007", "True", "null", "[1]", "NaN", "Infinity", "2026-11-27", "", " a", '"x', "1e999", "{}"]
    for text, value in [*typed.items(), *((text, text) for text in texts)]:
        assert (parse_value(text), type(parse_value(text))) == (value, type(value))


def test_an_index_of_nothing_has_no_attributes():
    with pytest.raises(ConfigError, match="no item has attributes"):
        to_sql({"type": "eq", "key": "a", "value": 1}, {})
