"""Token maps from the trace, their pictures, the command line and the hook."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import image, small_swin, small_vit
from test_contract import SETTINGS, build
from test_tools import command

from tokensparse.analysis import token_pictures as pictures
from tokensparse.analysis.token_maps import (
    DROPPED,
    FUSED,
    KEPT,
    PatchMap,
    cells,
    dense_twin,
    patch_maps,
    shares,
    through_tokens,
    with_before,
)
from tokensparse.analysis.token_paint import borders, paint_tokens, view
from tokensparse.registry import REDUCERS
from tokensparse.tokens import HardMap, SoftMap, StepRecord, TokenMap, Trace

MAPS = frozenset({"maps"})
SIZES = {"vit": ((56, 72), (90, 33)), "swin": ((100, 140), (129, 62))}


def traced(model: Any, size: tuple[int, int], batch: int = 2) -> Trace:
    with torch.no_grad():
        return model.eval().forward_tokens(image(size, batch), collect=MAPS)[1]


def record(step: int, token_map: TokenMap, grid: Any, within: tuple[int, ...] = ()) -> StepRecord:
    """A step of a trace that no model made; all patches have size 1."""
    n = token_map.slot.shape[1] if isinstance(token_map, HardMap) else token_map.share.shape[2]
    size = token_map.down(torch.ones(1, n, 1))
    return StepRecord(
        0, step, step, "Made", grid, token_map, size, size.expand(-1, -1, 2), None, None, within
    )


def hard(slots: list[int], num_out: int) -> HardMap:
    return HardMap(torch.tensor([slots]), num_out)


def check_partition(patches: PatchMap, record: StepRecord) -> None:
    """Every patch has one fate, and the counts are those of the trace."""
    h, w = patches.grid
    assert patches.fate.shape == patches.token.shape == (h * w,)
    assert sum(patches.count(fate) for fate in (KEPT, FUSED, DROPPED)) == h * w
    assert patches.tokens == record.size.shape[1]
    size = record.size[patches.image, :, 0]
    assert torch.equal(patches.fate == DROPPED, patches.token == patches.tokens)
    if patches.soft:
        every = shares(patches, range(patches.tokens))
        torch.testing.assert_close(every.sum(0), size, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(every.sum(1), torch.ones(h * w))
        torch.testing.assert_close(every.max(1).values, patches.share)
        assert patches.count(FUSED) == h * w
        return
    members = torch.bincount(patches.token, minlength=patches.tokens + 1)[: patches.tokens]
    assert torch.equal(members.float(), size)
    assert patches.count(KEPT) == int((size == 1).sum())
    assert patches.count(FUSED) == int(size[size > 1].sum())
    assert patches.count(DROPPED) == h * w - int(size.sum())
    assert patches.shared_tokens == int((size > 1).sum())


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("reducer", sorted(REDUCERS.module_dict))
def test_every_patch_has_one_fate(kind: str, reducer: str) -> None:
    model = build(kind, reducer, None, dense=False)
    for size in SIZES[kind]:
        trace = traced(model, size)
        for index in (0, 1):
            (patches,) = patch_maps(trace, index)
            check_partition(patches, trace.steps[0])
            assert patches.before == patches.grid[0] * patches.grid[1]
            assert patches.changed.sum() >= patches.count(DROPPED)
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
        panels = pictures.step_panels(patches, pixels, model.stem.stride)
        shape = panels[0].pixels.shape[:2]
        assert all(p.pixels.shape[:2] == shape for p in panels)
        assert shape[0] * size[1] == shape[1] * size[0]


@pytest.mark.parametrize("reducer", sorted(set(REDUCERS.module_dict) - {"SparTa", "STGM"}))
def test_nested_steps_lead_back_to_the_patches(reducer: str) -> None:
    settings = {"type": reducer, **SETTINGS.get(reducer, {})}
    plan = [
        dict(span=(1, None), reduce=settings),
        dict(span=(2, None), reduce=dict(type="ToMe", r=4)),
        dict(span=(3, None), reduce=dict(type="TopK", keep=0.5)),
    ]
    trace = traced(small_vit(plan=plan), (56, 72))
    assert [r.within for r in trace.steps] == [(), (0,), (0, 1)]
    for patches, step in zip(patch_maps(trace, 1), trace.steps, strict=True):
        assert patches.grid == (7, 9)
        if not (step.size == 0).any():  # padding of windows may be merged, which stays 0
            check_partition(patches, step)
    dropped = [m.fate == DROPPED for m in patch_maps(trace)]
    assert all((later | ~earlier).all() for earlier, later in pairwise(dropped))


def test_a_soft_map_behind_a_hard_one_and_back() -> None:
    inner = SoftMap(torch.tensor([[[0.75, 0.0], [0.25, 1.0]]]))
    made = Trace((record(0, hard([0, 0, 1, 2], 2), (2, 2)), record(1, inner, None, (0,))))
    first, second = patch_maps(made)
    assert not first.soft and second.soft
    want = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(shares(second, [0, 1]), want)
    assert second.token.tolist() == [0, 0, 1, 2]
    assert second.fate.tolist() == [FUSED, FUSED, FUSED, DROPPED]


def test_a_known_example_patch_by_patch() -> None:
    """2 x 3 patches: 0 and 1 merge, 4 is dropped; then {0, 1} and 5 merge, 3 is dropped."""
    made = Trace(
        (
            record(0, hard([0, 0, 1, 2, 4, 3], 4), (2, 3)),
            record(1, hard([0, 1, 2, 0], 2), None, (0,)),
            record(2, hard([2, 1, 0, 0, 1, 1], 3), (2, 3)),
        )
    )
    one, two, fresh = patch_maps(made)
    assert one.fate.tolist() == [FUSED, FUSED, KEPT, KEPT, DROPPED, KEPT]
    assert one.token.tolist() == [0, 0, 1, 2, 4, 3]
    assert one.changed.tolist() == [True, True, False, False, True, False]
    assert two.fate.tolist() == [FUSED, FUSED, KEPT, DROPPED, DROPPED, FUSED]
    assert two.token.tolist() == [0, 0, 1, 2, 2, 0]
    assert two.changed.tolist() == [True, True, False, True, False, True]
    assert (two.before, two.tokens, two.shared_tokens) == (4, 2, 1)
    assert fresh.fate.tolist() == [KEPT, FUSED, FUSED, FUSED, FUSED, FUSED]
    assert [before for _, before in with_before([one, two, fresh])] == [None, one, None]
    values = torch.tensor([[0.0], [6.0], [5.0], [7.0], [9.0], [3.0]])
    assert through_tokens(two, values)[:, 0].tolist() == [3.0, 3.0, 5.0, 0.0, 0.0, 3.0]
    assert pictures.described(two) == "Made at stage 0 block 1: 4 -> 2 tokens"
    words = [w for _, w in pictures.legend(two, one)]
    assert words == [
        "kept, a token each: 1 patches",
        "merged: 3 patches in one token",
        "dropped in this step: 1",
        "dropped before: 1",
    ]


def test_painted_patches_are_where_they_should_be() -> None:
    """Patches of 4 px: 0 kept, 1 and 2 merged, 3 dropped."""
    (patches,) = patch_maps(Trace((record(0, hard([0, 1, 1, 2], 2), (2, 2)),)))
    pixels = np.full((8, 7, 3), 200, np.uint8)
    on = view(pixels, (2, 2), 4)
    assert on.image.shape[:2] == on.place.shape == (8 * 60, 7 * 60)
    out = paint_tokens(patches, on)
    middle = [out[r * 240 + 120, c * 240 + 80] for r in (0, 1) for c in (0, 1)]
    np.testing.assert_allclose(middle[0], 200 / 255)
    np.testing.assert_allclose(middle[1], middle[2])
    assert not np.allclose(middle[1], middle[0])
    assert np.asarray(middle[3]).max() < 0.6
    label = np.array([[0, 0, 1], [0, 0, 1]])
    assert borders(label, label == 1, 1).tolist() == [[False, True, False]] * 2
    assert not borders(label, label == 2, 1).any()


def test_steps_that_recover_start_from_the_map_again() -> None:
    def step(block: int) -> dict[str, Any]:
        reduce = dict(type="TopK", keep=0.5)
        return dict(span=(block, block + 1), reduce=reduce, recover=dict(type="Scatter"))

    trace = traced(small_vit(plan=[step(0), step(2)], out_indices=(4,)), (64, 64))
    assert [r.within for r in trace.steps] == [(), ()]
    assert [m.before for m in patch_maps(trace)] == [64, 64]


def test_cells_double_until_they_fit() -> None:
    assert cells(10, 3, 4).tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert cells(20, 3, 4).tolist() == [0] * 8 + [1] * 8 + [2] * 4  # 5 patches, halved to 3
    assert cells(10, 4, 1).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]  # no doubling fits


def test_without_maps_or_a_grid_nothing_is_drawn() -> None:
    made = record(0, hard([0, 0, 1, 2], 2), (2, 2))
    with pytest.raises(ValueError, match="holds no map"):
        patch_maps(Trace((made._replace(map=None),)))
    with pytest.raises(ValueError, match="tile no grid"):
        patch_maps(Trace((made._replace(grid=None),)))


def test_the_dense_twin_has_the_same_weights_or_a_reason() -> None:
    plan = [dict(span=(1, 2), reduce=dict(type="TopK", keep=64), recover=dict(type="Scatter"))]
    arch = dict(embed_dim=32, depth=3, num_heads=2)
    settings = dict(
        type="tokensparse.VisionTransformer",
        arch=arch,
        img_size=64,
        patch_size=8,
        plan=plan,
        out_indices=(2,),
    )
    model = small_vit(**{k: v for k, v in settings.items() if k != "type"}).eval()
    dense = dense_twin(settings, model)
    with torch.no_grad():
        torch.testing.assert_close(dense(image((64, 64)))[0], model(image((64, 64)))[0])
    plan = [dict(span=(1, 2), reduce=dict(type="STGM"), replaces=(1, 2))]
    del settings["out_indices"]
    model = small_vit(plan=plan, arch=arch)
    reason = dense_twin({**settings, "plan": plan}, model)
    assert "lacks: stages.0.blocks.1." in reason


CONFIG = """
model = dict(
    type="tokensparse.ImageClassifier",
    backbone=dict(
        type="tokensparse.VisionTransformer",
        arch=dict(embed_dim=16, depth=4, num_heads=2),
        img_size=32,
        patch_size=8,
        plan=[
            dict(span=(1, None), reduce=dict(type="TopK", keep=12)),
            dict(span=(2, None), reduce=dict(type="ToMe", r=4)),
        ],
    ),
    head=dict(
        type="tokensparse.LinearHead", num_classes=10, loss=dict(type="tokensparse.CrossEntropy")
    ),
)
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a config, an image of 40 x 52 px and a file that is none."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 52, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def test_the_tool_writes_pictures(files: Path, capsys: pytest.CaptureFixture) -> None:
    run = (str(files / "tiny.py"), str(files / "noise.png"), "--out", str(files / "out"))
    out = command("visualize", *run, capsys=capsys)
    names = ["noise_depth", "noise_step-00_stage-0_block-1", "noise_step-01_stage-0_block-2"]
    assert out.split() == [str(files / "out" / f"{name}.png") for name in names]
    assert sorted(p.stem for p in (files / "out").iterdir()) == names
    for path in (files / "out").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 100 and np.asarray(picture).std() > 5
    command(
        "visualize", *run[:3], str(files / "some"), "--block", "2", "--size", "0", capsys=capsys
    )
    assert len(list((files / "some").iterdir())) == 2


