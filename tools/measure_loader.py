"""How fast a config's images are read, and how long a training step waits for them.

``python tools/measure_loader.py CONFIG [--batches 50] [--step] [--cfg-options ...] [--json FILE]``

Images per second and core: decoding and augmentation alone, in this process. With ``--step``, the
config's own loader (its workers) feeds training steps on the device that is there; the waiting
share is the time spent asking for a batch over the time of the whole step.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

import tokensparse  # noqa: F401  registers everything
from tokensparse.config_check import check_config, merge_options

WARM = 3  # batches before the clock starts: workers are forked, files come into the cache


def per_core(cfg: Config, images: int) -> dict[str, float]:
    """Images per second of one core.

    Args:
        cfg: the run's config.
        images: how many to read, spread over the training data.

    Returns:
        ``images_per_second_and_core``: by CPU time, so other processes do not count; and
        ``images_per_second``: by the clock on the wall.
    """
    torch.set_num_threads(1)
    data = DATASETS.build(cfg.train_dataloader.dataset)
    step = max(len(data) // images, 1)
    order = [i * step % len(data) for i in range(images)]
    for i in order[: max(images // 10, 1)]:
        data[i]
    wall, cpu = time.perf_counter(), time.process_time()
    for i in order:
        data[i]
    return {
        "images_per_second_and_core": images / (time.process_time() - cpu),
        "images_per_second": images / (time.perf_counter() - wall),
    }


def waiting(cfg: Config, batches: int) -> dict[str, float]:
    """Share of training steps that is spent waiting for the loader.

    Args:
        cfg: the run's config.
        batches: steps on the clock.

    Returns:
        ``waiting_share`` (0..1), medians ``wait_ms`` and ``step_ms``, ``images_per_second``.

    Raises:
        ValueError: an epoch has too few batches.
    """
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    if len(loader) < WARM + batches:
        raise ValueError(
            f"--batches={batches}, but an epoch has {len(loader)} and {WARM} of them warm up; "
            f"at most {max(len(loader) - WARM, 0)}"
        )
    device = torch.device(get_device())
    model = MODELS.build(cfg.model).to(device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    waits, steps, images = [], [], 0
    source = iter(loader)
    for number in range(WARM + batches):
        start = time.perf_counter()
        batch = next(source)
        there = time.perf_counter()
        model.train_step(batch, wrapper)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM:
            waits.append(there - start)
            steps.append(time.perf_counter() - start)
            images += len(batch["inputs"])
    return {
        "waiting_share": sum(waits) / sum(steps),
        "wait_ms": 1e3 * statistics.median(waits),
        "step_ms": 1e3 * statistics.median(steps),
        "images_per_second": images / sum(steps),
    }


def main() -> None:
    """Measure, say, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--images", type=int, default=500, help="read by one core")
    parser.add_argument("--batches", type=int, default=50, help="training steps on the clock")
    parser.add_argument("--step", action="store_true", help="also train, and measure the waiting")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides")
    parser.add_argument("--json", help="file to write")
    args = parser.parse_args()
    try:
        if args.images < 1 or args.batches < 1:
            raise ValueError("--images and --batches: expected at least 1")
        cfg = Config.fromfile(args.config)
        merge_options(cfg, args.cfg_options)
        check_config(cfg)
        found: dict[str, Any] = {"config": args.config, "cores": os.cpu_count()}
        found["workers"] = cfg.train_dataloader.num_workers
        found |= {"reading": per_core(cfg, args.images)}
        if args.step:
            found |= {"device": get_device(), "training": waiting(cfg, args.batches)}
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(found, indent=1))
    if args.json:
        partial = Path(f"{args.json}.partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(partial, args.json)


if __name__ == "__main__":
    main()
