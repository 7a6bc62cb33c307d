"""Write docs/reliability.md from a run of the tests: each fault, what is promised, what happened.

python -m pytest tests/test_reliability_*.py --junitxml reliability.xml
python tools/make_reliability_page.py reliability.xml
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# Nothing lost

What a run survives. Every run of `tools/train.py` has it, whatever its config; nothing is to be
switched on. This page is written by `tools/make_reliability_page.py` from the results of the tests
that try each fault.

{guards}
The image drawn at place p of an epoch is augmented from the seed (run's seed, epoch, p): a run is
the same with any number of workers, and draws the same images in the same way with any number of
processes of the same global batch.

## What it costs

{cost}

## What is not promised

- Resume on a GPU goes on from the same numbers, but GPU kernels that add in no fixed order do not
  repeat themselves bit for bit (`randomness.deterministic=True` asks for those that do).
- With several processes, gradients that wait for more batches are saved as their mean: exact to
  float noise, not to the bit.
- A signal during validation is obeyed when the validation ends; a later one ends at once.
- Data sets that are streams (`IterableDataset`) begin their epoch anew.
- A hook of yours that keeps its own state must save it (`before_save_checkpoint`).
- A work dir on a file system without locks (some network disks) is not guarded against a second
  run.

## What was tried

{faults}
"""
GUARDS = [
    ("what", "where (`tokensparse/engine/`)", "how to change it"),
    (
        "checkpoints: a second name, flushed, renamed, `sha256` beside; the old one removed last",
        "`whole_files.py`, `checkpoints.py`",
        "`default_hooks.checkpoint`, as in mmengine",
    ),
    (
        "`--resume` takes the valid checkpoint with most iterations; damaged ones are named",
        "`checkpoints.py`",
        "`--resume FILE`",
    ),
    (
        "random numbers, place in the data and open gradients travel in the checkpoint",
        "`resume.py`, `randomness.py`, `data_order.py`, `loops.py`",
        "`default_hooks.resume=None`",
    ),
    (
        "SIGTERM, Ctrl-C: `interrupted.pth` at the next step, exit code 128 + signal",
        "`signals.py`",
        "`default_hooks.signals=None`",
    ),
    ("one run per work dir", "`work_dir_lock.py`", "`--work-dir`"),
    (
        "NaN and Inf end the run before the step",
        "`finite.py`",
        "`default_hooks.finite=None`",
    ),
    (
        "unreadable images: `bad_images.jsonl`, 0.1 % allowed in training, none in evaluation",
        "`bad_images.py`",
        "`default_hooks.bad_images=dict(type='tokensparse.BadImagesHook', budget=0.01)`",
    ),
    (
        "a loader's worker that dies, or is silent for 300 s",
        "`loader.py`",
        "the dataloader's `timeout`",
    ),
]
FAULTS = ("fault", "promised", "what happened")


def rows(report: Path) -> list[tuple[str, str, str]]:
    """Fault, promise and outcome of every test that noted them.

    Args:
        report: pytest's ``--junitxml``.

    Raises:
        ValueError: a test failed, or none noted anything.
    """
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            raise ValueError(f"{report}: {case.get('name')} failed; mend it before telling of it")
        noted = {p.get("name"): p.get("value") for p in case.iter("property")}
        if "fault" in noted:
            found.append((noted["fault"], noted["promised"], noted["happened"]))
    if not found:
        raise ValueError(f"{report}: no test noted a fault; run tests/test_reliability_*.py")
    return found


def markdown(table: list[tuple[str, str, str]]) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(part.replace('|', '/') for part in row)} |" for row in table]
    return "\n".join([lines[0], "|---|---|---|", *lines[1:]]) + "\n"


def cost_table(cost: dict[str, Any]) -> str:
    """What the guards cost, as ``tools/measure_reliability_cost.py`` measured it."""
    lines = [
        "A training step, loader included, with the guards and with mmengine's own loops and",
        "hooks, in turn in one process; medians",
        "([reliability_cost.json](results/reliability_cost.json), written by",
        "`tools/measure_reliability_cost.py`).",
        "",
        "| config | guarded | mmengine's | ratio (median of pairs) |",
        "|---|---|---|---|",
    ]
    for row in cost["rows"]:
        how = "clip_grad" if row["clip_grad"] else "no clip_grad"
        times = f"{row['guarded_ms']:.1f} ms | {row['mmengine_ms']:.1f} ms | {row['ratio']:.3f}"
        lines.append(f"| `{row['config']}`, {how} | {times} |")
    where = f"{cost['device']}, {cost['threads']} threads, torch {cost['torch']}"
    return "\n".join([*lines, "", f"{cost['rounds']} steps of each, {cost['clock']}; {where}."])


def page(faults: list[tuple[str, str, str]], cost: dict[str, Any]) -> str:
    """The page's text.

    Args:
        faults: of :func:`rows`.
        cost: what ``tools/measure_reliability_cost.py`` wrote.
    """
    tables = dict(guards=markdown(GUARDS), faults=markdown([FAULTS, *faults]))
    return HEAD.format(cost=cost_table(cost), **tables).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument(
        "--cost",
        type=Path,
        default=ROOT / "docs/results/reliability_cost.json",
        help="what tools/measure_reliability_cost.py wrote",
    )
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    try:
        faults = [row for report in args.reports for row in rows(report)]
        text = page(faults, json.loads(args.cost.read_text()))
    except (ValueError, OSError, ElementTree.ParseError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    args.out.write_text(text)
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
