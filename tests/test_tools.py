"""The command lines, run in this process on the embedded digits with a narrow model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from small import tool_of

from tokensparse.classification import DigitsDataset

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/sparseswin_cls.py")
NARROW = [
    "model.backbone.arch.token_dim=32",
    "model.backbone.arch.num_tokens=2",
    "model.backbone.arch.num_heads=2",
    "model.backbone.trunk.embed_dim=8",
    "model.backbone.trunk.depths=(1,1,1)",
    "model.backbone.trunk.num_heads=(1,1,2)",
    "model.backbone.img_size=32",
    "train_dataloader.dataset.img_size=32",
    "train_dataloader.num_batch_per_epoch=3",
    "val_dataloader.dataset.img_size=32",
    "test_dataloader.dataset.img_size=32",
    "train_cfg.max_epochs=2",
    "optim_wrapper.precision=fp32",
    "default_hooks.logger.interval=1",
]
PLAIN = ["train_dataloader.dataset.augment.no_aug=True"]


@pytest.fixture
def narrow_config(tmp_path: Path) -> str:
    """The main config with a trunk that ``--cfg-options`` can narrow."""
    path = tmp_path / "narrow.py"
    path.write_text(
        f'_base_ = "{CONFIG}"\n'
        "model = dict(backbone=dict(trunk=dict(_delete_=True, embed_dim=8)))\n"
    )
    return str(path)


def command(tool: str, *args: str, capsys: pytest.CaptureFixture) -> str:
    """Run a tool's ``main`` with these arguments; gives what it printed."""
    module = tool_of(tool)
    before, scopes = sys.argv, DefaultScope._instance_dict.copy()
    sys.argv = [f"{tool}.py", *args]
    try:
        module.main()
    finally:
        sys.argv = before
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(scopes)
        os.environ.pop("LOCAL_RANK", None)
    return capsys.readouterr().out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "epoch_2.pth", weights_only=False)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_train_then_test(narrow_config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    work = tmp_path / "work"
    args = (narrow_config, "--work-dir", str(work), "--cfg-options", *NARROW)
    out = command("train", *args, capsys=capsys)
    for part in ("epoch 1/2", "epoch 2/2", "loss", "train acc", "val top1", "images/s", "ETA 0:00"):
        assert part in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("best top1 ")
    checkpoint = last.split("checkpoint: ")[1]
    assert Path(checkpoint).is_file()
    assert len(list(work.glob("*/curves.png"))) == 1
    assert len(list(work.glob("*/vis_data/events.out.tfevents.*"))) == 1
    assert not list(work.glob("*.partial"))
    out = command("test", narrow_config, checkpoint, *args[1:], capsys=capsys)
    assert f"top1 {last.split()[2]} %" in out


def test_same_seed_same_weights_and_resume_goes_on(
    narrow_config: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def train(folder: str, *options: str, resume: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        where = tmp_path / folder
        all_options = ("--cfg-options", *NARROW, *PLAIN, *options)
        command(
            "train", narrow_config, "--work-dir", str(where), *resume, *all_options, capsys=capsys
        )
        return weights(where) if (where / "epoch_2.pth").exists() else {}

    first = train("a")
    assert same(first, train("b"))
    assert not same(first, train("c", "randomness.seed=1"))
    train("d", "train_cfg.max_epochs=1")
    assert same(first, train("d", resume=("--resume",)))
    train("e", "train_cfg.max_epochs=1")
    assert same(first, train("e", "resume=True"))  # as mmengine's own switch


#: Trains, then tells which threads are left; gloo's would end the program by SIGABRT now and then.
AND_THREADS = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import train
train.main()
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print("threads left:", [name for name in names if "gloo" in name])
"""


def test_two_processes_train_together(narrow_config: str, tmp_path: Path) -> None:
    script = tmp_path / "train_and_look.py"
    script.write_text(AND_THREADS.format(tools=str(ROOT / "tools")))
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    args = [str(script), narrow_config, "--launcher", "pytorch"]
    args += ["--work-dir", str(tmp_path / "work"), "--cfg-options", *NARROW]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(run + args, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best top1") == 1
    assert done.stdout.count("threads left: []") == 2, done.stdout[-500:]
    assert list((tmp_path / "work").glob("best_*.pth"))


def test_misspelt_options_stop_before_data_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(DigitsDataset, "open", lambda self: pytest.fail("data were opened"))
    args = (CONFIG, "--work-dir", str(tmp_path / "work"), "--cfg-options")
    with pytest.raises(SystemExit, match=r"unknown key 'max_epoch'.*did you mean 'max_epochs'"):
        command("train", *args, "train_cfg.max_epoch=3", capsys=capsys)
    with pytest.raises(SystemExit, match=r"unknown key 'modell'.*did you mean 'model'"):
        command("train", *args, "modell.head.num_classes=3", capsys=capsys)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("tool", ["train", "test", "analyze", "benchmark", "visualize", "export"])
def test_configs_that_are_not_there_or_do_not_run(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Every tool names the nearest config, and the line of one that is no Python."""
    Image.new("RGB", (64, 64)).save(tmp_path / "grey.png")
    more = {
        "test": [str(tmp_path / "none.pth")],
        "visualize": [str(tmp_path / "grey.png")],
        "export": [str(tmp_path / "model.onnx")],
    }.get(tool, [])
    with pytest.raises(SystemExit, match=r"no config .*did you mean '.*/deit-s_in1k.py'"):
        command(tool, str(ROOT / "configs/dense/deit-s_in1.py"), *more, capsys=capsys)
    for text, said in (("a = 1\nb = (", "line 2: '\\(' was never closed"), ("a = b", "NameError")):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(SystemExit, match=said):
            command(tool, str(tmp_path / "mine.py"), *more, capsys=capsys)


def test_a_launcher_that_has_not_started_it(
    narrow_config: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = (narrow_config, "--work-dir", str(tmp_path / "work"), "--launcher", "slurm")
    with pytest.raises(SystemExit, match=r"SLURM_PROCID is not set, .* start it by srun python"):
        command("train", *args, "--cfg-options", *NARROW, capsys=capsys)


def test_refusals_tell_the_remedy(
    narrow_config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    args = (narrow_config, "--work-dir", str(tmp_path / "work"), "--cfg-options", *NARROW)
    with pytest.raises(SystemExit, match=r"10 classes.*set model.head.num_classes=10"):
        command("train", *args, "model.head.num_classes=7", capsys=capsys)
    folder = ["train_dataloader.dataset.type=tokensparse.ImageFolderDataset"]
    folder += [f"train_dataloader.dataset.root={tmp_path / 'none'}"]
    with pytest.raises(SystemExit, match=r"(?s)MissingDataError.*looked for.*how to get it"):
        command("train", *args, *folder, capsys=capsys)
    with pytest.raises(SystemExit, match=r"no checkpoint at"):
        command("test", narrow_config, str(tmp_path / "none.pth"), *args[1:], capsys=capsys)


def test_a_hostile_checkpoint_does_not_run(
    narrow_config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {}, "meta": Hostile()}, tmp_path / "hostile.pth")
    args = ("--work-dir", str(tmp_path / "work"), "--cfg-options", *NARROW)
    hostile = str(tmp_path / "hostile.pth")
    with pytest.raises(SystemExit, match=r"is refused"):
        command("test", narrow_config, hostile, *args, capsys=capsys)
    with pytest.raises(SystemExit, match=r"is refused"):
        command("train", narrow_config, "--resume", hostile, *args, capsys=capsys)
    assert not (tmp_path / "ran").exists()