def test_the_tool_says_which_weights(
    files: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    drawn = pictures.figure

    def kept(panels: Any, title: str, *rest: Any) -> Any:
        titles.append(title)
        return drawn(panels, title, *rest)

    monkeypatch.setattr(pictures, "figure", kept)
    run = (str(files / "tiny.py"), str(files / "noise.png"), "--out", str(files / "out"))
    run += ("--block", "1")
    command("visualize", *run, capsys=capsys)
    arch = dict(embed_dim=16, depth=4, num_heads=2)
    state = small_vit(arch=arch, img_size=32).state_dict()
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, files / "own.pth")
    command("visualize", *run, "--checkpoint", str(files / "own.pth"), capsys=capsys)
    assert all("tiny, RANDOM WEIGHTS" in title for title in titles[:2])
    assert all("own.pth" in title and "RANDOM" not in title for title in titles[2:])
    assert "TopK at stage 0 block 1: 24 -> 12 tokens" in titles[1]
    torch.save({"state_dict": small_vit().state_dict()}, files / "other.pth")
    with pytest.raises(SystemExit, match=r"other.pth has weights that the backbone lacks|shape"):
        command("visualize", *run, "--checkpoint", str(files / "other.pth"), capsys=capsys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("{}/absent.png",), "no image at .*absent.png"),
        (("{}/text.png",), "text.png is no image that Pillow reads"),
        (("{}",), "no image at"),
        (("{}/noise.png", "{}/text.png"), "text.png is no image"),
        (("{}/noise.png", "--block", "7"), r"--block 7: no step .*0.1 \(TopK\), 0.2 \(ToMe\)"),
        (("{}/noise.png", "--out", "{}/noise.png"), "noise.png is a file; give a folder"),
        (("{}/noise.png", "--plan", "EViT"), "expected a Python literal"),
        (("{}/noise.png", "--plan", "[]"), "its plan has no step"),
        (("{}/noise.png", "--plan", "{{'every': {{'type': 'ToMee'}}}}"), "did you mean 'ToMe'"),
        (("{}/noise.png", "--size", "-3"), "--size -3"),
        (("{}/noise.png", "--checkpoint", "{}/absent.pth"), "absent.pth"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture, given: tuple[str, ...], message: str
) -> None:
    args = [str(files / "tiny.py"), *(part.format(files) for part in given)]
    if "--out" not in given:
        args += ["--out", str(files / "out")]
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit, match=message) as stopped:
        command("visualize", *args, capsys=capsys)
    assert "\n" not in str(stopped.value)
    assert sorted(files.rglob("*")) == before


