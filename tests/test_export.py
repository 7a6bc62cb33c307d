"""Exported files: every reducer and recovery, whole configs, and what is refused."""

import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModule
from small import image, small_swin, small_vit
from test_tools import command
from torch import nn
from wrapped import WITH_LOSS, batch, least, samples

import tokensparse  # noqa: F401  registers everything
from tokensparse.export import ExportError, check_graph, checked, export_model, onnx_file
from tokensparse.interfaces import Reducer
from tokensparse.registry import RECOVERIES, REDUCERS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

VIT = dict(embed_dim=32, depth=2, num_heads=2)
SWIN = dict(embed_dim=16, depths=(2,), num_heads=(2,))
TWO_STAGES = dict(embed_dim=16, depths=(1, 2), num_heads=(1, 2))
#: As in tests/test_contract.py; what is not listed uses its defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "SparTa": dict(num_tokens=10),
    "Windowed": dict(window=4, reducer=dict(type="TopK", keep=5)),
}
SIZE = (64, 64)


def build(kind: str, reducer: Any, recovery: str | None = None) -> BaseModule:
    """8 x 8 tokens where the reducer works; a classifier's features, or maps."""
    named = SETTINGS.get(reducer, {}) if isinstance(reducer, str) else {}
    step: dict[str, Any] = dict(span=(0, 1), reduce=dict(type=reducer, **named))
    if recovery is not None:
        step["recover"] = dict(type=recovery)
    if kind == "vit":
        return small_vit(arch=VIT, plan=[step], out_indices=(1,) if recovery else None).eval()
    outs = (0,) if recovery else None
    return small_swin(arch=SWIN, img_size=64, patch_size=8, plan=[step], out_indices=outs).eval()


def run_file(path: Path, x: torch.Tensor) -> list[torch.Tensor]:
    """The way a stranger runs it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(a) for a in session.run(None, {"image": x.numpy()})]


def check_as_stranger(path: Path, model: nn.Module) -> None:
    """The graph by onnx alone, and the numbers of batches that the export did not see."""
    graph = onnx.load(path).graph
    constants = {t.name for t in graph.initializer}
    constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
    for node in graph.node:
        if node.op_type.startswith("Scatter"):
            reductions = [a.s for a in node.attribute if a.name == "reduction"]
            assert reductions in ([], [b"none"]), f"{node.name} adds up"
        if node.op_type == "TopK":
            assert node.input[1] in constants, f"{node.name}: k is computed"
    for number in (1, 3):
        x = image(SIZE, number, seed=7)
        with torch.no_grad():
            for a, b in zip(model(x), run_file(path, x), strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


PAIRS = list(zip(sorted(REDUCERS.module_dict), cycle(sorted(RECOVERIES.module_dict)), strict=False))


@pytest.mark.parametrize(("reducer", "recovery"), PAIRS)
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_every_reducer_runs_in_onnxruntime(
    kind: str, reducer: str, recovery: str, tmp_path: Path
) -> None:
    """Classification on ViT, maps on Swin."""
    model = build(kind, reducer, recovery if kind == "swin" else None)
    made = export_model(model, tmp_path / "model.onnx", SIZE)
    assert made.inputs == {"image": ("batch", 3, 64, 64)} and made.batches == (1, 3)
    check_as_stranger(made.path, model)


def test_every_recovery_was_among_them() -> None:
    assert {recovery for _, recovery in PAIRS} == set(RECOVERIES.module_dict)


@pytest.mark.parametrize("reducer", ["STGM", "ToMe"])
def test_programs_are_reloaded_at_other_batches(reducer: str, tmp_path: Path) -> None:
    model = build("vit", reducer)
    made = export_model(model, tmp_path / "model.pt2", SIZE)
    program = torch.export.load(made.path)
    ops = {str(node.target) for node in program.graph.nodes}
    assert not [op for op in ops if "scatter_add" in op or "scatter_reduce" in op]
    x = image(SIZE, 5, seed=7)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x)[0], model(x)[0])


class Counting(Reducer):
    """Reads a count off the data: no graph can hold it."""

    def num_out(self, n: int, n_start: int) -> int:
        return n // 2

    def forward(self, t: Any, hints: Any, want_map: bool) -> Any:
        kept = 1 + int((t.x.sum() > 0).item()) * (t.x.shape[1] // 2 - 1)
        return t._replace(
            x=t.x[:, :kept], size=t.size[:, :kept], pos=t.pos[:, :kept], grid=None
        ), None


class Adding(Counting):
    """Adds where indices meet, by a scatter."""

    def forward(self, t: Any, hints: Any, want_map: bool) -> Any:
        half = t.x.shape[1] // 2
        slot = torch.arange(2 * half).remainder(half).view(1, -1, 1)
        x = torch.zeros_like(t.x[:, :half]).scatter_add(1, slot.expand_as(t.x), t.x)
        return t._replace(x=x, size=t.size[:, :half] * 2, pos=t.pos[:, :half], grid=None), None


class Drawing(Counting):
    """Draws its tokens anew in every forward."""

    def forward(self, t: Any, hints: Any, want_map: bool) -> Any:
        index = torch.rand(t.x.shape[1]).topk(t.x.shape[1] // 2).indices
        return t._replace(
            x=t.x[:, index], size=t.size[:, index], pos=t.pos[:, index], grid=None
        ), None


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        (Counting, r"VisionTransformer was not traced: .*data-dependent"),
        (Adding, r"scatter_add\.default adds up .*test_export\.py.*use tokensparse\.tokens"),
        (Drawing, r"logits: torch .* differs from eager by .* at batch 1 .*random"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_the_old_file_stays(
    reducer: type[Reducer], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("old")
    model = small_vit(arch=VIT, plan=[dict(span=(1, None), reduce=dict(type=reducer))]).eval()
    with pytest.raises(ExportError, match=message) as found:
        export_model(model, out, SIZE)
    assert "\n" not in str(found.value)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


class Fixed(nn.Module):
    """Writes its batch into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        places: torch.Tensor = self.conv(img).reshape(int(img.shape[0]), 4, 64)
        return places.mean(-1)


