"""Hostile, damaged and absurd files are refused by every door; nothing in them runs."""

import argparse
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hostile_files import ROOT, Call, absurd, calls, nested_lists

from tokensparse import load_released
from tokensparse.checkpoint import CheckpointError, allow_globals, read_state
from tokensparse.engine.checkpoint_reading import read_checkpoint
from tokensparse.engine.checkpoints import check_progress

DOORS = 6
TOOLS = 3  # of training, by which two files are carried
SECONDS = 20.0  # of CPU time; the tools of training read their data first


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    folder = tmp_path_factory.mktemp("hostile")
    canary = tmp_path_factory.mktemp("canary") / "ran"
    named = calls(folder, str(canary))
    others = absurd(folder)
    (folder / "good.pth").unlink()
    return canary, named, sorted([*others, *named]) and others


def test_every_file_by_every_door(corpus, tmp_path_factory: pytest.TempPathFactory) -> None:
    canary, named, others = corpus
    folder = next(tmp_path_factory.getbasetemp().glob("hostile*"))
    command = [sys.executable, str(ROOT / "tests/hostile_files.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows) == DOORS * (len(named) + len(others)) + TOOLS * 2, [r["file"] for r in rows]
    wrong = [
        f"{row['file']} by {row['door']}: {row['message'][:200]} ({row['seconds']:.1f} s)"
        for row in rows
        if not re.search("refused|damaged|holds no state dict", row["message"])
        or row["message"].startswith("crash")
        or named.get(row["file"], "") not in row["message"]
        or row["seconds"] > SECONDS
    ]
    assert not wrong, "\n".join(wrong)
    assert not canary.exists()
    assert not list(folder.glob("*.out*"))


def released(path: Path, extra: object) -> Path:
    model = timm.models.VisionTransformer(embed_dim=32, depth=2, num_heads=2, num_classes=5)
    torch.save({"model": model.state_dict(), "args": extra}, path)
    return path


def test_what_a_user_trusts_is_allowed_by_name(tmp_path: Path) -> None:
    """DeiT's training checkpoints hold an argparse.Namespace."""
    path = released(tmp_path / "deit.pth", argparse.Namespace(lr=1e-3))
    with pytest.raises(CheckpointError, match=r"refused.*--allow-globals argparse.Namespace"):
        read_state(path)
    with allow_globals("argparse.Namespace"):
        load_released("timm-vit", path, num_heads=2)
    with pytest.raises(CheckpointError, match="refused"):
        read_state(path)
    with pytest.raises(ValueError, match="nothing to import by the name 'argparse.Nmespace'"):
        allow_globals("argparse.Nmespace").__enter__()
    with pytest.raises(CheckpointError, match=r"posix.system"), allow_globals("argparse.Namespace"):
        read_state(released(tmp_path / "other.pth", Call(__import__("os").system, "true")))


def test_the_tool_allows_by_name(tmp_path: Path) -> None:
    path = released(tmp_path / "deit.pth", argparse.Namespace(lr=1e-3))
    command = [sys.executable, "tools/convert_checkpoint.py", "timm-vit", str(path)]
    command += [str(tmp_path / "out.pth"), "--num-heads", "2"]
    command += ["--allow-globals", "argparse.Namespace"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.pth").is_file()


def test_text_in_metadata_is_not_evaluated(tmp_path: Path) -> None:
    """mmengine's resume evaluates ``meta['config']``; nothing of ours does."""
    import ast

    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("tokensparse", "tools")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"))
        or (isinstance(node, ast.Attribute) and node.attr == "fromstring")
    ]
    assert not calls


def test_a_place_in_the_run_is_a_number(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lists.pth", "w") as archive:
        archive.writestr("archive/data.pkl", nested_lists())
        archive.writestr("archive/version", "3\n")
    checkpoint = read_checkpoint(tmp_path / "lists.pth")
    with pytest.raises(ValueError, match=r"its epoch is a list, but this run has 5 iterations"):
        check_progress("lists.pth", checkpoint, 5)


def test_arrays_are_what_they_hold(tmp_path: Path) -> None:
    kept = {"state_dict": {"w": torch.ones(2)}, "losses": np.arange(3.0), "last": np.float64(2.5)}
    torch.save(kept, tmp_path / "kept.pth")
    found = read_checkpoint(tmp_path / "kept.pth")
    assert b"tokensparse" not in pickle.dumps(found["losses"])  # pickled again, they are numpy's
    assert np.array_equal(found["losses"], kept["losses"]) and found["last"] == 2.5
    claim = Call(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 20,), b"d")
    torch.save({"w": claim}, tmp_path / "claim.pth")
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(tmp_path / "claim.pth")
