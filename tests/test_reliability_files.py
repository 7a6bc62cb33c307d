"""Safe checkpoints: whole or absent, the old one removed last, the newest valid one found."""

import errno
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from reliability import recorder, start, tiny_config

from tokensparse.checkpoint.hashes import check_hash, hash_file
from tokensparse.engine.checkpoint_reading import read_checkpoint
from tokensparse.engine.checkpoints import newest_valid
from tokensparse.engine.endings import one_clear_message
from tokensparse.engine.whole_files import write_hashed, write_whole

SOAK = bool(os.environ.get("TOKENSPARSE_SOAK"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir with the checkpoints of ten steps."""
    folder = tmp_path_factory.mktemp("trained")
    start(tiny_config(folder, train_cfg=dict(max_epochs=2)))
    return folder


@pytest.fixture
def work_dir(trained: Path, tmp_path: Path) -> Path:
    """Its last three checkpoints, to be damaged."""
    for step in (8, 9, 10):
        for path in (trained / f"iter_{step}.pth", hash_file(trained / f"iter_{step}.pth")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_flushed_before_it_is_renamed(tmp_path: Path) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    with (
        patch("os.fsync", lambda f: (calls.append("flush"), sync(f))),
        patch("os.replace", lambda a, b: (calls.append(f"rename {Path(b).name}"), replace(a, b))),
    ):
        write_whole(tmp_path / "file", b"content")
    assert calls == ["flush", "rename file", "flush"]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_hash_is_sha256sums(trained: Path) -> None:
    path = trained / "iter_10.pth"
    digest, name = hash_file(path).read_text().split()
    assert name == path.name
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_crash_at_any_write_leaves_a_file_that_agrees_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"

    class CrashError(BaseException):
        pass

    replace = os.replace
    for crash_at in range(3):
        write_hashed(path, b"old")
        done = []

        def rename(a: object, b: object, last: int = crash_at, done: list = done) -> None:
            if len(done) == last:
                raise CrashError
            done.append(b)
            replace(a, b)

        with patch("os.replace", rename), pytest.raises(CrashError):
            write_hashed(path, b"new")
        assert path.read_bytes() == (b"old" if crash_at < 2 else b"new")
        check_hash(path)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        with zipfile.ZipFile(path) as archive:  # a byte of the largest tensor
            entry = max(archive.infolist(), key=lambda e: e.file_size)
        content[entry.header_offset + 30 + len(entry.filename) + 64 + entry.file_size // 2] ^= 1
    elif kind == "cut":
        del content[len(content) * 2 // 3 :]
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty"])
def test_damaged_files_are_named_and_passed_over(
    kind: str, work_dir: Path, record_property: Callable
) -> None:
    damage(work_dir / "iter_10.pth", kind)
    said: list[str] = []
    assert newest_valid(work_dir, said.append) == work_dir / "iter_9.pth"
    assert len(said) == 1 and "iter_10.pth" in said[0]
    hash_file(work_dir / "iter_9.pth").unlink()  # without a hash, the file's own sums are asked
    damage(work_dir / "iter_9.pth", kind)
    assert newest_valid(work_dir, said.append) == work_dir / "iter_8.pth"
    with pytest.raises(ValueError, match=r"iter_10\.pth"):
        read_checkpoint(work_dir / "iter_10.pth")
    recorder(record_property)(
        f"checkpoint {kind}", "named and passed over", "the one before was loaded"
    )


def test_only_damaged_files_do_not_start_a_run_anew(work_dir: Path) -> None:
    for path in work_dir.glob("*.pth"):
        damage(path, "cut")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is valid") as told:
        newest_valid(work_dir, lambda line: None)
    assert all(f"iter_{step}.pth" in str(told.value) for step in (8, 9, 10))


def test_resume_takes_the_newest_whatever_the_names_and_times_say(work_dir: Path) -> None:
    (work_dir / "last_checkpoint").write_text(str(work_dir / "iter_8.pth"))
    os.utime(work_dir / "iter_8.pth")
    (work_dir / "iter_10.pth").rename(work_dir / "a.pth")
    hash_file(work_dir / "iter_10.pth").rename(hash_file(work_dir / "a.pth"))
    assert newest_valid(work_dir) == work_dir / "a.pth"
    _, losses = start(tiny_config(work_dir, train_cfg=dict(max_epochs=3)), resume=True)
    assert min(losses.by_step) == 11


def test_the_old_checkpoint_is_removed_last(tmp_path: Path) -> None:
    events: list[str] = []
    unlink, replace = Path.unlink, os.replace

    def removed(path: Path, missing_ok: bool = False) -> None:
        events.append(f"- {path.name}")
        unlink(path, missing_ok)

    def renamed(a: str, b: str) -> None:
        events.append(f"+ {Path(b).name}")
        replace(a, b)

    cfg = tiny_config(tmp_path, train_cfg=dict(max_epochs=1))
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    with patch.object(Path, "unlink", removed), patch("os.replace", renamed):
        start(cfg)
    for step in range(2, 6):
        assert events.index(f"+ iter_{step}.pth") < events.index(f"- iter_{step - 1}.pth")
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_5.pth"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond this many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk(work_dir: Path, record_property: Callable) -> None:
    before = (work_dir / "iter_10.pth").read_bytes()
    with largest_file(len(before) // 2), pytest.raises(OSError, match=r"iter_11\.pth was not"):
        start(tiny_config(work_dir, train_cfg=dict(max_epochs=3)), resume=True)
    assert not list(work_dir.glob("*.partial"))
    assert newest_valid(work_dir) == work_dir / "iter_10.pth"
    with largest_file(len(before) // 2), pytest.raises(OSError, match="bytes wanted"):
        write_hashed(work_dir / "iter_10.pth", before + b"x")
    assert (work_dir / "iter_10.pth").read_bytes() == before
    check_hash(work_dir / "iter_10.pth")
    with largest_file(len(before) // 2), pytest.raises(OSError, match=r"new\.pth was not written"):
        write_hashed(work_dir / "new.pth", before)
    assert not list(work_dir.glob("new.pth*"))
    with pytest.raises(SystemExit, match="log or curves could not be written"), one_clear_message():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    recorder(record_property)(
        "disk full (RLIMIT_FSIZE) while a checkpoint is written",
        "the run ends and names the file; the newest valid checkpoint loads",
        "named; no partial file left; the checkpoint before is whole",
    )


CHILD = """
import sys
from pathlib import Path
from reliability import start, tiny_config
cfg = tiny_config(Path(sys.argv[1]), train_cfg=dict(max_epochs=4000))
cfg.default_hooks.checkpoint.max_keep_ckpts = 1
start(cfg, resume=True)
"""


def test_killed_at_random_moments(tmp_path: Path, record_property: Callable) -> None:
    """SIGKILL; each new process goes on from what the one before left."""
    here = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONPATH": here + os.pathsep + os.environ.get("PYTHONPATH", ".")}
    rng, reached, kills = random.Random(0), 0, 40 if SOAK else 3
    log = tmp_path / "said"
    for _ in range(kills):
        with open(log, "ab") as out:
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path)],
                env=env, cwd=Path(here).parent, stdout=out, stderr=out,
            )  # fmt: skip
        deadline = time.monotonic() + 600
        while child.poll() is None and time.monotonic() < deadline:
            newest = newest_now(tmp_path)
            if newest > reached:
                break
            time.sleep(0.02)
        time.sleep(rng.random())
        assert child.poll() is None, log.read_text()[-2000:]
        child.kill()
        child.wait()
        newest = newest_valid(tmp_path)
        assert newest is not None
        step = read_checkpoint(newest)["meta"]["iter"]
        assert step > reached, "the run before it was lost"
        reached = step
    assert "starts anew" in log.read_text()
    assert log.read_text().count("starts anew") == 1
    recorder(record_property)(
        f"killed (SIGKILL) at {kills} random moments, a checkpoint each step, one kept",
        "the newest valid checkpoint loads; at most one interval is lost",
        f"each of {kills} kills left a valid checkpoint newer than the one before",
    )


def newest_now(folder: Path) -> int:
    steps = [p.stem.removeprefix("iter_") for p in folder.glob("iter_*.pth")]
    return max((int(s) for s in steps), default=0)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    from mmengine.hooks import Hook

    class Spoil(Hook):
        priority = "VERY_HIGH"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            if runner.iter == 3:
                with torch.no_grad():
                    next(runner.model.parameters()).fill_(float("inf"))

    with pytest.raises(ValueError, match="not finite"):
        start(tiny_config(tmp_path), Spoil())
    assert newest_valid(tmp_path) == tmp_path / "iter_3.pth"
