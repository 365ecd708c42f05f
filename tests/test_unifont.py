"""scripts/unifont.sh, with a fake apt-get, brew and sudo and a fake find that finds no font."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "unifont.sh"
LOCKED = "echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7' >&2; exit 100"


@pytest.fixture
def unifont(tmp_path):
    """Runs the script where these programs come first: name -> shell text."""

    def run(*arguments: str, font: str = "", path: str | None = None, **programs: str) -> subprocess.CompletedProcess:
        programs = {"find": "exit 0", "sudo": 'shift; exec "$@"', "sleep": "exit 0"} | programs
        for name, text in programs.items():
            program = tmp_path / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
        path = path or f"{tmp_path}:/usr/bin:/bin"
        env = {"PATH": path, "HOME": str(tmp_path), "GLYPHLM_FONT": font, "LOG": f"{tmp_path}/log"}
        return subprocess.run(["/bin/sh", SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=60)

    return run


def test_nothing_is_installed_where_a_font_is_found_or_named(unifont):
    for done in (unifont(find="echo unifont.otf", apt_get="exit 1"), unifont(font="a.otf", apt_get="exit 1")):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_lock_of_another_program_is_waited_for(unifont, tmp_path):
    done = unifont(apt_get=f'echo "$@" >>$LOG; [ $(wc -l <$LOG) -gt 3 ] || {{ {LOCKED}; }}')
    assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "log").read_text().splitlines()
    assert len(calls) == 4
    assert all("DPkg::Lock::Timeout=120" in call and call.endswith("install -y fonts-unifont") for call in calls)


def test_the_wait_for_a_lock_ends(unifont, tmp_path):
    done = unifont("--required", apt_get=f"echo call >>$LOG; {LOCKED}")
    assert done.returncode == 2 and "held by process 7" in done.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == 120 // 5 + 2


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--required"], 2)])
def test_the_last_line_of_apt_is_shown_and_only_a_required_font_fails(unifont, arguments, code):
    done = unifont(*arguments, apt_get="echo warning; echo 'E: Unable to locate package fonts-unifont' >&2; exit 100")
    assert done.returncode == code
    assert "apt-get: E: Unable to locate package fonts-unifont\n" in done.stderr and "GLYPHLM_FONT" in done.stderr
    assert ("Going on with the other fonts" in done.stderr) == (code == 0)


def test_a_system_without_apt_is_named_its_package(unifont, tmp_path):
    for name in ("head", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = unifont(path=str(tmp_path))
    assert done.returncode == 0 and "unifont-fonts" in done.stderr and "Homebrew" in done.stderr


@pytest.mark.parametrize(("brew", "code"), [("exit 0", 0), ("echo 'Error: no such cask' >&2; exit 1", 2)])
def test_on_macos_homebrew_installs_it(unifont, tmp_path, brew, code):
    for name in ("head", "id", "tail"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = unifont("--required", path=str(tmp_path), brew=brew)
    assert done.returncode == code and ("brew: Error: no such cask\n" in done.stderr) == (code == 2)
