"""launchers/local.sh: two calls at once set up one environment, once, with the versions of constraints.txt."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Acts as an interpreter whose `-m venv` and `-m pip` take a second and are logged.
PYTHON = f"""\
#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") echo venv >>"$LOG"; sleep 1; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") echo "${{@:2}}" >>"$LOG"; sleep 1; [[ -z "${{FAIL:-}}" ]] ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A clone's folder with only what local.sh reads, and a Python that logs instead of installing."""
    for name in ("launchers/local.sh", "requirements.txt", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PYTHON", str(python))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("UV", str(tmp_path / "uv"))  # No such file until a test makes it.
    monkeypatch.delenv("TUNA_JAX_VENV", raising=False)
    return tmp_path


def _start(root, *arguments):
    return subprocess.Popen([root / "launchers/local.sh", *arguments], cwd=root)


def _log(root):
    return (root / "log").read_text().splitlines()


def test_two_calls_at_once_install_once(root):
    calls = [_start(root, "setup", "dev") for _ in range(3)]
    assert [call.wait(timeout=60) for call in calls] == [0, 0, 0]
    made, installed = _log(root)
    assert made == "venv"
    assert f"--constraint {root}/constraints.txt" in installed
    assert installed.endswith(f"--editable {root}[dev]")


def test_a_failed_installation_leaves_no_lock(root, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    assert _start(root, "setup").wait(timeout=60) != 0
    monkeypatch.delenv("FAIL")
    assert _start(root, "setup").wait(timeout=60) == 0
    assert _log(root)[0] == "venv" and len(_log(root)) == 3


def test_other_constraints_install_again(root):
    assert _start(root, "setup").wait(timeout=60) == 0
    assert _start(root, "setup").wait(timeout=60) == 0
    with (root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert _start(root, "setup").wait(timeout=60) == 0
    assert len(_log(root)) == 3  # One environment, two installations.


def _add_uv(root, status):
    uv = root / "uv"
    uv.write_text(f"#!/usr/bin/env bash\necho uv $@ >>$LOG\nexit {status}\n")
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)


def test_uv_installs_where_there_is_one(root):
    _add_uv(root, status=0)
    assert _start(root, "setup", "dev").wait(timeout=60) == 0
    made, installed = _log(root)
    assert made == "venv"
    assert installed.startswith("uv pip install")
    assert f"--python {root}/.venv/bin/python --constraint {root}/constraints.txt" in installed
    assert installed.endswith(f"--editable {root}[dev]")


def test_pip_installs_what_uv_cannot(root):
    _add_uv(root, status=1)
    assert _start(root, "setup").wait(timeout=60) == 0
    made, failed, installed = _log(root)
    assert failed.startswith("uv pip install") and installed.startswith("pip install")