def test_dense_models_show_what_recovery_lost(files: Path, capsys: pytest.CaptureFixture) -> None:
    config = files / "map.py"
    text = (
        "model = dict(type='tokensparse.TokenModel', model=dict(type='tokensparse.ImageClassifier',"
        "backbone=dict(type='tokensparse.SwinTransformer', arch=dict(embed_dim=16, "
        "depths=(1, 1, 3, 1), num_heads=(1, 2, 4, 8)), out_indices=(2, 3), img_size=64, "
        "window_size=4, window_padding='masked', plan=[dict(stage=2, span=(1, 1), "
        "reduce=dict(type='Windowed', window=2, reducer=dict(type='TopK', keep=2)))]), "
        "head=dict(type='tokensparse.LinearHead', num_classes=2)))"
    )
    config.write_text(text)
    out = command(
        "visualize", str(config), str(files / "noise.png"), "--out", str(files / "o"), capsys=capsys
    )
    assert "noise_dense-difference.png" in out


def test_difference_is_that_of_the_maps() -> None:
    dense = torch.ones(1, 4, 2, 2)
    own = dense.clone()
    own[0, :, 0, 1] = 3.0
    panels = pictures.difference_panels([own], [dense], np.zeros((8, 8, 3), np.uint8), 4)
    assert panels[1].title.splitlines()[1] == "mean 0.500, largest 2.000"
    assert sorted(np.unique(panels[1].pixels).tolist()) == [0.0, 2.0]


