"""Progress that a person can read, TensorBoard curves, and a picture at the end."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from tokensparse.registry import HOOKS

Point = tuple[float, float]


def duration(seconds: float) -> str:
    """``1:05:09`` or ``5:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@HOOKS.register_module()
class ProgressHook(Hook):
    """Plain lines, with or without a terminal: one per epoch, more of them in long epochs.

    Takes the place of mmengine's ``LoggerHook``. Curves go to the visualizer's backends;
    ``curves.png`` lies beside the log at the end.

    Args:
        interval: iterations between two points of the curves.
        every_seconds: least time between two lines within an epoch, in seconds.
        metric: the one whose best value is told.
        unit: behind the values of metrics; with "%" two decimals are shown, else three.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        interval: int = 10,
        every_seconds: float = 20.0,
        metric: str = "accuracy/top1",
        unit: str = "%",
    ) -> None:
        self.interval = interval
        self.every_seconds = every_seconds
        self.metric = metric
        self.unit = unit
        self.loss: list[Point] = []
        self.train_acc: list[Point] = []
        self.val_acc: list[Point] = []
        self.best: tuple[float, int] | None = None
        self._epoch: list[dict[str, Tensor]] = []

    def say(self, runner: Runner, line: str) -> None:
        """One line to the console and the log file, from the first process only."""
        if is_main_process():
            print(line, flush=True)
            runner.logger.info(line)

    def before_train(self, runner: Runner) -> None:
        """Say what is about to run."""
        model = getattr(runner.model, "module", runner.model)
        params = sum(p.numel() for p in model.parameters()) / 1e6
        images = len(runner.train_dataloader.dataset)
        precision = getattr(runner.optim_wrapper, "precision", "")
        name = type(getattr(model, "backbone", model)).__name__
        device = next(model.parameters()).device
        self.say(
            runner,
            f"{name}, {params:.2f} M parameters; {images:,} images, "
            f"epochs {runner.epoch + 1}-{runner.max_epochs} {precision} on {device}\n"
            f"log, curves and checkpoints: {runner.work_dir}",
        )
        self._start, self._start_iter = time.perf_counter(), runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the epoch's clock; validation does not count."""
        self._epoch, self._images, self._kept = [], 0, 0
        self._epoch_start = self._spoken = time.perf_counter()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep the losses; read them, which waits for the device, every ``interval`` only."""
        scalars = {k: v.detach() for k, v in (outputs or {}).items() if isinstance(v, Tensor)}
        self._epoch.append(scalars)
        self._images += len(data_batch["inputs"]) * get_world_size()
        step = runner.iter + 1
        if step % self.interval:
            return
        means = self._means(self._epoch[-self.interval :])
        epoch = step / len(runner.train_dataloader)
        self.loss.append((epoch, means.get("loss", float("nan"))))
        if "acc" in means:
            self.train_acc.append((epoch, means["acc"]))
        lr = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        tags = {f"train/{k}": v for k, v in means.items()} | {"train/lr": lr}
        tags["train/images_per_second"] = self._rate()
        runner.visualizer.add_scalars(tags, step=step)
        if time.perf_counter() - self._spoken > self.every_seconds:
            self._spoken = time.perf_counter()
            where = f"  iteration {batch_idx + 1}/{len(runner.train_dataloader)}"
            self.say(runner, self._line(runner, runner.epoch + 1, means, where, step))

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the epoch's line; where no validation follows, say it."""
        means = self._means(self._epoch)
        self._pending = self._line(runner, runner.epoch + 1, means, "", runner.iter)
        loop = runner.train_loop
        last = runner.epoch + 1 == runner.max_epochs
        due = (runner.epoch + 1) % getattr(loop, "val_interval", 1) == 0 or last
        if runner.val_loop is None or not due or runner.epoch + 1 < getattr(loop, "val_begin", 1):
            self.say(runner, self._pending)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Say the epoch's line with its validation result."""
        metrics = metrics or {}
        shown = "".join(f"  val {k.split('/')[-1]} {self._value(v):>8}" for k, v in metrics.items())
        self.say(runner, getattr(self, "_pending", "validation") + shown)
        value = metrics.get(self.metric)
        if value is not None:
            self.val_acc.append((runner.epoch, value))
            if self.best is None or value > self.best[0]:
                self.best = (value, runner.epoch)
        tags = {f"val/{k.split('/')[-1]}": v for k, v in metrics.items()}
        runner.visualizer.add_scalars(tags, step=runner.iter)

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Say the result."""
        values = (metrics or {}).items()
        shown = "  ".join(f"{k.split('/')[-1]} {self._value(v)}" for k, v in values)
        self.say(runner, f"test  {shown}")

    def after_train(self, runner: Runner) -> None:
        """Draw the picture; say the best result and where its checkpoint lies."""
        if not is_main_process():
            return
        picture = Path(runner.log_dir) / "curves.png"
        draw_curves(picture, self.loss, self.train_acc, self.val_acc)
        took = duration(time.perf_counter() - self._start)
        self.say(runner, f"done in {took}; curves: {picture}")
        hub = runner.message_hub
        saved = hub.get_info("best_ckpt") if "best_ckpt" in hub.runtime_info else None
        saved = saved or (hub.get_info("last_ckpt") if "last_ckpt" in hub.runtime_info else None)
        if self.best is not None:
            name, (value, epoch) = self.metric.split("/")[-1], self.best
            best = f"best {name} {self._value(value)} at epoch {epoch}"
            self.say(runner, f"{best}; checkpoint: {saved or 'none kept'}")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Curves survive ``--resume``."""
        checkpoint["progress"] = {
            "loss": self.loss,
            "train_acc": self.train_acc,
            "val_acc": self.val_acc,
            "best": self.best,
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on drawing where the checkpoint stopped."""
        kept = checkpoint.get("progress")
        if kept and runner._resume:
            self.loss, self.train_acc = list(kept["loss"]), list(kept["train_acc"])
            self.val_acc, self.best = list(kept["val_acc"]), kept["best"]

    def _value(self, value: float) -> str:
        return f"{value:.2f} %" if self.unit == "%" else f"{value:.3f} {self.unit}".rstrip()

    def _rate(self) -> float:
        return self._images / max(time.perf_counter() - self._epoch_start, 1e-9)

    @staticmethod
    def _means(outputs: list[dict[str, Tensor]]) -> dict[str, float]:
        names = outputs[-1] if outputs else {}
        return {
            k: sum(float(o[k].float().mean()) for o in outputs if k in o) / len(outputs)
            for k in names
        }

    def _line(
        self, runner: Runner, epoch: int, means: Mapping[str, float], where: str, step: int
    ) -> str:
        spent = time.perf_counter() - self._start
        done = max(step - self._start_iter, 1)
        left = spent / done * (runner.max_iters - step)
        width, loss = len(str(runner.max_epochs)), means.get("loss", float("nan"))
        acc = f"  train acc {means['acc']:6.2f} %" if "acc" in means else ""
        return (
            f"epoch {epoch:{width}}/{runner.max_epochs}{where}  loss {loss:.4f}{acc}"
            f"  {self._rate():5.0f} images/s  ETA {duration(left)}"
        )


def draw_curves(
    path: Path, loss: list[Point], train_acc: list[Point], val_acc: list[Point]
) -> None:
    """Loss and accuracy against epochs, as a PNG.

    Args:
        path: where to write.
        loss: (epoch, training loss).
        train_acc: (epoch, batch top-1 in percent).
        val_acc: (epoch, validation top-1 in percent).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*loss, strict=True) if loss else ((), ()), color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss")
    if train_acc:
        right.plot(*zip(*train_acc, strict=True), color="tab:blue", alpha=0.5, label="training")
    if val_acc:
        right.plot(*zip(*val_acc, strict=True), color="tab:orange", marker="o", label="validation")
        top = max(val_acc, key=lambda p: p[1])
        right.annotate(f"{top[1]:.2f} %", top, textcoords="offset points", xytext=(-12, -14))
    right.set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    if train_acc or val_acc:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
