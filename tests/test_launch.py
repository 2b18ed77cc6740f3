"""The two commands of the README and what they share, run as a person would run them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = sorted([*(REPOSITORY / "launch").glob("*.sh"), REPOSITORY / ".ci" / "run"])


def bash(script: str, *arguments: str, root: Path = REPOSITORY, **options) -> subprocess.CompletedProcess:
    """Run a script of the repository at `root`; output as text."""
    return subprocess.run(
        ["bash", str(root / script), *arguments], capture_output=True, text=True, timeout=280, **options
    )


@pytest.fixture(scope="module", autouse=True)
def environment():
    """The environment is there, as after any first call."""
    done = bash("launch/setup_env.sh", "dev")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fresh(tmp_path):
    """A checkout where nothing was set up yet: what the set-up itself reads."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    return tmp_path


def path_with(tmp_path: Path, *names: str) -> str:
    """A PATH that holds only the named commands and the basic ones that every Debian has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    basic = "bash basename cat cut dirname flock grep head id mkdir readlink rm sha256sum tail touch env"
    for name in (*basic.split(), *names):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_second_call_reuses_what_is_there(tmp_path):
    started = time.monotonic()
    done = bash("launch/setup_env.sh", "dev", cwd=tmp_path)
    assert time.monotonic() - started < 1
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [], "nothing may be made where it was called from"


def test_arguments_go_to_the_trainer(tmp_path):
    done = bash("launch/local.sh", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "memocr_jax.train" in done.stdout and "--rl.group-size" in done.stdout


def test_an_unknown_option_is_the_trainers_error():
    done = bash("launch/local.sh", "--train.stepz", "3")
    assert done.returncode == 2
    assert "stepz" in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--config", "none.yaml"), ("--config=none.yaml",)])
def test_config_replaces_the_default(arguments):
    done = bash("launch/local.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "none.yaml" in done.stderr and "tiny" not in done.stderr


def test_arguments_go_to_pytest(tmp_path):
    done = bash("launch/test.sh", "tests/report/test_charts.py", "-k", "one_step", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout and "deselected" in done.stdout
    assert bash("launch/test.sh", "no/such/test.py").returncode == 4, "pytest's own exit status"


def test_no_python(fresh, tmp_path_factory):
    path = path_with(tmp_path_factory.mktemp("path"))
    done = bash("launch/local.sh", root=fresh, env={"PATH": path})
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.11 or newer is needed and was not found (found: none)")
    assert done.stderr.count("\n") == 1 and not (fresh / ".venv").exists()


def test_python_too_old(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    path = path_with(folder)
    old = folder / "bin" / "python3"
    old.write_text('#!/usr/bin/env bash\n[[ $1 == --version ]] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    done = bash("launch/test.sh", root=fresh, env={"PATH": path})
    assert done.returncode == 1
    assert "error: Python 3.11 or newer is needed and was not found (found: Python 3.9.2)" in done.stderr


def test_no_venv_module_and_no_way_to_get_it(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    path = path_with(folder)
    # A Python without ensurepip and pip, as Debian's is until python3-venv comes: -c of the version passes,
    # -c of ensurepip and -m pip do not.
    bare = folder / "bin" / "python3"
    bare.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in *ensurepip*|*"-m pip"*) exit 1 ;; --version) echo "Python 3.11.2" ;; esac\n'
    )
    bare.chmod(0o755)
    done = bash("launch/local.sh", root=fresh, env={"PATH": path})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: Python's venv module is missing; install it: sudo apt-get install python3-venv"
    )
    assert not (fresh / ".venv").exists()


def test_no_network(fresh):
    # pip is told to use no index, and so gets neither uv nor the packages: the same as offline, but quick.
    done = bash("launch/local.sh", root=fresh, env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1"})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the packages could not be installed; last line: ")
    assert str(fresh / ".venv" / "setup.log") in last
