"""The loader: its order known, its workers watched."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from tokensparse.engine.bad_images import BadImageError, GuardedDataset, Quarantine
from tokensparse.engine.data_order import OrderedBatches


class LoaderError(RuntimeError):
    """A worker of a loader died or hangs."""


class WatchedLoader(DataLoader):
    """torch's loader; where a worker fails, the error says which, and no worker stays behind.

    ``indices`` are the images of the batch that was handed out last.
    """

    indices: list[int]

    def __iter__(self) -> Iterator[Any]:
        """Batches of a pass."""
        batches = super().__iter__()
        order = self.batch_sampler if isinstance(self.batch_sampler, OrderedBatches) else None
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except BadImageError as error:  # from a worker it comes with the worker's whole stack
                raise BadImageError(str(error).rsplit("BadImageError: ", 1)[-1].strip()) from None
            except RuntimeError as error:
                if "DataLoader" not in str(error):
                    raise
                told = _tell(batches, self.timeout, error)
                _kill(getattr(batches, "_workers", []))
                raise LoaderError(told) from error
            if order is not None and order.handed_out:
                self.indices = order.handed_out.popleft()
            yield batch


def _tell(batches: Any, timeout: float, error: RuntimeError) -> str:
    workers = getattr(batches, "_workers", [])
    dead = [f"{i} (process {w.pid}, exit code {w.exitcode})" for i, w in enumerate(workers)
            if not w.is_alive()]  # fmt: skip
    if dead:
        return (
            f"worker {', '.join(dead)} of the loader died: {str(error).splitlines()[0]} Where the "
            "exit code is -9, the system may lack memory: set a smaller num_workers"
        )
    waited = getattr(batches, "_task_info", {}).get(getattr(batches, "_rcvd_idx", None), (None,))[0]
    name = f"{waited} (process {workers[waited].pid})" if waited is not None else "(unknown)"
    return (
        f"worker {name} of the loader gave no batch in {timeout:g} s; the storage may be hung. "
        "Set the dataloader's timeout (seconds) higher if reading takes so long"
    )


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        worker.kill()


def kill_children() -> None:
    """End the loaders' workers of this process at once."""
    _kill(multiprocessing.active_children())


def start_worker(worker_id: int, inside: Callable[[int], None] | None = None) -> None:
    """Leave Ctrl-C and SIGTERM to the process that trains, which still wants its batches.

    Only the SIGTERM of that process itself ends a worker.

    Args:
        worker_id: the worker's number.
        inside: the loader's own ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    if inside is not None:
        inside(worker_id)


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def watched(
    loader: DataLoader, seed: int, timeout: float, quarantine: Quarantine | None = None
) -> DataLoader:
    """The same loader in known order, with named faults.

    Args:
        loader: a loader that has not started.
        seed: the run's.
        timeout: seconds to wait for a worker, where the loader has none.
        quarantine: takes unreadable images; None raises at the first.

    Returns:
        A new loader; loaders of streams, and those without batches, come back as they are.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return loader
    parallel: dict[str, Any] = {}
    if loader.num_workers:
        parallel = dict(
            timeout=loader.timeout or timeout,
            worker_init_fn=partial(start_worker, inside=loader.worker_init_fn),
            persistent_workers=loader.persistent_workers,
            prefetch_factor=loader.prefetch_factor,
            multiprocessing_context=loader.multiprocessing_context,
        )
    return WatchedLoader(
        GuardedDataset(loader.dataset, quarantine),
        batch_sampler=OrderedBatches(loader.batch_sampler, seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=torch.Generator().manual_seed(seed),
        **parallel,
    )
