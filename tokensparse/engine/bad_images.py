"""Images that cannot be read: named, counted, replaced in training up to a budget, never else."""

import contextlib
import json
import math
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset, get_worker_info

from tokensparse.engine.data_order import Batch
from tokensparse.engine.randomness import kept_randomness, seed_all
from tokensparse.registry import HOOKS

FILE = "bad_images.jsonl"


class BadImageError(ValueError):
    """An image cannot be read, or too many cannot."""


def image_name(dataset: Any, index: int) -> str:
    """``image 17 (train/cat/a.jpg)``: the path where the data set knows one."""
    samples = getattr(getattr(dataset, "reader", dataset), "samples", None)
    try:
        path = samples[index][0] if samples else dataset.get_data_info(index)["img_path"]
    except (AttributeError, KeyError, IndexError, TypeError):
        return f"image {index}"
    return f"image {index} ({path})"


class Quarantine:
    """The file that names bad images; workers and processes of a run share it.

    Args:
        path: one line of JSON per image: ``index``, ``image``, ``error``.
        budget: how many different images may be bad.
    """

    def __init__(self, path: str | Path, budget: int) -> None:
        self.path = Path(path)
        self.budget = budget

    def known(self) -> dict[int, str]:
        """Index and error of every image in the file."""
        if not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut short by a kill
                entry = json.loads(line)
                found[entry["index"]] = f"{entry['image']}: {entry['error']}"
        return found

    def add(self, index: int, name: str, error: Exception) -> None:
        """Name a bad image.

        Args:
            index: its place in the data set.
            name: what people call it.
            error: why it cannot be read.

        Raises:
            BadImageError: the budget is spent.
        """
        known = self.known()
        if index not in known:
            known[index] = f"{name}: {type(error).__name__}: {error}"
            reason = f"{type(error).__name__}: {error}"
            line = json.dumps({"index": index, "image": name, "error": reason}) + "\n"
            if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
                line = "\n" + line  # after one that a kill has cut short
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        if len(known) > self.budget:
            raise BadImageError(
                f"{len(known)} images cannot be read, {self.budget} are allowed; the last: "
                f"{known[index]}. All are named in {self.path}. Mend or remove them, or set "
                "default_hooks.bad_images.budget to a larger share"
            ) from error


class GuardedDataset(Dataset):
    """A data set whose images are drawn from their own seeds, and whose faults have names.

    What it does not know it asks the data set inside.

    Args:
        dataset: any map-style data set.
        quarantine: takes bad images, which others then replace; None raises at the first.
    """

    def __init__(self, dataset: Any, quarantine: Quarantine | None = None) -> None:
        self._inside = dataset
        self._quarantine = quarantine

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inside":
            raise AttributeError(name)
        return getattr(self._inside, name)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._inside)

    def __getitem__(self, index: int) -> Any:
        """An image of the data set inside."""
        try:
            return self._inside[index]
        except IndexError:  # ends a loop over the data set
            raise
        except Exception as error:
            raise BadImageError(
                f"{image_name(self._inside, index)} cannot be read: {type(error).__name__}: "
                f"{error}. Evaluation leaves no image out: mend or remove it"
            ) from error

    def __getitems__(self, batch: Batch | Iterable[int]) -> list[Any]:
        """The images of a batch; each from its own seed, whichever process draws it."""
        if not isinstance(batch, Batch):
            return [self[index] for index in batch]
        pairs = zip(batch.indices, batch.seeds, strict=True)
        if get_worker_info() is not None:
            return [self._drawn(index, seed) for index, seed in pairs]
        with kept_randomness():
            return [self._drawn(index, seed) for index, seed in pairs]

    def _drawn(self, index: int, seed: int) -> Any:
        if self._quarantine is None:
            seed_all(seed)
            return self[index]
        for candidate in self._candidates(index, seed):
            seed_all(seed)
            try:
                return self._inside[candidate]
            except Exception as error:
                self._quarantine.add(candidate, image_name(self._inside, candidate), error)
        raise AssertionError("there is always another candidate")

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        """The image, then others that its seed chooses."""
        yield index
        others = random.Random(seed)
        while True:
            yield others.randrange(len(self))


@HOOKS.register_module()
class BadImagesHook(Hook):
    """How many images may be bad, and how long a loader may be silent.

    Args:
        budget: the share of the training images that may be unreadable, at least one image.
        timeout: seconds to wait for a batch of the loader's workers, where the config sets none.

    Raises:
        ValueError: a share outside 0..1, or a timeout that is not positive.
    """

    def __init__(self, budget: float = 0.001, timeout: float = 300.0) -> None:
        if not 0 <= budget <= 1:
            raise ValueError(f"budget={budget}; legal: a share of the images, 0 to 1")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}; legal: seconds, more than 0")
        self.budget = budget
        self.timeout = timeout
        self._told = 0

    def quarantine(self, runner: Runner, dataset: Any) -> Quarantine:
        """The quarantine of a run's training data."""
        budget = min(math.ceil(self.budget * len(dataset)), len(dataset) - 1)
        return Quarantine(Path(runner.work_dir, FILE), budget)

    def before_train(self, runner: Runner) -> None:
        """A run that starts anew looks at every image anew."""
        if is_main_process() and not runner._resume:
            Path(runner.work_dir, FILE).unlink(missing_ok=True)

    def after_train_epoch(self, runner: Runner) -> None:
        """Tell how many images were replaced."""
        known = Quarantine(Path(runner.work_dir, FILE), 0).known() if is_main_process() else {}
        if len(known) > self._told:
            self._told = len(known)
            runner.logger.warning(
                f"{len(known)} training images cannot be read and were replaced by others; "
                f"named in {Path(runner.work_dir, FILE)}"
            )
