"""JSON and YAML: what is written comes back as it was, and what is damaged is refused with its place."""

import json
import math
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from glyphlm.base.errors import InputError
from glyphlm.base.records import (
    MAX_YAML_DEPTH,
    parse_json,
    parse_yaml,
    read_json,
    read_json_lines,
    read_yaml,
    to_json,
    to_lines,
    to_yaml,
)

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
LOOKS = st.from_regex(r"[-+]?[0-9_.:eExo]{1,6}|no|on|y|~|<<|=", fullmatch=True)  # like something else than a string
STRINGS = st.text(st.characters(exclude_categories=["Cs"])) | LOOKS
VALUES = st.recursive(LEAVES | STRINGS, lambda part: st.lists(part, max_size=3) | st.dictionaries(STRINGS, part, max_size=3))
OBJECTS = st.dictionaries(STRINGS, VALUES, max_size=4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


# Forms


def test_json_is_sorted_and_keeps_real_characters():
    assert to_json({"b": "я", "a": 1}) == '{\n  "a": 1,\n  "b": "я"\n}\n'


def test_lines_are_objects_in_their_own_order():
    assert to_lines([{"b": "я", "a": 1}, {}]) == '{"b": "я", "a": 1}\n{}\n'


def test_yaml_keeps_the_order_and_real_characters():
    assert to_yaml({"b": ["я"], "a": 1e-5}) == "b:\n- я\na: 1.0e-05\n"


@settings(deadline=None)
@given(OBJECTS)
def test_what_is_written_comes_back(value):
    assert parse_json(to_json(value), "x") == value
    assert parse_yaml(to_yaml(value), "x") == value


@settings(deadline=None)
@given(OBJECTS)
def test_our_yaml_is_the_same_to_readers_of_yaml_1_1(value):
    assert yaml.safe_load(to_yaml(value)) == value


def test_a_name_that_is_not_utf8_comes_back(path):
    name = os.fsdecode(b"caf\xe9.txt")
    path.write_text(to_json({name: 1}), encoding="utf-8")
    assert read_json(path) == {name: 1} and parse_yaml(to_yaml({"text": name}), "x") == {"text": name}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("write", [to_json, to_yaml, lambda value: to_lines([value])])
def test_what_is_not_a_number_is_refused_with_its_key(write, number):
    with pytest.raises(InputError, match=rf"loss\.1\.bits is {number}"):
        write({"loss": [0.5, {"bits": number}]})


# JSON


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"{", "not JSON.*line 1 column 2"),
        (b"", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"b": {"a": 1, "a": 2}}', "'a' is given twice"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[1]", "holds a list, not an object"),
        (b"null", "holds nothing, not an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_damaged_json_file_is_refused_with_its_name_and_place(path, data, fault):
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path} is damaged .*{fault}.*; make it anew"):
        read_json(path, cure="make it anew")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_not_a_file_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        with pytest.raises(InputError, match="does not exist|is not a file"):
            read(tmp_path / name)


def test_rows_come_in_order_and_a_missing_file_has_none(path):
    assert read_json_lines(path) == []
    path.write_text(to_lines([{"a": "one\u2028line"}, {"a": "two"}]), encoding="utf-8")
    assert [row["a"] for row in read_json_lines(path, {"a": (str,)})] == ["one\u2028line", "two"]


@pytest.mark.parametrize(
    ("line", "fault"), [(b"{", "not JSON"), (b"[]", "a list"), (b'{"a": 1}', "no valid 'a'"), (b"\xff", "UTF-8")]
)
def test_a_damaged_row_is_refused_with_file_and_line(path, line, fault):
    path.write_bytes(b'{"a": "x"}\n' + line + b"\n")
    with pytest.raises(InputError, match=f"{path} line 2 is damaged .*{fault}"):
        read_json_lines(path, {"a": (str,)})


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("1e-3", 1e-3), ("4E9", 4e9), (".5", 0.5), ("-1.", -1.0),
        (".inf", math.inf), ("true", True), ("False", False), ("~", None), ("", None), ("null", None),
        *((text, text) for text in ("1:30", "no", "yes", "on", "off", "y", "1_000", "2024-01-01", "0b1", "=", "1e", ".")),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(f"key: {text}", "x")["key"]
    assert found == value and type(found) is type(value)


def test_keys_are_strings_as_they_are_written():
    assert parse_yaml("{no: 1, 01: 2, true: 3, ~: 4, 1.0: 5}", "x") == {"no": 1, "01": 2, "true": 3, "~": 4, "1.0": 5}


def test_a_merged_mapping_fills_in_missing_keys():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "x")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "top: [{a: 1, b: 2, 'a': 3}]", "top:\n  a: 1\n  \"a\": 1"])
def test_a_key_given_twice_is_refused_with_its_place(text):
    with pytest.raises(InputError, match=r"r\.yaml is damaged \('a' is given twice at line \d column \d+\)"):
        parse_yaml(text, "r.yaml")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n" for below, name in zip("abcdefghi", "bcdefghij")
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 20_000, f"deeper than {MAX_YAML_DEPTH}"),
        ("- " * 20_000, f"deeper than {MAX_YAML_DEPTH}"),
        ("a: &a [*a]", r"\*a .*at line 1"),
        ("a: &a {b: {c: *a}}", r"\*a .*at line 1"),
        (LAUGHS, "more than 200000 values at line"),
        ("a: *b", "undefined alias"),
        ("a: \0", "#x0000"),
        ("", "nothing, not an object"),
        ("null", "nothing, not an object"),
        ("- 1", "a list, not an object"),
        ("text", "a string, not an object"),
        ("!!timestamp 2024-01-01", "date, not an object"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("a: !!python/name:os.system x", "constructor"),
        ("[a]: 1", "unhashable"),
        ("a: 'x", "end of stream at line 1"),
        ("a: 1\n---\nb: 2", "another document at line 2"),
        ("#" * (1 << 23), "more than the 4,194,304"),
    ],
)
def test_yaml_that_is_not_a_record_is_refused_at_once(text, fault):
    with pytest.raises(InputError, match=f"r.yaml .*{fault}"):
        parse_yaml(text, "r.yaml")


def test_yaml_that_is_not_utf8_is_refused(path):
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match=f"{path} is damaged .*not UTF-8 at byte 3"):
        read_yaml(path)


def test_a_byte_order_mark_is_not_text(path):
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(path) == read_yaml(path) == {"a": 1}
