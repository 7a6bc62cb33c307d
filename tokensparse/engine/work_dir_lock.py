"""One run per work dir: a second one is refused; the lock of a dead run is free."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

FILE = ".lock"


class WorkDirInUseError(ValueError):
    """Another run writes to the work dir."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a run's folder; the system frees it when the process ends, however it ends.

    The loader's workers do not inherit it. The first process of a run holds it for all.

    Args:
        folder: the work dir; it is made where it is absent.

    Raises:
        WorkDirInUseError: another run holds it; in every process of this run.
    """
    file, told = None, [None]
    if is_main_process():
        try:
            file = _take(Path(folder))
        except WorkDirInUseError as error:
            told = [str(error)]
    broadcast_object_list(told)
    if told[0]:
        raise WorkDirInUseError(told[0])
    try:
        if file is not None:
            for partial in Path(folder).glob("*.partial"):  # of a run that was killed
                partial.unlink()
        yield
    finally:
        if file is not None:
            os.close(file)


def _take(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
        os.close(file)
        raise WorkDirInUseError(
            f"{folder.resolve()} is in use by {holder or 'another run'}. Wait for it, end it, or "
            "choose another folder with --work-dir"
        ) from error
    except OSError:  # a file system without locks
        os.close(file)
        return None
    os.ftruncate(file, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return file
