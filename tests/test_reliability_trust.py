"""What a checkpoint says of itself is not believed: no file of others goes, no count is endless."""

import copy
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from reliability import EMA, QUIET, VALIDATION, recorder, same, start, tiny_config, weights
from safetensors.torch import save_file

from tokensparse.engine.checkpoint_reading import read_checkpoint
from tokensparse.engine.checkpoints import CheckpointHook, newest_valid
from tokensparse.engine.loops import EpochLoop
from tokensparse.engine.work_dir_lock import WorkDirInUseError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The checkpoint after the first of the tiny run's epochs."""
    folder = tmp_path_factory.mktemp("trained")
    start(tiny_config(folder, train_cfg=dict(max_epochs=1)))
    return torch.load(folder / "iter_5.pth", weights_only=False)


def changed(checkpoint: dict, folder: Path, **meta: object) -> Path:
    """A copy with another ``meta``, outside any work dir."""
    other = copy.copy(checkpoint)
    other["meta"] = {**checkpoint["meta"], **meta}
    folder.mkdir(exist_ok=True)
    torch.save(other, folder / "other.pth")
    return folder / "other.pth"


def test_nothing_outside_the_work_dir_is_removed(
    trained: dict, tmp_path: Path, record_property: Callable
) -> None:
    victims = tmp_path / "victims"
    (victims / "inner").mkdir(parents=True)
    (victims / "inner/best.pth").write_text("dear")
    for victim in (victims, victims / "inner/best.pth"):
        hostile = copy.copy(trained)
        hostile["message_hub"] = copy.deepcopy(trained["message_hub"])
        hostile["message_hub"]["runtime_info"] |= dict(best_ckpt=str(victim), best_score=-1.0)
        path = changed(hostile, tmp_path / "from")
        cfg = tiny_config(tmp_path / "work", train_cfg=dict(max_epochs=2), **VALIDATION)
        hook = dict(save_best="accuracy/top1", rule="greater", interval=1, by_epoch=True)
        cfg.default_hooks.checkpoint.update(hook)
        start(cfg, resume=path)
        assert (victims / "inner/best.pth").read_text() == "dear"
        assert list((tmp_path / "work").glob("best_*.pth"))
    recorder(record_property)(
        "a checkpoint calls a folder, or a file elsewhere, the run's best",
        "nothing outside the run's own folder is removed",
        "both are there after a better one was saved",
    )


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (dict(iter=10**12), "its iter is 1000000000000"),
        (dict(epoch=-1), "its epoch is -1"),
        (dict(iter="5"), "its iter is '5'"),
        (dict(seed=[[1]]), "its seed is no number"),
    ],
)
def test_absurd_places_are_refused(trained: dict, tmp_path: Path, meta: dict, message: str) -> None:
    path = changed(trained, tmp_path / "from", **meta)
    with pytest.raises(ValueError, match=message):
        start(tiny_config(tmp_path / "work"), resume=path)


