"""Bad images are named and replaced up to a budget; dead and hung workers are named."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.hooks import Hook
from PIL import Image
from reliability import QUIET, VALIDATION, recorder, same, start, tiny_config, weights

from tokensparse.classification import DigitsDataset
from tokensparse.engine.bad_images import FILE, BadImageError, BadImagesHook, Quarantine
from tokensparse.engine.loader import LoaderError
from tokensparse.registry import DATASETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes, four images of each to train, one to validate."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 1)):
        for name in "0123456789":
            where = tmp_path / "data" / split / name
            where.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(where / f"{i:02}.jpg", quality=95)
    return tmp_path / "data"


def config(tmp_path: Path, folder: Path, **changes):
    data = dict(_delete_=True, type="tokensparse.ImageFolderDataset", root=str(folder), img_size=32)
    train = dict(dataset=dict(split="train", **data))
    return tiny_config(tmp_path / "work", train_dataloader=train, **{**QUIET, **changes})


def spoil(path: Path, kind: str) -> None:
    if kind == "corrupt":
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "absurd":  # claims 60,000 x 60,000 pixels
        content = bytearray(path.read_bytes())
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = b"\xea\x60\xea\x60"
        path.write_bytes(content)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["corrupt", "absurd", "empty"])
def test_replaced_and_named(
    kind: str, tmp_path: Path, folder: Path, record_property: Callable
) -> None:
    bad = folder / "train/1/03.jpg"
    spoil(bad, kind)
    runs = [start(config(tmp_path / str(n), folder, workers=n)) for n in (0, 2)]
    assert runs[0][1].by_step == runs[1][1].by_step
    assert same(*(weights(runner) for runner, _ in runs))
    for n in (0, 2):
        entry = json.loads((tmp_path / str(n) / "work" / FILE).read_text())
        assert entry["index"] == 7 and "1/03.jpg" in entry["image"]
    recorder(record_property)(
        f"{kind} image in training",
        "counted, named, replaced deterministically",
        "one line in bad_images.jsonl; the same run bit for bit with 0 and 2 workers",
    )


def test_a_torn_line_of_the_quarantine_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    Quarantine(path, 9).add(3, "image 3", OSError("cut"))
    path.write_bytes(path.read_bytes() + b'{"index": 4, "ima')
    again = Quarantine(path, 9)
    again.add(5, "image 5", OSError("cut"))
    assert sorted(again.known()) == [3, 5]


def test_missing_file_is_replaced(tmp_path: Path, folder: Path) -> None:
    class Remove(Hook):
        def before_train(self, runner) -> None:
            (folder / "train/5/02.jpg").unlink()

    start(config(tmp_path, folder), Remove())
    assert "No such file" in (tmp_path / "work" / FILE).read_text()


def test_budget(tmp_path: Path, folder: Path, record_property: Callable) -> None:
    for i in (0, 1, 2):
        spoil(folder / f"train/0/0{i}.jpg", "corrupt")
    with pytest.raises(BadImageError, match=r"2 images cannot be read, 1 are allowed"):
        start(config(tmp_path, folder))
    cfg = config(tmp_path / "more", folder, workers=2)
    cfg.default_hooks.bad_images = dict(type="tokensparse.BadImagesHook", budget=0.1)
    start(cfg)
    lines = (tmp_path / "more/work" / FILE).read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in lines) == [0, 1, 2]
    recorder(record_property)(
        "more bad images than the budget (0.1 %, at least one)",
        "the run ends and names them",
        "ended at the second of 40; with budget=0.1 all three named, the run went on",
    )


def test_budget_is_checked() -> None:
    assert BadImagesHook().budget == 0.001
    for wrong in (dict(budget=2.0), dict(timeout=0)):
        with pytest.raises(ValueError, match="legal"):
            BadImagesHook(**wrong)


def test_evaluation_leaves_no_image_out(
    tmp_path: Path, folder: Path, record_property: Callable
) -> None:
    spoil(folder / "val/6/00.jpg", "corrupt")
    val = dict(
        _delete_=True,
        type="tokensparse.ImageFolderDataset",
        root=str(folder),
        split="val",
        img_size=32,
    )
    cfg = config(tmp_path, folder, **VALIDATION)
    cfg.merge_from_dict(
        dict(val_dataloader=dict(dataset=val, num_workers=1, num_batch_per_epoch=1))
    )
    with pytest.raises(BadImageError, match=r"image 6 .*6/00\.jpg"):
        start(cfg)
    recorder(record_property)(
        "corrupt image in evaluation", "never silently skipped", "the run ended and named the file"
    )


@DATASETS.register_module(force=True)
class TroubledDigits(DigitsDataset):
    """Digits whose worker dies or hangs at image 5 of a pass."""

    trouble = ""

    def __getitem__(self, index: int):
        self.count = getattr(self, "count", 0) + 1
        if self.count == 5 and self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == 5 and self.trouble == "hung":
            time.sleep(1000)
        return super().__getitem__(index)


@pytest.mark.parametrize("trouble", ["killed", "hung"])
def test_dead_and_hung_workers_are_named(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable
) -> None:
    monkeypatch.setattr(TroubledDigits, "trouble", trouble)
    cfg = tiny_config(tmp_path, workers=1, **QUIET)
    cfg.train_dataloader.dataset.type = "tokensparse.TroubledDigits"
    cfg.train_dataloader.timeout = 5
    begun = time.monotonic()
    with pytest.raises(LoaderError, match=r"worker 0 \(process \d+"):
        start(cfg)
    took = time.monotonic() - begun
    recorder(record_property)(
        f"loader worker {trouble}",
        "an error that names it within the timeout",
        "named, with its process",
    )
    assert took < 100  # of a sleep of 1000: the timeout ended it


def test_workers_have_a_timeout_unless_the_config_sets_one(tmp_path: Path) -> None:
    runner, _ = start(tiny_config(tmp_path, workers=1, **QUIET, train_cfg=dict(max_epochs=1)))
    assert runner.train_dataloader.timeout == 300