HOOKED = """
_base_ = "{base}"
model = dict(
    backbone=dict(
        arch=dict(embed_dim=16, depth=4, num_heads=2), num_tokens=4, base_layers=1, img_size=32
    )
)
train_dataloader = dict(num_batch_per_epoch=2, dataset=dict(img_size=32))
val_dataloader = dict(dataset=dict(img_size=32))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(precision="fp32")
custom_hooks = [dict(type="tokensparse.TokenMapHook", num_images=2)]
"""


def test_the_hook_draws_while_a_model_trains(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tmp_path / "hooked.py"
    base = Path(__file__).parents[1] / "configs/stvit/stvit-deit_digits.py"
    config.write_text(HOOKED.format(base=base))
    command("train", str(config), "--work-dir", str(tmp_path / "work"), capsys=capsys)
    found = sorted(p.name for p in (tmp_path / "work").glob("*/token_maps/*"))
    assert found == ["0_epoch-1.png", "180_epoch-1.png"]
    (events,) = (tmp_path / "work").glob("*/vis_data/events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    assert board.Tags()["images"] == ["token_maps/0", "token_maps/180"]


def test_the_hook_refuses_what_it_cannot_draw() -> None:
    from tokensparse.engine import TokenMapHook

    with pytest.raises(ValueError, match="num_images=0; expected an int >= 1"):
        TokenMapHook(num_images=0)
    swin = small_swin()

    class Run:
        model, val_loop = swin, object()

    with pytest.raises(ValueError, match="SwinTransformer has no token steps"):
        TokenMapHook().before_train(Run())
    Run.val_loop = None
    with pytest.raises(ValueError, match="no val_dataloader"):
        TokenMapHook().before_train(Run())
