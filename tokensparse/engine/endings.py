"""How a run ends when something is wrong: one clear message instead of a stack."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import is_distributed

from tokensparse.engine.loader import LoaderError

SHOW = "TOKENSPARSE_TRACEBACK"


#: No room: on the disk, in the quota, for a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def bare(error: OSError) -> str:
    """What an error says that names no file."""
    return f"[Errno {error.errno}] {error.strerror}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of torch.distributed says that another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in told for words in ("gloo", "closed by peer", "reset by peer", "nccl")
    )


def is_known(error: BaseException) -> bool:
    """Whether the message of an error says enough without its stack."""
    known = isinstance(error, (ValueError, OSError, LoaderError, torch.OutOfMemoryError))
    return known or "DataLoader worker" in str(error)


@contextmanager
def one_clear_message() -> Iterator[None]:
    """End the program with one message where a check, a file, a loader or a peer fails.

    The variable ``TOKENSPARSE_TRACEBACK`` shows where in the code.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(SHOW):
            raise
        told = f"{type(error).__name__}: {error}"
        if is_distributed() and is_lost_peer(error):
            told = (
                "another process of this run ended; its own message says why. The same command "
                f"with --resume goes on from the newest checkpoint ({str(error).splitlines()[0]})"
            )
        elif not is_known(error):
            raise  # the stack is needed
        elif isinstance(error, OSError) and error.errno in FULL and str(error) == bare(error):
            told += (
                ": the run's log or curves could not be written; make room on the disk of the work "
                "dir and go on with --resume"
            )
        sys.exit(f"{told}\n({SHOW}=1 shows where in the code)")
