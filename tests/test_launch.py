"""The two commands of the README and what they share, run as a person would run them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S, wait_until

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = sorted([*(REPOSITORY / "launch").glob("*.sh"), REPOSITORY / ".ci" / "run"])


def bash(script: str, *arguments: str, root: Path = REPOSITORY, **options) -> subprocess.CompletedProcess:
    """Run a script of the repository at `root`; output as text."""
    return subprocess.run(
        ["bash", str(root / script), *arguments], capture_output=True, text=True, timeout=LIMIT_S, **options
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
    done = subprocess.run([checker, "-x", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_second_call_reuses_what_is_there(tmp_path):
    done = bash("launch/setup_env.sh", "dev", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [], "nothing may be made where it was called from"


@pytest.mark.parametrize(
    ("arguments", "command"), [((), "story"), (("--config", "configs/tiny.yaml"), "train")]
)
def test_arguments_go_to_the_story_or_with_a_config_to_the_trainer(tmp_path, arguments, command):
    done = bash("launch/local.sh", *arguments, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"memocr_jax.{command}" in done.stdout and "--rl.group-size" in done.stdout


def test_local_dry_run_prints_the_commands(fresh):
    done = bash("launch/local.sh", "--dry-run", "--run.dir", "runs/my run", root=fresh)
    assert (done.returncode, done.stderr) == (0, "") and not (fresh / ".venv").exists()
    setup, story = map(str.strip, done.stdout.splitlines())
    assert setup == "bash launch/setup_env.sh"
    assert story == r".venv/bin/python -m memocr_jax.story --config configs/nano.yaml --run.dir runs/my\ run"
    done = bash("launch/local.sh", "--dry-run", "--config", "a.yaml", root=fresh)
    assert done.stdout.splitlines()[1].strip() == ".venv/bin/python -m memocr_jax.train --config a.yaml"


def test_an_unknown_option_is_the_trainers_error():
    done = bash("launch/local.sh", "--train.stepz", "3")
    assert done.returncode == 2
    assert "stepz" in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--config", "none.yaml"), ("--config=none.yaml",)])
def test_config_replaces_the_default(arguments):
    done = bash("launch/local.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "none.yaml" in done.stderr and "nano" not in done.stderr


def test_arguments_go_to_pytest(tmp_path):
    done = bash("launch/test.sh", "tests/report/test_charts.py", "-k", "flat_line", cwd=tmp_path)
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


def test_no_network(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    path = path_with(folder)
    (folder / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    # pip is told to use no index, and so gets neither uv nor the packages: the same as offline, but quick.
    done = bash("launch/local.sh", root=fresh, env={"PATH": path, "PIP_NO_INDEX": "1"})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the packages could not be installed; last line: ")
    assert str(fresh / ".venv" / "setup.log") in last


def test_set_up_says_what_it_would_do(fresh):
    done = bash("launch/setup_env.sh", "--dry-run", "tpu", root=fresh)
    assert done.returncode == 0, done.stderr
    make, package, extra, browser = done.stdout.splitlines()
    assert make.startswith(f"make {fresh}/.venv with ") and package.endswith("pip install -e .")
    assert extra.endswith("pip install -e '.[tpu]'") and "Chromium" in browser
    assert not (fresh / ".venv").exists()
    assert bash("launch/setup_env.sh", "--dry-run", "dev").stdout == "", "nothing is missing here"
    done = bash("launch/test.sh", "--dry-run", "-k", "a b", root=fresh)
    assert done.stdout.splitlines()[-1].endswith("-m pytest -k a\\ b ") and not (fresh / ".venv").exists()


def slurm_job(*arguments: str) -> str:
    done = bash("launch/slurm.sh", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_slurm_dry_run_prints_the_job():
    job = slurm_job(
        *("--gpus", "4", "--time", "1:00:00", "--cuda", "cuda12", "--sbatch", "--partition=long"),
        *("--config", "configs/tiny.yaml", "--run.dir", "runs/my run"),
    )
    options = [line.removeprefix("#SBATCH ") for line in job.splitlines() if line.startswith("#SBATCH ")]
    assert {"--gpus-per-node=4", "--time=1:00:00", "--partition=long", "--requeue"} <= set(options)
    assert f"--chdir={REPOSITORY}" in options
    assert {"--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(options)
    assert "\nsrun bash launch/setup_env.sh cuda12 || exit\n" in job
    assert (
        "memocr_jax.train --processes.launcher slurm --config configs/tiny.yaml --run.dir runs/my\\ run &"
        in job
    )
    assert "--gpus-per-node" not in slurm_job("--gpus", "0", "--config", "a.yaml")
    many = slurm_job("--nodes", "8", "--model", "Qwen/Q", "--config", "a.yaml")
    assert "#SBATCH --nodes=8\n" in many and "--cpus-per-task=64" in many
    assert "\n.venv/bin/hf download Qwen/Q --local-dir models/Q || exit\n" in many


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "--config is missing"),
        (("--gpus", "many", "--config", "a.yaml"), "--gpus is 'many', which is not a whole number"),
        (("--config", "a.yaml", "--time"), "--time needs a value"),
    ],
)
def test_slurm_says_what_is_wrong(arguments, error):
    done = bash("launch/slurm.sh", *arguments)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {error}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (2, False)])
def test_slurm_job_saves_when_stopped_and_goes_back_into_the_queue(tmp_path, status, requeued):
    # The job's shell is real; the trainer is a script that waits for SIGTERM and ends as it is told, and
    # scontrol writes down that it was called. With real Slurm this was seen once by hand (docs/launch.md).
    job = slurm_job("--gpus", "0", "--config", "a.yaml").replace(f"--chdir={REPOSITORY}", "")
    for name, text in {
        "launch/setup_env.sh": "",
        ".venv/bin/python": f"trap 'echo saved > saved; exit {status}' TERM\necho $$ > pid\ntouch started\n"
        "while :; do sleep 0.05; done\n",
        "bin/srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
        # srun would kill its tasks for a SIGTERM of its own; scancel brings them one.
        "bin/scancel": '[[ "$*" == "--signal=TERM 17" ]] && kill -TERM "$(cat pid)"\n',
        "bin/scontrol": 'echo "$*" > queue\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/usr/bin/env bash\n" + text)
        path.chmod(0o755)
    shell = subprocess.Popen(
        ["bash", "-c", job],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "17"},
    )
    wait_until((tmp_path / "started").exists, shell)
    shell.terminate()
    assert shell.wait(LIMIT_S) == status
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "queue").exists() == requeued
    if requeued:
        assert (tmp_path / "queue").read_text() == "requeue 17\n"


def test_dockerfile_takes_what_the_package_needs():
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {"setup.py", "memocr_jax", "render", "configs", "README.md", "LICENSE"} <= copied
    let_in = {
        line.lstrip("!").removesuffix("/**")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert let_in == copied, ".dockerignore lets in exactly what is copied"


TPU = (
    *("--type", "v5litepod-256", "--zone", "us-west4-a"),
    *("--config", "configs/tiny.yaml", "--run.dir", "/runs/a b"),
)


def test_tpu_vm_dry_run_prints_the_commands():
    model = ("--model", "Qwen/Qwen2.5-VL-7B-Instruct")
    done = bash("launch/tpu_vm.sh", "--dry-run", "--spot", "--bucket", "mine", *model, *TPU)
    assert done.returncode == 0, done.stderr
    create, wait, copy, prepare, fetch, train, delete = done.stdout.splitlines()
    assert (
        "hf\\ download\\ Qwen/Qwen2.5-VL-7B-Instruct\\ --local-dir\\ models/Qwen2.5-VL-7B-Instruct" in fetch
    )
    assert create.startswith("gcloud compute tpus queued-resources create memocr --zone us-west4-a")
    assert "--accelerator-type v5litepod-256 --runtime-version v2-alpha-tpuv5-lite --spot" in create
    assert "ACTIVE" in wait and " scp " in copy and "--worker=all" in copy
    assert "gcsfuse" in prepare and "setup_env.sh\\ tpu\\ gcs" in prepare
    assert "--processes.launcher\\ tpu_vm\\ --config" in train and "--worker=all" in train
    assert "delete memocr" in delete
    assert "delete" not in bash("launch/tpu_vm.sh", "--dry-run", "--keep", *TPU).stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "--type is missing"),
        (("--type", "v6e-8"), "--zone is missing"),
        (("--type", "v9-8", "--zone", "z", "--config", "a.yaml"), "--version is missing"),
        (("--type", "v6e-8", "--zone", "z"), "--config is missing"),
    ],
)
def test_tpu_vm_says_what_is_wrong(arguments, error):
    done = bash("launch/tpu_vm.sh", *arguments)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {error}")


def test_tpu_vm_asks_again_when_the_slice_is_taken_away(tmp_path):
    # gcloud is a script that keeps the slice's state in a file: the first training loses the slice.
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(
        "#!/usr/bin/env bash\ncd "
        f"{tmp_path}\n"
        'echo "$*" >> calls\n'
        'case "$*" in\n'
        "  *describe*) [[ -e state ]] && cat state ;;\n"
        "  *create*) echo ACTIVE > state ;;\n"
        "  *delete*) rm -f state ;;\n"
        "  *memocr_jax.train*) [[ -e second ]] || { touch second; echo SUSPENDED > state; exit 255; } ;;\n"
        "esac\n"
    )
    gcloud.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "TMPDIR": str(scratch)}
    done = bash("launch/tpu_vm.sh", "--poll", "0.01", *TPU, env=environment)
    assert done.returncode == 0, done.stderr
    assert not any(scratch.iterdir()), "the copy of the code is removed"
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = [next((v for v in ("create", "delete", "memocr_jax.train") if v in call), "") for call in calls]
    assert [v for v in verbs if v] == 2 * ["create", "memocr_jax.train", "delete"]
    assert "start 1 of 20 ended with status 255; the slice is SUSPENDED" in done.stderr
