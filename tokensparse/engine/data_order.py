"""Batches whose order and random numbers depend on their place alone.

The image drawn at place p of an epoch is augmented from the seed (run's seed, epoch, p), whatever
number of workers or processes draw; so a run can go on at any batch, and needs only its number.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from tokensparse.engine.randomness import seed_of


class Batch(NamedTuple):
    """What a loader's worker gets: the images to read, and a seed for each."""

    indices: list[int]
    seeds: list[int]


class OrderedBatches(Sampler):
    """A batch sampler that starts anywhere and gives every image its seed.

    Args:
        batches: the batch sampler inside.
        seed: the run's.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.handed_out: deque[list[int]] = deque()
        self._rank, self._world = get_dist_info()
        self._source: tuple[Iterator[Any], int] | None = None

    @property
    def sampler(self) -> Any:
        """The sampler of images."""
        return getattr(self.batches, "sampler", None)

    @property
    def batch_size(self) -> int:
        """Images of a whole batch, in this process."""
        size: int = self.batches.batch_size
        return size

    def __len__(self) -> int:
        """Batches of an epoch, in this process."""
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, in the sampler of images, too."""
        self.epoch = epoch
        self._source = None
        for sampler in (self.batches, self.sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def skip(self, count: int) -> None:
        """Let the next pass begin after ``count`` batches, epochs on where they do not suffice.

        Nothing is read.
        """
        source, drawn = iter(self.batches), 0
        for _ in range(count):
            indices = next(source, None)
            if indices is None:
                self.set_epoch(self.epoch + 1)
                source, drawn = iter(self.batches), 0
                indices = next(source)
            drawn += len(indices)
        self._source = source, drawn

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where :meth:`skip` left off, or from the epoch's first."""
        source, drawn = self._source or (iter(self.batches), 0)
        self._source = None
        self.handed_out.clear()
        epoch = self.epoch
        for indices in source:
            places = range(drawn, drawn + len(indices))
            seeds = [seed_of(self.seed, epoch, p * self._world + self._rank) for p in places]
            drawn += len(indices)
            self.handed_out.append(list(indices))
            yield Batch(list(indices), seeds)
