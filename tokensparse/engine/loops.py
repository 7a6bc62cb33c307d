"""mmengine's training loops, going on at any batch."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from tokensparse.engine.data_order import OrderedBatches


class EpochLoop(EpochBasedTrainLoop):
    """mmengine's, going on inside an epoch."""

    _begun = False

    def run_epoch(self) -> None:
        """Run the batches of an epoch that have not been run."""
        if not self._begun and self._owes_validation():
            self.runner.val_loop.run()
        self._begun = True
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        order = self.dataloader.batch_sampler
        if isinstance(order, OrderedBatches):
            order.set_epoch(self._epoch)
            order.skip(first)
        else:
            first = 0
        for idx, data_batch in enumerate(self.dataloader, first):
            self.run_iter(idx, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _owes_validation(self) -> bool:
        """Whether a schedule that follows a metric still waits for the resumed epoch's.

        An epoch's checkpoint is written before its validation.
        """
        schedules = self.runner.param_schedulers or []
        if isinstance(schedules, Mapping):
            schedules = [one for each in schedules.values() for one in each]
        return (
            self._epoch > 0
            and self._iter == self._epoch * len(self.dataloader)
            and any(getattr(schedule, "need_val_args", False) for schedule in schedules)
            and self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and self._epoch % self.val_interval == 0
        )


class EndlessBatches:
    """The batches of a loop that counts iterations; takes the place of mmengine's iterator.

    Args:
        loader: a loader with :class:`OrderedBatches`.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> "EndlessBatches":
        return self

    def __next__(self) -> Any:
        """The next batch, of the next epoch where this one is over."""
        if self._batches is None:
            self._batches = iter(self.loader)
        batch = next(self._batches, None)
        if batch is None:
            order = self.loader.batch_sampler
            order.set_epoch(order.epoch + 1)
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def skip_iter(self, num_iters: int) -> None:
        """Go on after so many batches; nothing is read."""
        self.loader.batch_sampler.skip(num_iters)
        self._batches = None