def test_weights_alone_cannot_be_resumed(
    trained: dict, tmp_path: Path, record_property: Callable
) -> None:
    torch.save(trained["state_dict"], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds weights, but no state of a run to resume"):
        start(tiny_config(tmp_path / "work"), resume=tmp_path / "weights.pth")
    recorder(record_property)(
        "--resume with absurd counts, or with weights alone",
        "refused in one line",
        "refused; negative, endless and textual counts, too",
    )


def test_an_earlier_run_in_the_folder_is_not_gone_on_with(
    tmp_path: Path, record_property: Callable
) -> None:
    start(tiny_config(tmp_path, train_cfg=dict(max_epochs=2)))
    (tmp_path / "iter_10.pth").rename(tmp_path / "interrupted.pth")
    start(tiny_config(tmp_path, train_cfg=dict(max_epochs=1), randomness=dict(seed=3)))
    assert newest_valid(tmp_path) == tmp_path / "iter_5.pth"
    start(tiny_config(tmp_path, train_cfg=dict(max_epochs=2)), resume=True)
    assert newest_valid(tmp_path) == tmp_path / "iter_10.pth"
    recorder(record_property)(
        "checkpoints of an earlier run in the work dir",
        "--resume goes on with the run that wrote last",
        "it does, and keeps to it",
    )


def test_odd_entries_of_the_folder_are_passed_over(trained: dict, tmp_path: Path) -> None:
    good = changed(trained, tmp_path).rename(tmp_path / "good.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "nowhere.pth").symlink_to("/no/such/file")
    for name, meta in (("none", None), ("text", dict(iter="7"))):
        torch.save({**trained, "meta": meta}, tmp_path / f"{name}.pth")
    assert newest_valid(tmp_path, lambda line: None) == good


def test_a_refused_second_run_changes_nothing(tmp_path: Path) -> None:
    taken = WorkDirInUseError("another run is here")
    locked = patch("tokensparse.engine.runner.locked", side_effect=taken)
    with locked, pytest.raises(WorkDirInUseError):
        start(tiny_config(tmp_path))
    assert not list(tmp_path.glob("*.py")) and not list(tmp_path.glob("*.pth"))


def test_the_config_lies_in_the_work_dir(tmp_path: Path) -> None:
    start(tiny_config(tmp_path, train_cfg=dict(max_epochs=1)))
    assert [Config.fromfile(p) is not None for p in tmp_path.glob("*.py")] == [True]


def test_an_empty_hash_proves_nothing(trained: dict, tmp_path: Path) -> None:
    path = changed(trained, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    Path(f"{path}.sha256").write_text("\n")
    with pytest.raises(ValueError, match="is damaged: the bytes of"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="no checkpoint in .* is valid"):
        newest_valid(tmp_path)


@pytest.mark.parametrize("scoped", ["mmengine.CheckpointHook", "CheckpointHook"])
def test_the_safe_parts_are_taken_whatever_the_scope(scoped: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, train_cfg=dict(_delete_=True, type="X", max_epochs=1), **QUIET)
    cfg.default_hooks.checkpoint.type = scoped
    cfg.train_cfg.type = scoped.replace("CheckpointHook", "EpochBasedTrainLoop")
    runner, _ = start(cfg)
    assert type(runner.train_loop) is EpochLoop and runner.hook(CheckpointHook) is not None


def test_the_order_of_a_run_without_a_seed_travels(tmp_path: Path) -> None:
    settings = dict(randomness=dict(seed=None), train_cfg=dict(max_epochs=1))
    whole, losses = start(tiny_config(tmp_path / "whole", **settings))
    checkpoint = tmp_path / "whole/iter_2.pth"
    again, rest = start(tiny_config(tmp_path / "again", **settings), resume=checkpoint)
    assert rest.by_step == {s: v for s, v in losses.by_step.items() if s > 2}
    assert same(weights(whole), weights(again))


@pytest.mark.parametrize("wrong", [dict(optimizer=5), dict(optimizer={}), dict(meta="resume")])
def test_a_state_of_another_kind_is_named(trained: dict, wrong: dict, tmp_path: Path) -> None:
    path = changed(trained, tmp_path / "from", **({"resume": 5} if "meta" in wrong else {}))
    if "meta" not in wrong:
        torch.save({**torch.load(path, weights_only=False), **wrong}, path)
    with pytest.raises(ValueError, match=r"other\.pth (cannot be resumed|holds weights, but no)"):
        start(tiny_config(tmp_path / "work", train_cfg=dict(max_epochs=2)), resume=path)


def test_weights_of_another_model_are_named(trained: dict, tmp_path: Path) -> None:
    state = {**trained["state_dict"], "head.fc.weight": torch.ones(10, 3)}
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    cfg = tiny_config(tmp_path / "work", train_cfg=dict(max_epochs=1))
    cfg.load_from = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not of this model: .*\n.*head.fc.weight"):
        start(cfg)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averages_start_from_the_weights_that_are_loaded(
    trained: dict, prefix: str, tmp_path: Path
) -> None:
    state = {prefix + name: value for name, value in trained["state_dict"].items()}
    torch.save({"state_dict": state}, tmp_path / "ddp.pth")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "ddp.safetensors")
    for name in ("ddp.pth", "ddp.safetensors"):
        cfg = tiny_config(tmp_path / name[4:], custom_hooks=copy.deepcopy(EMA), **QUIET)
        cfg.load_from, cfg.train_cfg.max_epochs = str(tmp_path / name), 1
        cfg.custom_hooks[0].momentum, cfg.optim_wrapper.optimizer.lr = 1e-9, 0.0
        runner, _ = start(cfg)
        averaged = runner.hook(EMAHook).ema_model.module.state_dict()
        for key, value in trained["state_dict"].items():
            torch.testing.assert_close(averaged[key], value, atol=1e-5, rtol=0)


def test_values_of_the_wrong_kind_are_the_configs_fault(tmp_path: Path) -> None:
    """Until the first step what a constructor raises is one line; after it, stacks are kept."""
    wrong = {
        "model.head": None,
        "optim_wrapper.accumulative_counts": 0,
        "optim_wrapper.optimizer.lr": "abc",
        "train_dataloader.batch_size": 4000,
        "default_hooks.checkpoint.interval": "abc",
        "model.backbone.drop_path_rate": 7,
    }
    for name, value in wrong.items():
        cfg = tiny_config(tmp_path / name, train_cfg=dict(max_epochs=1))
        cfg.train_dataloader.drop_last = True
        del cfg.train_dataloader["num_batch_per_epoch"]
        cfg.merge_from_dict({name: value})
        with pytest.raises(ValueError, match=r"config cannot be built: |expected|make no batch"):
            start(cfg)

    class Broken(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            raise TypeError("a fault of the code")

    with pytest.raises(TypeError, match="a fault of the code"):
        start(tiny_config(tmp_path / "code", **QUIET), Broken())


def test_a_metric_that_the_evaluation_does_not_give(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, train_cfg=dict(max_epochs=1), **VALIDATION)
    cfg.default_hooks.checkpoint.update(save_best="accuracy/top2", rule="greater")
    with pytest.raises(ValueError, match=r"save_best='accuracy/top2' .did you mean 'accuracy/top"):
        start(cfg)
