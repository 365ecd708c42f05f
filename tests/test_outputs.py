"""Outputs appear whole or not at all, are found again, and are never overwritten by something else."""

import os

import pytest

from glyphlm.base.errors import InputError
from glyphlm.base.outputs import RECORD, Build, read_build, sha256_file, to_json, write_atomic


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made" / "here"


def build(made="thing", settings=None, inputs=None):
    return Build(made, {"size": 3, "name": "a"} | (settings or {}), {"text.txt": "abc"} | (inputs or {}))


def make(out, **changes):
    wanted = build(**changes)
    with wanted.folder(out) as partial:
        (partial / "content").write_text("whole", encoding="utf-8")
        wanted.result = {"count": 7}
    return wanted


def siblings(out):
    return sorted(path.name for path in out.parent.iterdir())


# Found again


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_place_without_files_is_not_done(out, there):
    if there == "an empty folder":
        out.mkdir(parents=True)
    assert not build().is_done(out)


def test_an_empty_folder_is_filled(out):
    out.mkdir(parents=True)
    make(out)
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "content"]


def test_the_same_build_is_done_and_loads_its_result(out):
    make(out)
    again = build()
    assert again.is_done(out) and again.result == {"count": 7}


def test_settings_compare_as_they_are_after_json(out):
    make(out, settings={"sizes": (1, 2)})
    assert build(settings={"sizes": (1, 2)}).is_done(out)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"settings": {"size": 4}}, "size = 3, not 4"),
        ({"settings": {"more": "x"}}, "more = None, not 'x'"),
        ({"inputs": {"text.txt": "abd"}}, "text.txt = 'abc', not 'abd'"),
        ({"inputs": {"other.txt": "abc"}}, "other.txt = None, not 'abc'"),
        ({"made": "another"}, "made = 'thing', not 'another'"),
    ],
)
def test_another_build_is_refused_with_the_difference_and_both_values(out, changes, difference):
    make(out)
    with pytest.raises(InputError, match=f"{out} already holds .*{difference}; choose another --out or remove"):
        build(**changes).is_done(out)


def test_a_setting_that_was_dropped_is_a_difference(out):
    make(out, settings={"old": 1})
    with pytest.raises(InputError, match="old = 1, not None"):
        build().is_done(out)


def test_a_folder_of_someone_else_is_refused(out):
    out.mkdir(parents=True)
    (out / "thesis.doc").touch()
    with pytest.raises(InputError, match="holds files but no build.json"):
        build().is_done(out)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        build().is_done(tmp_path / "file")


def test_reading_a_missing_folder_names_it(out):
    with pytest.raises(InputError, match=f"{out} does not exist"):
        read_build(out)


@pytest.mark.parametrize("damage", [b"", b'{"made": "th', b"\xff\xfe\x00", b"[]", b"7", b'{"made": "thing"}', b'{"x": 1}'])
def test_a_damaged_record_is_refused_with_its_name(out, damage):
    make(out)
    (out / RECORD).write_bytes(damage)
    with pytest.raises(InputError, match=f"{out / RECORD} is damaged .*; remove {out} and make it again"):
        build().is_done(out)


# Whole or not at all


@pytest.mark.parametrize("crash", [RuntimeError, KeyboardInterrupt])
def test_a_crash_inside_the_folder_leaves_nothing(out, crash):
    wanted = build()
    with pytest.raises(crash), wanted.folder(out) as partial:
        (partial / "content").write_text("half", encoding="utf-8")
        raise crash
    assert siblings(out) == []


def test_a_finished_folder_leaves_no_other_file_beside_it(out):
    make(out)
    assert siblings(out) == [out.name]


def test_the_folder_is_not_there_before_it_is_whole(out):
    with build().folder(out):
        assert not out.exists()


def test_a_folder_that_holds_files_is_never_replaced(out):
    make(out)
    with pytest.raises(OSError, match="not empty"):
        make(out, settings={"size": 4})
    assert read_build(out).settings["size"] == 3 and siblings(out) == [out.name]


def test_what_a_killed_process_left_is_no_obstacle(out):
    left = out.with_name(f".{out.name}.partial")
    left.mkdir(parents=True)
    (left / "half").touch()
    make(out)
    assert not (out / "half").exists() and siblings(out) == [out.name]


def test_writing_replaces_the_old_file(tmp_path):
    write_atomic(tmp_path / "file", "old")
    write_atomic(tmp_path / "file", "新しい")
    assert (tmp_path / "file").read_bytes() == "新しい".encode()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, step, disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "file", "\ud800")
    assert list(tmp_path.iterdir()) == []


# Forms


def test_json_is_sorted_and_keeps_real_characters():
    assert to_json({"b": "я", "a": 1}) == '{\n  "a": 1,\n  "b": "я"\n}\n'


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
