"""The hash that lies beside a file: ``epoch_3.pth.sha256``, as ``sha256sum --check`` reads it."""

import hashlib
from pathlib import Path


class DamagedFileError(ValueError):
    """A file whose bytes are not those that were written."""


def hash_file(path: str | Path) -> Path:
    """Where the hash of a file lies."""
    return Path(f"{path}.sha256")


def check_hash(path: str | Path) -> bool:
    """Compare a file with the hash beside it, where there is one.

    Args:
        path: the file.

    Returns:
        Whether there was a hash to compare with; an empty file beside it holds none.

    Raises:
        DamagedFileError: the file is not the one that was written.
    """
    beside = hash_file(path)
    if not beside.is_file():
        return False
    lines = beside.read_text("utf-8", "replace").splitlines()
    known = [line.split()[0].lower() for line in lines if line.strip()]
    if not known:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if found not in known:
        raise DamagedFileError(
            f"{path} is damaged: its sha256 is {found[:12]}..., {beside.name} says "
            f"{known[0][:12]}.... Copy it again from where it came, or name an older checkpoint"
        )
    return True
