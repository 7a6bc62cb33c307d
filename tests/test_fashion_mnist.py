"""Fashion-MNIST: the reader, the comparison's figures, page and picture."""

import copy
import gzip
import hashlib
import importlib.util
import json
import os
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config

from tokensparse.analysis import count
from tokensparse.classification import FashionMNISTDataset, MissingDataError
from tokensparse.registry import MODELS

ROOT = Path(__file__).parents[1]
#: Where Debian's package dataset-fashion-mnist puts the data; FASHION_MNIST names another place.
REAL = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "compare_fashion_mnist", ROOT / "tools/compare_fashion_mnist.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four idx files of random images, gzipped, that the reader takes for the published ones."""
    rng = np.random.default_rng(0)
    md5 = {}
    for prefix, number in (("train", 7), ("t10k", 3)):
        images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8)
        contents = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 0x803, number, 28, 28)
            + bytes(images),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 0x801, number) + bytes(labels),
        }
        for name, content in contents.items():
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            md5[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(FashionMNISTDataset, "md5", md5)
    return tmp_path


def test_reads_gzipped_idx_files(tiny: Path) -> None:
    train = FashionMNISTDataset(str(tiny), "train")
    val = FashionMNISTDataset(str(tiny), "val", augment=dict(crop_pct=1.0))
    assert (len(train), len(val)) == (7, 3)
    assert train.metainfo["classes"][0] == "T-shirt/top" and len(val.metainfo["classes"]) == 10
    item = val[2]
    assert item["labels"] == 2 and item["inputs"].shape == (3, 28, 28)
    written = gzip.decompress((tiny / "t10k-images-idx3-ubyte.gz").read_bytes())[-784:]
    expected = torch.frombuffer(bytearray(written), dtype=torch.uint8).view(1, 28, 28)
    torch.testing.assert_close(item["inputs"], expected.expand(3, -1, -1))


def test_reads_torchvisions_folder(tiny: Path, tmp_path: Path) -> None:
    raw = tmp_path / "own" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in tiny.glob("t10k*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    val = FashionMNISTDataset(str(tmp_path / "own"), "val")
    expected = FashionMNISTDataset(str(tiny), "val")
    torch.testing.assert_close(val[1]["inputs"], expected[1]["inputs"])


def test_missing_and_damaged_files_are_told(tiny: Path) -> None:
    images = tiny / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is damaged"):
        FashionMNISTDataset(str(tiny), "train")
    changed = bytearray(gzip.decompress(whole))
    changed[-1] ^= 1
    images.write_bytes(gzip.compress(bytes(changed)))
    with pytest.raises(ValueError, match=r"md5 .* published .*MNIST's have the same names"):
        FashionMNISTDataset(str(tiny), "train")
    images.unlink()
    with pytest.raises(MissingDataError, match=r"(?s)train-images.*apt-get install dataset-fash"):
        FashionMNISTDataset(str(tiny), "train")
    assert len(FashionMNISTDataset(str(tiny), "val")) == 3


def test_the_real_files_are_the_published_ones() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}: apt-get install dataset-fashion-mnist, or set FASHION_MNIST")
    train, val = (FashionMNISTDataset(str(REAL), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (60_000, 10_000)
    assert np.bincount(train.reader.labels).tolist() == [6_000] * 10
    pixels = Config.fromfile(ROOT / "configs/fashion_mnist/deit.py").model.data_preprocessor
    assert pixels.mean[0] == pytest.approx(train.reader.images.mean(), abs=0.01)
    assert pixels.std[0] == pytest.approx(train.reader.images.std(), abs=0.01)


def test_top_k_costs_what_its_stgm_costs() -> None:
    compare = tool()
    costs = {}
    for stem in compare.NAMES:
        cfg = Config.fromfile(compare.CONFIGS / f"{stem}.py")
        with torch.device("meta"):
            costs[stem] = count(MODELS.build(cfg.model), 28)
    assert costs["deit"].tokens == (196,) * 6
    for stgm, topk in compare.PAIRS:
        assert costs[topk].macs == pytest.approx(costs[stgm].macs, rel=0.01)
        assert str(costs[stgm].tokens[-1]) == stgm.split("-")[1]
        assert str(costs[topk].tokens[-1]) == topk.split("-")[1]


def test_one_recipe_for_all() -> None:
    compare = tool()
    configs = [Config.fromfile(compare.CONFIGS / f"{stem}.py") for stem in compare.NAMES]
    first = {k: v for k, v in configs[0].items() if k != "model"}
    for cfg in configs[1:]:
        assert {k: v for k, v in cfg.items() if k != "model"} == first
        assert cfg.model.head == configs[0].model.head
        assert cfg.model.data_preprocessor == configs[0].model.data_preprocessor
    paths = {p.stem for p in compare.CONFIGS.glob("*.py")}
    assert paths == set(compare.NAMES)


def made_up(compare: ModuleType) -> dict:
    """Results as the tool writes them; the figures are the test's own."""
    model = dict(best_top1=80.0, epochs=2, macs=50_000_000, params=1, tokens=[196] * 6)
    models = {
        stem: dict(model, config=f"configs/fashion_mnist/{stem}.py", name=name, cpu_seconds=60.0)
        for stem, name in compare.NAMES.items()
    }
    for stem, top1 in zip(compare.NAMES, (90.0, 85.0, 84.9, 80.0, 86.0), strict=True):
        models[stem]["top1"] = top1
    models["deit"]["macs"] = 100_000_000
    return {"conditions": compare.conditions(), "models": models}


def test_page_says_what_the_figures_say() -> None:
    compare = tool()
    results = made_up(compare)
    text = compare.page(results)
    assert "STGM, 16 tokens lies 5.00 points below DeiT, dense at 50% of its" in text
    assert "STGM, 16 tokens lies 0.10 points above Top-K, 53 tokens at 100.00% of its" in text
    near, far = (next(s for s in text.split(". ") if part in s) for part in ("0.10 p", "6.00 p"))
    assert "no more than the" in near
    assert "below Top-K, 71 tokens" in far and "no more" not in far and "more than the" in far
    assert "5.0 CPU minutes in all" in text
    partial = copy.deepcopy(results)
    del partial["models"]["deit_topk-71"]
    with pytest.raises(ValueError, match=r"no result of deit_topk-71"):
        compare.page(partial)


def test_picture_and_metafile(tmp_path: Path) -> None:
    compare = tool()
    results = made_up(compare)
    compare.draw(results, tmp_path / "a.png")
    results["models"]["deit"]["top1"] = 60.0
    compare.draw(results, tmp_path / "b.png")
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert pictures[0].startswith(b"\x89PNG") and pictures[0] != pictures[1]
    meta = tmp_path / "metafile.yml"
    meta.write_text((compare.CONFIGS / "metafile.yml").read_text())
    compare.record(results, meta)
    assert "top1: 60.0" in meta.read_text() and "top1: 84.9" in meta.read_text()


def test_what_is_measured_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = tool()
    trained = []
    monkeypatch.setattr(compare, "train", lambda stem, root, where: trained.append(stem) or 1.0)
    monkeypatch.setattr(
        compare, "measured", lambda stem, where, s: dict(top1=1.0, name=stem, cpu_seconds=s)
    )
    out = tmp_path / "results.json"
    compare.train_all("data", tmp_path, out)
    assert trained == list(compare.NAMES)
    results = json.loads(out.read_text())
    del results["models"]["deit_stgm-36"]
    out.write_text(json.dumps(results))
    compare.train_all("data", tmp_path, out)
    assert trained[5:] == ["deit_stgm-36"]
    results["conditions"]["torch"] = "1.0"
    out.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"other conditions \(torch\)"):
        compare.train_all("data", tmp_path, out)


def test_a_config_trains_and_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}: apt-get install dataset-fashion-mnist, or set FASHION_MNIST")
    compare = tool()
    base = compare.CONFIGS / "deit_stgm-16.py"
    (tmp_path / base.name).write_text(
        f'_base_ = "{base}"\n'
        "train_dataloader = dict(num_batch_per_epoch=5)\n"
        "val_dataloader = dict(num_batch_per_epoch=1)\n"
        "test_dataloader = dict(num_batch_per_epoch=1)\n"
    )
    monkeypatch.setattr(compare, "CONFIGS", tmp_path)
    seconds = compare.train(base.stem, str(REAL), tmp_path / "work")
    found = compare.measured(base.stem, tmp_path / "work", seconds)
    assert seconds > 1.0 and found["cpu_seconds"] == round(seconds, 1)
    assert 0.0 <= found["top1"] <= found["best_top1"] <= 100.0
    assert found["macs"] == 36_530_816 and found["tokens"] == [196, 196, 16, 16, 16, 16]
    with pytest.raises(RuntimeError, match="deit_stgm-16 failed"):
        compare.train(base.stem, str(tmp_path / "none"), tmp_path / "work")


def test_the_page_is_fresh() -> None:
    compare = tool()
    if not compare.DATA.is_file():
        pytest.skip(f"{compare.DATA.name} is absent: tools/compare_fashion_mnist.py was not run")
    assert compare.PAGE.read_text() == compare.page(json.loads(compare.DATA.read_text()))
