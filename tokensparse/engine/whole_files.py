"""Files that are whole or absent: a second name, flushed, renamed; a hash lies beside them.

``epoch_3.pth.sha256`` has the form that ``sha256sum --check`` reads.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from tokensparse.checkpoint.hashes import hash_file


def write_whole(path: str | Path, content: bytes) -> None:
    """Write under a second name, flush to the disk, rename.

    Whenever the process dies, ``path`` holds its old content or the new one.

    Args:
        path: the file.
        content: what it shall hold.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; ``path`` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise OSError(
            error.errno,
            f"{path} was not written ({error.strerror or error}): {len(content):,} bytes wanted, "
            f"{free:,} free on that disk. What the file held before is untouched; make room and "
            "go on with --resume",
        ) from error
    with contextlib.suppress(OSError):  # some file systems have no folders to flush
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_hashed(path: str | Path, content: bytes) -> None:
    """Write a file and its hash, so that at every moment the file agrees with one of its hashes.

    Args:
        path: the file.
        content: what it shall hold.

    Raises:
        OSError: see :func:`write_whole`.
    """
    path, beside = Path(path), hash_file(path)
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    old = beside.read_text() if path.exists() and beside.exists() else ""
    if old or not path.exists():
        write_whole(beside, (line + old).encode())
    try:
        write_whole(path, content)
    except OSError:
        if not path.exists():  # no hash of a file that is not there
            beside.unlink(missing_ok=True)
        raise
    write_whole(beside, line.encode())


def remove_hashed(path: str | Path) -> None:
    """Remove a file, then its hash."""
    Path(path).unlink(missing_ok=True)
    hash_file(path).unlink(missing_ok=True)


@register_backend("tokensparse.whole", force=True)
class WholeFiles(LocalBackend):
    """mmengine's local files, written whole and with a hash."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes, see :func:`write_hashed`."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        write_hashed(filepath, obj)
