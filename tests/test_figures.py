"""Attention by depth and recovery of cluster centres: scores, tools, pages."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from small import image, small_swin, small_vit

from tokensparse.analysis.attention_depth import (
    attention_depth,
    attention_maps,
    effective_keys,
    measure,
    received,
    top_share,
)
from tokensparse.analysis.cluster_centres import (
    attention_centres,
    centre_error,
    gaussian_clusters,
    kmeans_centres,
    label_means,
)

ROOT = Path(__file__).parents[1]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uniform_attention_scores_p_and_one_key_scores_one() -> None:
    uniform = torch.full((2, 3, 5, 40), 1 / 40)
    assert measure(uniform, 0.125) == pytest.approx((2 * 0.125, 2 * 40, 2 * 40))
    assert measure(uniform, 0.13) == pytest.approx((2 * 0.13, 2 * 40, 2 * 40))
    line = torch.zeros(2, 3, 5, 40)
    line[..., 7] = 1.0
    assert measure(line, 0.125) == pytest.approx((2.0, 2.0, 2.0))
    assert measure(line, 0.001) == pytest.approx((2.0, 2.0, 2.0))


def test_sharp_attention_without_vertical_lines_scores_low() -> None:
    diagonal = torch.eye(40).expand(1, 2, 40, 40)
    share, together, single = measure(diagonal, 0.1)
    assert (share, together, single) == pytest.approx((0.1, 40.0, 1.0))


def test_two_levels_by_hand() -> None:
    mass = torch.tensor([[0.1, 0.5, 0.1, 0.3]])
    assert float(top_share(mass, 0.25)) == pytest.approx(0.5)
    assert float(top_share(mass, 0.375)) == pytest.approx(0.65)
    assert float(top_share(mass, 1.0)) == pytest.approx(1.0)
    assert float(top_share(5 * mass, 0.5)) == pytest.approx(0.8)
    assert float(effective_keys(torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(2.0)
    attn = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(received(attn), torch.tensor([[0.75, 0.25]]))
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share=.*\(0, 1\]"):
            top_share(mass, share)


def test_depth_of_a_model_is_that_of_its_maps() -> None:
    plan = [dict(span=(2, None), reduce=dict(type="TopK", keep=9))]
    vit = small_vit(plan=plan).train()
    batches = [image((64, 64), batch=2), image((64, 64), batch=1, seed=5)]
    rows = attention_depth(vit, batches, 0.2)
    assert vit.training and vit.stages[0].training
    assert [(row.block, row.keys) for row in rows] == [(0, 65), (1, 65), (2, 65), (3, 10), (4, 10)]
    assert rows[0].uniform_share == 0.2
    own = attention_maps(vit.eval(), torch.cat(batches))
    for row, (_, block, attn) in zip(rows, own, strict=True):
        assert block == row.block and attn.shape[:2] == (3, 2)
        torch.testing.assert_close(attn.sum(-1), torch.ones(attn.shape[:-1]))
        expected = [value / 3 for value in measure(attn, 0.2)]
        found = (row.top_share, row.effective_keys, row.effective_keys_per_query)
        assert found == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="no images"):
        attention_depth(vit, [])
    with pytest.raises(ValueError, match=r"Linear does not show its attention"):
        attention_depth(torch.nn.Linear(2, 2), batches)


def test_windows_are_scored_one_by_one() -> None:
    swin = small_swin().eval()
    maps = attention_maps(swin, image((128, 128), batch=1))
    heads = [swin.stages[stage].blocks[str(block)].attn.num_heads for stage, block, _ in maps]
    assert [attn.shape for _, _, attn in maps[:2]] == [(64, heads[0], 16, 16)] * 2
    rows = attention_depth(swin, [image((128, 128), batch=1)], 0.25)
    assert len(rows) == len(maps) == 10
    assert all(0.25 <= row.top_share < 0.6 for row in rows)


def test_attention_tool_draws_and_writes(tmp_path: Path) -> None:
    config = tmp_path / "narrow.py"
    config.write_text(
        f'_base_ = "{ROOT}/docs/examples/random-pruning_deit_digits.py"\n'
        'custom_imports = dict(imports=["tokensparse"])\n'
        "model = dict(backbone=dict(plan=None, arch=dict(embed_dim=16, depth=2, num_heads=2)))\n"
    )
    out = tmp_path / "depth"
    command = [sys.executable, str(ROOT / "tools/attention_depth.py"), str(config), "--images", "3"]
    files = ["--out", f"{out}.png", "--json", f"{out}.json", "--batch", "2"]
    done = subprocess.run(command + files, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(Path(f"{out}.json").read_text())
    assert found["images"] == 3 and [row["keys"] for row in found["blocks"]] == [65, 65]
    assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    depth = tool("attention_depth")
    cfg = Config.fromfile(config)
    with pytest.raises(ValueError, match=r"other.pth is of another model than the config"):
        depth.build(cfg, str(tmp_path / "other.pth"))
    model = depth.build(cfg, None)
    with pytest.raises(ValueError, match=r"--images 0; expected at least 1"):
        list(depth.batches(cfg, model, 0, 2))
    state = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    loaded = depth.build(cfg, str(tmp_path / "own.pth"))
    torch.testing.assert_close(loaded.head.fc.weight, model.head.fc.weight + 1)


def test_attention_centres_is_softmax_attention() -> None:
    clusters = gaussian_clusters(2, dim=6, noise=0.4, num_clusters=3, region=5)
    found = attention_centres(clusters.guess, clusters.tokens, 0.3, 1)
    logits = clusters.guess @ clusters.tokens.transpose(1, 2) / 0.3
    torch.testing.assert_close(found, logits.softmax(-1) @ clusters.tokens)
    distance = -torch.cdist(clusters.guess, clusters.tokens).square() / (2 * 0.3)
    control = attention_centres(clusters.guess, clusters.tokens, 0.3, 1, distance=True)
    torch.testing.assert_close(control, distance.softmax(-1) @ clusters.tokens)
    with pytest.raises(ValueError, match="temperature=0"):
        attention_centres(clusters.guess, clusters.tokens, 0)


def test_error_is_exact_by_hand() -> None:
    centres = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]])
    spacing = (2 + 2 + 4) / 3
    assert float(centre_error(centres, centres)) == 0.0
    moved = centres + torch.tensor([0.0, 1.0])
    assert float(centre_error(moved, centres)) == pytest.approx(1 / spacing)
    swapped = centres[:, [2, 0, 1]]
    assert float(centre_error(swapped, centres, matched=False)) == 0.0
    assert float(centre_error(swapped, centres)) == pytest.approx(
        (4 + 2 + math.hypot(2, 4)) / (3 * spacing)
    )


def test_clusters_are_what_they_say() -> None:
    clusters = gaussian_clusters(4, dim=32, noise=0.5, purity=0.5, lengths=(0.5, 1.5))
    offset = clusters.tokens - clusters.centres.gather(
        1, clusters.labels[..., None].expand(-1, -1, 32)
    )
    assert float(offset.square().sum(-1).mean().sqrt()) == pytest.approx(0.5, rel=0.03)
    lengths = clusters.centres.norm(dim=-1)
    assert 0.5 <= float(lengths.min()) < 0.7 and 1.3 < float(lengths.max()) <= 1.5
    regions = clusters.labels.unflatten(1, (16, 12))
    pure = (regions == torch.arange(16)[:, None]).float().mean()
    assert float(pure) == pytest.approx(0.5 + 0.5 / 16, abs=0.06)
    exact = gaussian_clusters(4, dim=32, noise=0.0, purity=1.0)
    assert float(centre_error(exact.guess, exact.centres).max()) < 1e-6
    for wrong in (dict(noise=-1.0), dict(noise=0.1, purity=2.0)):
        with pytest.raises(ValueError, match="expected noise >= 0"):
            gaussian_clusters(1, dim=2, **wrong)


def test_error_falls_with_separation_and_kmeans_is_the_better_one() -> None:
    far, near = (gaussian_clusters(6, dim=64, noise=noise) for noise in (0.1, 0.75))
    error = {}
    for name, clusters in (("far", far), ("near", near)):
        found = attention_centres(clusters.guess, clusters.tokens, 0.1)
        error[name] = float(centre_error(found, clusters.centres).mean())
    guess = float(centre_error(far.guess, far.centres).mean())
    assert error["far"] < 0.5 * error["near"] and error["far"] < 0.5 * guess
    start = kmeans_centres(far.tokens, 16, far.guess)
    free = kmeans_centres(far.tokens, 16)
    best = float(centre_error(label_means(far), far.centres).mean())
    assert float(centre_error(start, far.centres).mean()) == pytest.approx(best, abs=1e-3)
    assert float(centre_error(free, far.centres, matched=False).mean()) < error["far"]


def test_the_page_of_cluster_centres_is_fresh_and_its_text_is_true() -> None:
    centres = tool("cluster_centres")
    results = json.loads(centres.DATA.read_text())
    assert centres.PAGE.read_text() == centres.page(results)
    said = centres.findings(results)
    assert said["best_min"] > 1.0, "the page says that attention does not reach k-means"
    assert said["left"] < 0.5 and said["two_last"] > 1.0 and said["one_last"] > 1.0
    assert said["unequal"] > said["equal"]
    assert said["dims"].endswith("256") and not said["dims"].startswith("4,")


def test_a_small_sweep_is_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres = tool("cluster_centres")
    sweeps = [
        (title, axis, (16, 64) if axis == "dim" else (0.1, 0.5), other)
        for title, axis, _, other in centres.SWEEPS
    ]
    monkeypatch.setattr(centres, "SWEEPS", sweeps)
    results = centres.measure(draws=2)
    assert centres.page(results).count("\n| ") == 4 * (1 + 2)
    committed = json.loads(centres.DATA.read_text())["sweeps"]["noise"]["mean"]
    noise = results["sweeps"]["noise"]["mean"]
    assert noise["guess"][1] == pytest.approx(committed["guess"][2], rel=0.2)
    centres.draw(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
