"""Outputs appear whole or not at all, are found again, and are never overwritten by something else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glyphlm.base import outputs
from glyphlm.base.errors import InputError
from glyphlm.base.names import BUILD
from glyphlm.base.outputs import Build, holds_nothing, one_writer, read_build, sha256_file, write_atomic


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
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


# Found again


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_place_without_files_is_not_done(out, there):
    if there == "an empty folder":
        out.mkdir(parents=True)
    assert not build().is_done(out)


def test_an_empty_folder_is_filled(out):
    out.mkdir(parents=True)
    make(out)
    assert sorted(path.name for path in out.iterdir()) == [BUILD, "content"]


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


DIGESTS = [f"{number}" * 64 for number in range(3)]


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ({"moved/a.txt": DIGESTS[0], "moved/b.txt": DIGESTS[1]}, True),
        ({"a.txt": DIGESTS[0], "c.txt": DIGESTS[1]}, True),
        ({"a.txt": DIGESTS[1], "b.txt": DIGESTS[0]}, False),
        ({"moved/a.txt": DIGESTS[0], "moved/b.txt": DIGESTS[2]}, False),
        ({"moved/a.txt": DIGESTS[0]}, False),
        ({"moved/a.txt": DIGESTS[0], "b.txt": DIGESTS[1], "c.txt": DIGESTS[2]}, False),
    ],
)
def test_inputs_are_known_by_their_digests_whatever_they_are_called(out, now, same):
    done = Build("thing", {}, {"a.txt": DIGESTS[0], "b.txt": DIGESTS[1]})
    with done.folder(out):
        pass
    if same:
        assert Build("thing", {}, now).is_done(out)
    else:
        with pytest.raises(InputError, match="already holds other work"):
            Build("thing", {}, now).is_done(out)


def test_a_data_set_of_the_hub_is_known_by_its_name(out):
    with Build("thing", {}, {"hf:one": "hub"}).folder(out):
        pass
    with pytest.raises(InputError, match="hf:one = 'hub', not None"):
        Build("thing", {}, {"hf:two": "hub"}).is_done(out)


def test_a_setting_that_was_dropped_is_a_difference(out):
    make(out, settings={"old": 1})
    with pytest.raises(InputError, match="old = 1, not None"):
        build().is_done(out)


def test_a_missing_file_is_explained_by_the_state_of_its_folder(out):
    make(out)
    assert outputs.lacks(out, "x.json") == "holds no x.json"
    assert outputs.lacks(out / "content", "x.json") == "is a file, not a folder"
    assert outputs.lacks(out.parent / "heer", "x.json") == f"does not exist (did you mean {out}?)"
    assert outputs.lacks(out.parent / "xyz", "x.json") == "does not exist"


def test_a_folder_of_someone_else_is_refused(out):
    out.mkdir(parents=True)
    (out / "thesis.doc").touch()
    with pytest.raises(InputError, match="holds no build.json"):
        build().is_done(out)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file, and the output is a folder; choose another name"):
        build().is_done(tmp_path / "file")


@pytest.mark.parametrize("name", [".", "", "../here", "../link"])
def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="the folder you are in.*name a new folder"):
        build().is_done(Path(name))


def test_a_linked_folder_is_filled_where_it_is(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / BUILD).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_reading_a_missing_folder_names_it(out):
    with pytest.raises(InputError, match=f"{out} does not exist"):
        read_build(out)


@pytest.mark.parametrize("damage", [b"", b'{"made": "th', b"\xff\xfe\x00", b"[]", b"7", b'{"made": "thing"}', b'{"x": 1}'])
def test_a_damaged_record_is_refused_with_its_name(out, damage):
    make(out)
    (out / BUILD).write_bytes(damage)
    with pytest.raises(InputError, match=f"{out / BUILD} is damaged .*; remove {out} and make it again"):
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
    with pytest.raises(InputError, match="made by another process meanwhile"):
        make(out, settings={"size": 4})
    assert read_build(out).settings["size"] == 3 and siblings(out) == [out.name]


def test_leftovers_of_a_killed_process_are_removed(out):
    left = out.with_name(f".{out.name}.99999.partial")
    left.mkdir(parents=True)
    (left / "half").touch()
    out.mkdir()
    (out / ".summary.json.99999.partial").touch()
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


# Digests


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# One writer

HOLD = """
import sys, time
from glyphlm.base.outputs import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(out):
    """Another process that holds `out`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_holder_named(out, holder):
    place = f"process {holder.pid} on .+ since .+-c {out}"
    with pytest.raises(InputError, match=f"{out} is being written by {place}.*; wait .* or choose another --out"):
        with one_writer(out):
            pass
    with pytest.raises(InputError, match=f"process {holder.pid}"):
        make(out)


def test_every_spelling_of_a_folder_is_the_same_lock(out, holder, monkeypatch):
    out.mkdir()
    (out.parent / "link").symlink_to(out)
    monkeypatch.chdir(out)
    for name in (".", "../here", "../link", out.parent / "link"):
        with pytest.raises(InputError, match="is being written"), one_writer(name):
            pass


def test_a_killed_holder_does_not_block(out, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    make(out)
    assert siblings(out) == [out.name]


def test_blocks_of_one_process_lie_inside_each_other(out):
    with one_writer(out), one_writer(out):
        make(out)
        assert siblings(out) == [f".{out.name}.lock", out.name]
    assert siblings(out) == [out.name]


def test_a_refused_command_leaves_no_folder(tmp_path):
    with pytest.raises(InputError), one_writer(tmp_path / "a" / "b" / "c"):
        raise InputError("no")
    assert not any(tmp_path.iterdir())


def test_a_lock_does_not_count_as_content(tmp_path, monkeypatch):
    """Beside a folder where a file system begins other machines would not see it."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with one_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"] and holds_nothing(tmp_path)


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with one_writer(tmp_path / "out"):
        assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux")
def test_a_place_that_takes_no_files_is_refused():
    with pytest.raises(InputError, match="/proc takes no files"), one_writer("/proc/out"):
        pass


def test_the_root_of_a_file_system_is_refused_as_output():
    with pytest.raises(InputError, match="/ is the root of a file system"), one_writer("/"):
        pass


def test_a_file_system_without_locks_is_reported(out, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(outputs, "_lock", no_locks)
    with one_writer(out):
        assert "no file locks here (Function not implemented)" in capsys.readouterr().err


def test_only_the_first_process_of_torchrun_takes_the_lock(out, holder, monkeypatch):
    monkeypatch.setattr(outputs, "IS_MAIN", False)
    with one_writer(out):
        pass


PAIR = """
import sys
from pathlib import Path
from glyphlm.base.outputs import Build
build = Build("thing", {}, {})
if not build.is_done(Path(sys.argv[1])):
    with build.folder(Path(sys.argv[1])) as partial:
        (partial / "content").write_text("x" * 1000)
"""


def test_of_processes_that_start_together_one_makes_it_and_the_others_are_refused(tmp_path):
    """Each leaves a whole folder and no other file, whoever was first."""
    for number in range(4):
        place = tmp_path / f"{number}"
        pair = [subprocess.Popen([sys.executable, "-c", PAIR, str(place)], stderr=subprocess.PIPE) for _ in range(2)]
        errors = [process.communicate()[1].decode() for process in pair]
        assert 0 in [process.returncode for process in pair]
        assert all("InputError" in error for process, error in zip(pair, errors) if process.returncode)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}" for number in range(4)]
    assert all((path / "content").read_text() == "x" * 1000 for path in tmp_path.iterdir())
