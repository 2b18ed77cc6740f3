"""Runs in buckets: what is there after each copy, and what another machine makes of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from memocr_jax.convert import export_run
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import abstract_like
from memocr_jax.runs.checkpoint import Checkpoints, Meta, open_checkpoint
from memocr_jax.runs.run_place import RunPlace, is_remote
from tests.training_runs import ROOT, WITH_SIGNAL, environment, metrics_of, params_of, write_config
from tests.waiting import LIMIT_S, wait_until

FILES = fsspec.filesystem("memory")
URL = "memory://bucket/runs/a"


@pytest.fixture(autouse=True)
def empty_store():
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]


def objects() -> dict[str, bytes]:
    """The objects in the bucket, by name within the run."""
    return {name.removeprefix("/bucket/runs/a/"): FILES.cat_file(name) for name in FILES.find("/bucket")}


def folder_of(place: RunPlace) -> dict[str, bytes]:
    files = [path for path in place.directory.rglob("*") if path.is_file()]
    return {path.relative_to(place.directory).as_posix(): path.read_bytes() for path in files}


def write(place: RunPlace, name: str, text: str, mode: str = "w") -> None:
    path = place.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.write(text)


def test_a_folder_is_its_own_place(tmp_path):
    with RunPlace(str(tmp_path / "run"), fresh=True, process=1, processes=2) as place:
        assert place.directory == place.checkpoints == tmp_path / "run"
        place.push(wait=True)
    assert not (tmp_path / "run").exists()
    assert [is_remote(p) for p in ("runs/a", "/x/s3://y", "s3://b/a", Path("gs://b/a"))] == [0, 0, 1, 1]


def test_what_changes_is_copied_and_another_machine_goes_on_from_it(tmp_path):
    with RunPlace(URL, str(tmp_path / "one")) as place:
        assert list(place.directory.iterdir()) == []
        write(place, "config.yaml", "a: 1\n")
        write(place, "metrics.jsonl", '{"step": 1}\n')
        write(place, "trajectories/pages/step_1/p.png", "page")
        write(place, "goodput.tmp", "half a file")
        place.push(wait=True)
        assert objects() == {k: v for k, v in folder_of(place).items() if k != "goodput.tmp"}
        (place.directory / "goodput.tmp").unlink()
        write(place, "metrics.jsonl", '{"step": 2}\n', "a")
        (place.directory / "trajectories/pages/step_1/p.png").unlink()
        place.push()
        write(place, "report.html", "<html>")
    assert objects() == folder_of(place) and len(objects()) == 3
    with RunPlace(URL, str(tmp_path / "two")) as again:
        assert folder_of(again) == objects()
        write(again, "metrics.jsonl", '{"step": 3}\n', "a")
    assert objects()["metrics.jsonl"].count(b"\n") == 3


def test_a_copy_that_fails_is_made_up_for(tmp_path, monkeypatch, caplog):
    put_file, broken = FILES.put_file, [True]

    def failing(*args, **options):
        if broken[0]:
            raise OSError("503")
        put_file(*args, **options)

    monkeypatch.setattr(type(FILES), "put_file", lambda self, *args, **options: failing(*args, **options))
    with RunPlace(URL, str(tmp_path)) as place:
        write(place, "config.yaml", "a: 1\n")
        monkeypatch.setattr("memocr_jax.runs.run_place.logger.propagate", True)
        place.push(wait=True)
        assert "memory://bucket/runs/a: copying failed (OSError: 503)" in caplog.text and objects() == {}
        broken[0] = False
    assert objects() == {"config.yaml": b"a: 1\n"}
    broken[0] = True
    with (
        pytest.raises(UserError, match=r"copying failed .*; what is missing there is in "),
        place2(tmp_path) as p,
    ):
        write(p, "metrics.jsonl", "")
    with pytest.raises(ZeroDivisionError), place2(tmp_path) as p:  # what came first is what is raised
        write(p, "metrics.jsonl", "")
        raise ZeroDivisionError


def place2(tmp_path) -> RunPlace:
    return RunPlace(URL, str(tmp_path))


def save(place: RunPlace, small_model, params, *steps: int) -> None:
    with Checkpoints(place.checkpoints, keep=2) as checkpoints:
        for step in steps:
            checkpoints.save(Meta(step, step, small_model.config.to_dict()), {"params": params})


def test_a_checkpoint_counts_when_all_of_it_is_there(tmp_path, small_model, tiny_mesh, monkeypatch):
    _, params = small_model.on(tiny_mesh)
    with RunPlace(URL, str(tmp_path / "one")) as place:
        write(place, "config.yaml", "")
        save(place, small_model, params, 1, 2)
        place.push(wait=True)
        assert {"checkpoints/1.complete", "checkpoints/2.complete"} <= set(objects())
        save(place, small_model, params, 3)  # keeps two
    names = set(objects())
    assert {"checkpoints/2.complete", "checkpoints/3.complete"} <= names
    assert not any(name.startswith("checkpoints/1") for name in names), "removed there, too"

    # The machine is lost in the middle of copying the next one.
    put_file, left = FILES.put_file, [3]

    def lost(self, *args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("gone")
        put_file(*args, **options)

    with pytest.raises(UserError), RunPlace(URL, str(tmp_path / "two")) as place:
        save(place, small_model, params, 4)
        monkeypatch.setattr(type(FILES), "put_file", lost)
    monkeypatch.undo()
    assert any(name.startswith("checkpoints/4/") for name in objects())
    with RunPlace(URL, str(tmp_path / "three")) as place:
        assert not any(name.startswith("checkpoints/4") for name in objects()), "what was left of it is gone"
        with Checkpoints(place.checkpoints) as checkpoints:
            assert checkpoints.latest() == 3 and checkpoints.meta(3).step == 3
            restored = checkpoints.restore(3, params=abstract_like(params))["params"]
    import jax

    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mistakes_are_one_clear_line(tmp_path):
    FILES.pipe_file("/bucket/runs/a/holiday.jpg", b"")
    with pytest.raises(UserError, match=r"run.dir memory://bucket/runs/a: holds files that are not a run's"):
        RunPlace(URL, str(tmp_path))
    with pytest.raises(UserError, match=r"run.fresh: run.dir memory.* is in a bucket"):
        RunPlace(URL, str(tmp_path), fresh=True)
    with pytest.raises(UserError, match=r"checkpoints of 2 processes can be written to gs://"):
        RunPlace("s3://bucket/a", str(tmp_path), processes=2)
    with pytest.raises(UserError, match=r"run.dir is ftpx://a/b: .*use a folder, gs:// or s3://"):
        RunPlace("ftpx://a/b", str(tmp_path))
    with pytest.raises(UserError, match=r"run directory s3://a/b: runs are read from folders"):
        open_checkpoint("s3://a/b").__enter__()
    with pytest.raises(UserError, match=r"run directory gs:/a/b: runs are read from folders"):
        export_run(Path("gs://a/b"), tmp_path / "hf")


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, scheme, extra):
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)
    for known in ("gs", "gcs", "s3", "s3a"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, known, raising=False)
    with pytest.raises(UserError, match=rf"pip install 'memocr_jax\[{extra}\]'"):
        RunPlace(f"{scheme}://a/b", str(tmp_path))


@pytest.fixture
def s3(monkeypatch):
    """A bucket of a server on this machine that speaks S3's protocol."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    try:

        def listens():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, server)
        files = fsspec.filesystem("s3", use_listings_cache=False)
        files.mkdir("bucket")
        yield files
    finally:
        server.terminate()
        server.wait(LIMIT_S)


def test_a_run_on_s3_that_is_killed_ends_as_if_nothing_had_happened(s3, tmp_path):
    write_config(tmp_path / "quick.yaml", data={"synthetic": {"chunks": 1}}, rl={"kl_coef": 0.0})

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, *WITH_SIGNAL, "--config", "quick.yaml", *arguments],
            cwd=tmp_path,
            env={**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole = start("--run.dir", "whole")
    output, _ = whole.communicate(timeout=LIMIT_S)
    assert whole.returncode == 0, output
    url = ("--run.dir", "s3://bucket/runs/a")
    first = start(*url, "--run.staging", "machine1")
    wait_until(lambda: s3.exists("bucket/runs/a/checkpoints/1.complete"), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(*url, "--run.staging", "machine2")
    output, _ = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 0, output
    assert (
        "continuing" in output and "s3://bucket/runs/a: this machine works in the folder machine2" in output
    )
    s3.get("bucket/runs/a", str(tmp_path / "copy"), recursive=True)
    assert metrics_of(tmp_path / "copy") == metrics_of(tmp_path / "whole")
    for ours, theirs in zip(params_of(tmp_path / "copy"), params_of(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "copy" / "report.html").stat().st_size > 1000