class Pooling(Fixed):
    """Any batch."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.conv(img).flatten(2).mean(-1)


class Decomposing(Fixed):
    """An operator that no ONNX graph has."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(self.conv(img)).mean(-1)


def test_a_fixed_batch_is_fixed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not traced: .*; a fixed batch may do, such as --batch"):
        export_model(Fixed().eval(), tmp_path / "a.pt2", SIZE)
    made = export_model(Fixed().eval(), tmp_path / "a.onnx", SIZE, batch=2)
    assert made.inputs["image"] == (2, 3, 64, 64) and made.outputs == {"logits": (2, 4)}
    with pytest.raises(ExportError, match=r"batch=0; expected 'dynamic' or an int >= 1"):
        export_model(Fixed().eval(), tmp_path / "a.onnx", SIZE, batch=0)


def test_a_missing_operator_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no ONNX graph: .*linalg_eigh"):
        export_model(Decomposing().eval(), tmp_path / "a.onnx", SIZE)
    assert not list(tmp_path.iterdir())


def test_graphs_that_add_or_compute_k_are_refused() -> None:
    from onnx_ir import from_onnx_text

    head = '<ir_version: 9, opset_import: ["" : 18]> g '
    adds = "(float[4] x, int64[4] i) => (float[4] y) { y = ScatterElements <axis: int = 0,"
    with pytest.raises(ExportError, match=r"ScatterElements with reduction='add'"):
        check_graph(from_onnx_text(f'{head}{adds} reduction: string = "add"> (x, i, x) }}'))
    check_graph(from_onnx_text(f'{head}{adds} reduction: string = "none"> (x, i, x) }}'))
    computed = "(float[n] x) => (float[m] y, int64[m] i) { k = Shape (x) y, i = TopK (x, k) }"
    with pytest.raises(ExportError, match=r"TopK whose k is computed"):
        check_graph(from_onnx_text(head + computed))


def test_weights_beyond_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Pooling().eval()
    small = export_model(model, tmp_path / "one.onnx", SIZE)
    monkeypatch.setattr(onnx_file, "ONE_FILE", 1000)
    made = export_model(model, tmp_path / "two.onnx", SIZE)
    assert {p.name for p in tmp_path.iterdir()} == {"one.onnx", "two.onnx", "two.onnx.data"}
    assert made.size == sum(p.stat().st_size for p in tmp_path.glob("two*"))
    x = image(SIZE)
    for a, b in zip(run_file(small.path, x), run_file(made.path, x), strict=True):
        torch.testing.assert_close(a, b)


def test_without_its_packages_one_error_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(ImportError, match=r"needs no_such_runtime: pip install onnx no_such"):
        export_model(Fixed().eval(), tmp_path / "a.onnx", SIZE)


