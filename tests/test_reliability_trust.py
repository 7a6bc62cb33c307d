"""What a checkpoint says of itself is not believed: no file of others goes, no count is endless."""

import copy
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from reliability import VALIDATION, recorder, start, tiny_config

from tokensparse.engine.checkpoints import newest_valid
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
        (dict(iter="5"), "its iter is 5"),
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