def test_a_wrong_number_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares: a file that is off by 0.1 % of a small output is not kept."""
    whole = checked._write_program

    def off(*args: Any) -> Any:
        run, runtime = whole(*args)
        return lambda img: [out * 1.002 for out in run(img)], runtime

    monkeypatch.setattr(checked, "_write_program", off)
    with pytest.raises(ExportError, match=r"logits: .* differs from eager"):
        export_model(Fixed().eval(), tmp_path / "a.pt2", SIZE, batch=1)
    assert not list(tmp_path.iterdir())


CLASSIFIER = """
model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.VisionTransformer",
        arch=dict(embed_dim=32, depth=2, num_heads=2), img_size=32, patch_size=8,
        plan=[dict(span=(0, None), reduce=dict(type="EViT", keep=0.5))],
    ),
    head=dict(type="tokensparse.LinearHead", num_classes=7),
)
"""
DENSE = """
default_scope = "mmengine"
model = dict(
    type="tokensparse.TokenModel",
    model=dict(
        type="Summing",
        backbone=dict(
            type="tokensparse.SwinTransformer", img_size=64, window_size=4, out_indices=(0, 1),
            arch=dict(embed_dim=16, depths=(1, 2), num_heads=(1, 2)),
            init_cfg=dict(type="Pretrained", checkpoint="absent.pth"),
        ),
    ),
)
"""
STRANGER = """
import sys, json, numpy, onnxruntime
assert "torch" not in sys.modules
s = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = s.get_modelmeta().custom_metadata_map
x = numpy.load(sys.argv[2])
assert json.loads(about["shape"]) == list(x.shape[2:]) and about["weights"] == "trained.pth"
assert json.loads(about["mean"]) == [123.675, 116.28, 103.53]
numpy.save(sys.argv[3], s.run(["logits"], {"image": x})[0])
"""


def test_the_command_and_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from mmengine.config import Config

    from tokensparse.export import deployable

    config, out, weights = (tmp_path / n for n in ("c.py", "model.onnx", "trained.pth"))
    config.write_text(CLASSIFIER)
    model = deployable(Config.fromfile(config)).model
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}}, weights)
    said = command("export", str(config), str(out), "--checkpoint", str(weights), capsys=capsys)
    assert "image (batch, 3, 32, 32) -> logits (batch, 7)" in said and "RANDOM" not in said
    assert b"site-packages" not in out.read_bytes() and str(tmp_path).encode() not in (
        out.read_bytes()
    )
    np.save(tmp_path / "x.npy", image((32, 32), 4).numpy())
    run = [sys.executable, "-c", STRANGER, str(out), str(tmp_path / "x.npy")]
    done = subprocess.run([*run, str(tmp_path / "y.npy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = model(image((32, 32), 4))
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "y.npy")), wanted, atol=1e-5, rtol=1e-4
    )


def test_a_detector_gives_its_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmengine.config import Config

    from tokensparse.export import deployable, load_weights

    config = tmp_path / "c.py"
    config.write_text(DENSE)
    part = deployable(Config.fromfile(config))
    state = {f"backbone.{k}": v + 1 for k, v in part.model.state_dict().items()}
    load_weights(part, {**state, "head.weight": torch.ones(2)}, "here.pth")
    assert torch.equal(part.model.state_dict()["norm0.bias"], state["backbone.norm0.bias"])
    state.pop("backbone.norm0.bias")
    with pytest.raises(ExportError, match=r"here.pth does not fit .*1 missing \(norm0.bias\)"):
        load_weights(part, state, "here.pth")
    args = ("--shape", "40", "72", "--batch", "2")
    with pytest.raises(SystemExit, match=r"Summing"):  # the strict check knows no such model
        command("export", str(config), str(tmp_path / "m.pt2"), *args, capsys=capsys)
    made = export_model(part.model, tmp_path / "m.pt2", (40, 72), 2)
    assert made.outputs == {"map0": (2, 16, 10, 18), "map1": (2, 32, 5, 9)}


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.py"
    config.write_text(CLASSIFIER)
    out = str(tmp_path / "model.onnx")
    for arguments, message in (
        ((str(tmp_path / "model.bin"),), r"^ExportError: .*model\.bin: .*model\.onnx.*model\.pt2$"),
        ((out, "--format", "torch"), r"^ExportError: .*written to model\.pt2$"),
        ((out, "--checkpoint", str(tmp_path / "none.pth")), r"^FileNotFoundError: no checkpoint"),
        ((out, "--cfg-options", "model.hed.x=1"), r"unknown key 'hed'.*did you mean 'head'"),
    ):
        with pytest.raises(SystemExit, match=message):
            command("export", str(config), *arguments, capsys=capsys)
    config.write_text('model = dict(type="tokensparse.LinearHead", num_classes=3, in_channels=4)')
    with pytest.raises(SystemExit, match=r"^ExportError: model: .*LinearHead has no backbone"):
        command("export", str(config), out, capsys=capsys)
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"c.py"}


def small_token_model() -> Any:
    plan = [dict(WITH_LOSS[0], stage=1, span=(0, 1))]
    return least(plan=plan, arch=TWO_STAGES, out_indices=(0, 1))


@pytest.mark.parametrize("mode", ["tensor", "loss"])
def test_token_model_compiles_without_a_break(mode: str) -> None:
    """Valid sizes in and losses out within one graph; from the second change on sizes are free."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_token_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = batch(noise=5.0)
    sizes = ((100, 110), (60, 77)), ((90, 95), (50, 61)), ((33, 45), (99, 121))
    graphs = []
    for given in sizes:
        torch.testing.assert_close(
            compiled(x, samples(given), mode), model(x, samples(given), mode)
        )
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2]
    if mode == "loss":
        compiled(x, samples(sizes[0]), mode)["loss_step0_size"].backward()
        assert model.backbone.plan.steps[0].reduce.target.grad.abs() > 0


def test_a_backbone_compiled_alone_still_gets_its_valid_sizes() -> None:
    """The wrapper runs eagerly there, and its context variable breaks the graph."""
    torch._dynamo.reset()
    model = small_token_model()
    wanted = model(batch(noise=5.0), samples(), "loss")
    model.backbone.compile(backend="eager")
    torch.testing.assert_close(model(batch(noise=5.0), samples(), "loss"), wanted)
