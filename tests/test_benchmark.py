"""tools/benchmark.py and its harness: turns, figures that agree, refusals, files kept whole."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from small import SWIN, VIT, image, small_swin, small_vit, tool_of
from torch import Tensor, nn

from tokensparse.analysis import count
from tokensparse.analysis.benchmark.gpus import PEAK, peak_rate
from tokensparse.analysis.benchmark.measure import (
    Settings,
    benchmark,
    compare_rows,
    random_images,
    write_json,
)
from tokensparse.analysis.benchmark.models import (
    BenchmarkError,
    Called,
    Subject,
    called,
    line_up,
    timm_twin,
)
from tokensparse.analysis.benchmark.shares import operations, step_shares
from tokensparse.analysis.executed import executed
from tokensparse.registry import MODELS

ROOT = Path(__file__).parents[1]
PLANS = {
    "evit": [dict(span=(1, None), reduce=dict(type="EViT", keep=0.5))],
    "tome": dict(every=dict(type="ToMe", r=4)),
}
QUICK = ["--rounds", "3", "--warmup", "1", "--batch", "2"]


def config(folder: Path, name: str, **backbone: object) -> str:
    """A classifier of few channels, written to a file."""
    settings = dict(type="tokensparse.VisionTransformer", arch=VIT, img_size=64, patch_size=8)
    settings |= backbone
    head = dict(type="tokensparse.LinearHead", num_classes=10)
    model = dict(type="tokensparse.ImageClassifier", backbone=settings, head=head)
    path = folder / f"{name}.py"
    path.write_text(f"custom_imports = dict(imports=['tokensparse'])\nmodel = {model!r}\n")
    return str(path)


def main(*args: str) -> None:
    """Run the tool in this process."""
    module = tool_of("benchmark")
    before = sys.argv
    sys.argv = ["benchmark.py", *args]
    try:
        module.main()
    finally:
        sys.argv = before


def test_figures_of_a_row_agree(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [config(tmp_path, name, plan=plan) for name, plan in PLANS.items()]
    out = tmp_path / "out.json"
    main(*paths, *QUICK, "--operations", "--note", "shared cores", "--out", str(out))
    shown = capsys.readouterr().out
    assert "efficiency" in shown and "of timm's speed" in shown and "share of an eager" in shown
    found = json.loads(out.read_text())
    assert found["failed"] is None and found["note"] == "shared cores"
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["evit (dense)", "timm: evit (dense)", "evit", "tome"]
    dense, twin = rows["evit (dense)"], rows["timm: evit (dense)"]
    assert dense["macs"] == twin["macs"] and dense["params"] == twin["params"]
    for name in PLANS:
        row = rows[name]
        expected = count(MODELS.build(Config.fromfile(str(tmp_path / f"{name}.py")).model), 64)
        assert (row["macs"], row["params"]) == (expected.macs, expected.params)
        assert row["tokens"] == list(expected.tokens) and row["tokens"][-1] < 64
        assert row["baseline"] == "evit (dense)"
        assert row["mac_ratio"] == dense["macs"] / row["macs"] > 1
        if dense["against_timm"]["valid"]:
            assert row["void"] is None
            assert row["efficiency"] == pytest.approx(row["speedup"] / row["mac_ratio"])
        else:
            assert row["efficiency"] is None and "of timm's speed, below 0.97" in row["void"]
        parts = row["shares"]
        assert 0 < parts["all"] < 1 and f"reduce {'EViT' if name == 'evit' else 'ToMe'}" in parts
    for row in rows.values():
        ms = row["latency_ms"]
        assert 0 < ms["p10"] <= ms["p50"] <= ms["p90"] <= ms["p95"]
        assert row["img_s"] == pytest.approx(2000 / ms["p50"])
        assert row["peak_mem_bytes"] > 2 * 65 * 32 * 4 and "addmm" in row["operations_ms"]
        assert row["device"] and row["versions"]["torch"] == torch.__version__
    assert not list(tmp_path.glob("*.partial"))


def called_by(record: list[str], name: str, **kept: object) -> Subject:
    """A subject that notes its name when it runs."""

    def run(img: Tensor) -> Tensor:
        record.append(name)
        return img.mean()

    return Subject(name, "call", Called(run), **kept)


def test_strictly_in_turn_and_warm_up_apart() -> None:
    order: list[str] = []
    subjects = [called_by(order, "a"), called_by(order, "b", baseline="a")]
    settings = Settings(batches=(1,), shape=(8, 8), rounds=4, warmup=2)
    found = benchmark(subjects, settings, tell=lambda line: None)
    first, memory = 1, 1
    assert order == ["a", "b"] * (first + 2 + 4 + memory)
    assert found["clock"] == ("cpu" if torch.get_num_threads() == 1 else "wall")
    assert found["rows"][1]["speedup"] > 0 and found["rows"][1]["efficiency"] is None
    assert found["rows"][1]["void"] == "no multiply-accumulates could be counted"


def rows_of(seconds: dict[str, list[float]], compiled: bool = False) -> dict[str, dict]:
    """Rows of a dense model, its timm twin and a reduced one, of given times."""
    subjects = [
        Subject("dense", "dense", nn.Identity()),
        Subject("timm", "timm", nn.Identity(), compiled, baseline="dense"),
        Subject("reduced", "config", nn.Identity(), baseline="dense"),
    ]
    macs = {"dense": 100, "timm": 100, "reduced": 40}
    rows = [dict(name=n, macs=macs[n], peak_mem_bytes=1) for n in seconds]
    compare_rows(rows, subjects, seconds)
    return {row["name"]: row for row in rows}


def test_efficiency_by_hand() -> None:
    rows = rows_of(dict(dense=[2.0, 4.0, 2.0], timm=[2.0, 4.0, 2.0], reduced=[1.0, 2.0, 1.0]))
    assert rows["reduced"]["speedup"] == 2.0 and rows["reduced"]["mac_ratio"] == 2.5
    assert rows["reduced"]["efficiency"] == pytest.approx(0.8)
    assert rows["dense"]["against_timm"]["ratio"] == 1.0
    assert rows["reduced"]["speedup_range"] == dict(p10=2.0, p90=2.0)


def test_a_dense_model_slower_than_timm_voids_the_efficiency() -> None:
    rows = rows_of(dict(dense=[1.04], timm=[1.0], reduced=[0.5]))
    assert rows["reduced"]["efficiency"] is None
    assert rows["reduced"]["void"] == "dense runs at 0.962 of timm's speed, below 0.97"
    assert rows_of(dict(dense=[1.03], timm=[1.0], reduced=[0.5]))["reduced"]["void"] is None
    unlike = rows_of(dict(dense=[1.04], timm=[1.0], reduced=[0.5]), compiled=True)
    assert unlike["dense"]["against_timm"]["valid"] is None and unlike["reduced"]["efficiency"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "nothing to measure"),
        (["{evit}", "--dtype", "fp8"], "--dtype fp8: expected one of fp32, bf16, fp16"),
        (["{evit}", "--batch", "0"], "--batch 0: expected at least 1"),
        (["{evit}", "--mode", "test"], "--mode test: expected infer or train"),
        (["{evit}", "--device", "gpu"], "--device gpu: expected cpu, cuda or cuda:0"),
        (["{evit}", "--clock", "events", "--device", "cpu"], "--clock events: expected one of"),
        (["{evit}", "--compile", "fast"], "--compile fast: expected one of default"),
        (["{evit}", "--timm", "fused"], "--timm fused: expected eager, compiled or none"),
        (["{evit}", "--rounds", "0"], "--rounds 0: expected at least 1"),
        (["{evit}", "--out", "absent/x.json"], "the folder absent does not exist"),
        (["configs/dense/deit-s_in1kk.py"], "did you mean 'configs/dense/deit-s_in1k.py'?"),
        (["{bare}"], "model.backbone=None; expected a dict with type"),
        (["{empty}"], "has no model; expected model=dict("),
        (["{misspelt}"], "unknown key 'plann' (did you mean 'plan'?)"),
        (["{evit}", "{large}"], "different image sizes"),
        (["--call", "small"], "expected module:function"),
        (["--call", "small:nobody"], "has no attribute 'nobody'"),
        (["--call", "small:VIT"], "a dict, which cannot be called"),
    ],
)
def test_wrong_input_gives_one_line_and_no_file(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    bare = tmp_path / "bare.py"
    bare.write_text("model = dict(type='tokensparse.LinearHead', num_classes=2, in_channels=3)\n")
    (tmp_path / "empty.py").write_text("default_scope = 'mmengine'\n")
    paths = dict(
        evit=config(tmp_path, "evit", plan=PLANS["evit"]),
        misspelt=config(tmp_path, "misspelt", plann=[]),
        large=str(tmp_path / "large.py"),
        bare=str(bare),
        empty=str(tmp_path / "empty.py"),
    )
    text = Path(paths["evit"]).read_text().replace("'img_size': 64", "'img_size': 128")
    Path(paths["large"]).write_text(text)
    out = tmp_path / "out.json"
    given = [arg.format(**paths) for arg in args]
    with pytest.raises(SystemExit) as stopped:
        main(*given, *([] if "--out" in args else ["--out", str(out)]))
    message = str(stopped.value)
    assert said in message and "\n" not in message
    assert not list(tmp_path.glob("out*"))


def fails_on(batch: int, record: list[int]) -> Subject:
    def run(img: Tensor) -> Tensor:
        record.append(len(img))
        if len(img) == batch:
            raise RuntimeError("\"some_op\" not implemented for 'Half'\nand a long story")
        return img

    return Subject("stranger", "call", Called(run))


def test_a_failure_names_the_model_and_keeps_the_rows_before_it() -> None:
    settings = Settings(batches=(1, 2, 3), shape=(8, 8), dtypes=("fp16",), rounds=1, warmup=0)
    with pytest.raises(BenchmarkError, match="stranger, batch 1, fp16, infer on cpu: .*'Half' "):
        benchmark([fails_on(1, [])], settings, tell=lambda line: None)
    record: list[int] = []
    found = benchmark([fails_on(2, record)], settings, tell=lambda line: None)
    assert [row["batch"] for row in found["rows"]] == [1] and 3 not in record
    assert "batch 2" in found["failed"] and "long story" not in found["failed"]


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, dict(a=1))
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, dict(a=float("nan")))
    assert json.loads(path.read_text()) == dict(a=1) and list(tmp_path.iterdir()) == [path]


def test_images_are_noise() -> None:
    images = random_images(2, Settings(shape=(32, 48)), "bf16")
    assert images.shape == (2, 3, 32, 48) and images.dtype == torch.bfloat16
    assert 0.9 < float(images.float().std()) < 1.1 and (images != 0).float().mean() > 0.99


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_mode_and_dtype_runs(mode: str, dtype: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(config(tmp_path, "tome", plan=PLANS["tome"]))
    subjects, shape = line_up({"tome.py": cfg})
    settings = Settings(batches=(2,), shape=shape, dtypes=(dtype,), mode=mode, rounds=2, warmup=1)
    rows = benchmark(subjects, settings, tell=lambda line: None)["rows"]
    assert [row["kind"] for row in rows] == ["dense", "timm", "config"]
    wanted = torch.bfloat16 if (mode, dtype) == ("infer", "bf16") else torch.float32
    for subject in subjects:
        parameters = list(subject.model.parameters())
        assert {p.dtype for p in parameters} == {wanted}
        assert all(p.grad is None for p in parameters)
        assert subject.model.training == (mode == "train")


def test_compiling_is_timed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.compile
    seen = []

    def cheap(model: nn.Module, mode: str | None, dynamic: bool) -> object:
        seen.append((mode, dynamic))
        return plain(model, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", cheap)
    shallow = dict(VIT, depth=2)
    cfg = Config.fromfile(config(tmp_path, "evit", plan=PLANS["evit"], arch=shallow))
    subjects, shape = line_up({"evit.py": cfg}, compiled=True, timm=("compiled", "eager"))
    settings = Settings(batches=(1,), shape=shape, compile="default", rounds=3, warmup=1)
    rows = {r["name"]: r for r in benchmark(subjects, settings, tell=lambda line: None)["rows"]}
    assert len(seen) == 3 and set(seen) == {(None, False)}
    compiled = [name for name, row in rows.items() if row["compile_s"] is not None]
    assert compiled == ["evit (dense)", "timm compiled: evit (dense)", "evit"]
    assert rows["evit"]["compile_s"] > rows["evit"]["latency_ms"]["p50"] / 1e3
    ratio = rows["evit (dense)"]["against_timm"]["ratio"]
    assert ratio == pytest.approx(rows["timm compiled: evit (dense)"]["speedup"] ** -1, rel=1e-6)


def test_the_twin_is_the_same_model() -> None:
    vit = dict(num_registers=2, img_size=64)
    swin = dict(arch=SWIN, img_size=128, window_size=4, out_indices=(0, 1, 2, 3))
    for ours, settings, size in (
        (small_vit(**vit), vit, (64, 64)),
        (small_vit(**vit), vit, (48, 80)),
        (small_vit(**vit), vit, (45, 83)),
        (small_swin(out_indices=(0, 1, 2, 3)), swin, (128, 128)),
    ):
        twin = timm_twin(ours, settings, size)
        assert twin is not None
        img = image(size, 1)
        assert sum(executed(ours, img).values()) == sum(executed(twin, img).values())
    maps = twin(image((128, 128), 1))
    assert [m.shape for m in maps] == [m.shape for m in ours(image((128, 128), 1))]
    assert timm_twin(small_swin(stem="conv"), swin, (128, 128)) is None


def test_the_same_model_with_another_form_of_attention(tmp_path: Path) -> None:
    paths = [config(tmp_path, name, plan=plan) for name, plan in PLANS.items()]
    configs = {path: Config.fromfile(path) for path in paths}
    subjects, _ = line_up(configs, timm=(), form="eager")
    assert [(s.name, s.kind, s.baseline) for s in subjects] == [
        ("evit (eager attention)", "config", None),
        ("evit", "config", "evit (eager attention)"),
        ("tome (eager attention)", "config", None),
        ("tome", "config", "tome (eager attention)"),
    ]
    eager, auto = (subject.model.backbone for subject in subjects[:2])
    forms = [next(iter(m.stages[0].blocks.values())).attn.attention for m in (eager, auto)]
    assert forms == ["eager", "auto"] and subjects[0].macs == subjects[1].macs
    with pytest.raises(ValueError, match="two answers to one question"):
        line_up(configs, (paths[0], configs[paths[0]]), timm=(), form="eager")
    with pytest.raises(ValueError, match="is one of the configs that are held against it"):
        line_up(configs, (paths[0], configs[paths[0]]), timm=())


def test_baselines_are_shared_and_dense_configs_are_their_own(tmp_path: Path) -> None:
    paths = [config(tmp_path, name, plan=plan) for name, plan in PLANS.items()]
    plain = config(tmp_path, "plain", drop_path_rate=0.1)
    configs = {path: Config.fromfile(path) for path in [*paths, plain]}
    subjects, _ = line_up(configs, timm=())
    assert [(s.name, s.kind, s.baseline) for s in subjects] == [
        ("plain", "dense", None),
        ("evit", "config", "plain"),
        ("tome", "config", "plain"),
    ]
    (tmp_path / "more").mkdir()
    same = config(tmp_path / "more", "evit", plan=PLANS["tome"])
    subjects, _ = line_up({paths[0]: configs[paths[0]], same: Config.fromfile(same)}, timm=())
    assert [s.name for s in subjects][1] == "evit" and subjects[2].name.endswith("more/evit")
    wide = config(tmp_path, "wide")
    Path(wide).write_text(Path(wide).read_text().replace("'embed_dim': 32", "'embed_dim': 64"))
    given = (wide, Config.fromfile(wide))
    subjects, _ = line_up(
        {paths[0]: configs[paths[0]]}, given, ["torch.nn:Flatten"], (64, 64), timm=()
    )
    assert [(s.name, s.baseline) for s in subjects] == [
        ("wide", None),
        ("evit", "wide"),
        ("torch.nn:Flatten", "wide"),
    ]


def test_anything_callable_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = nn.Conv2d(3, 4, 2, 2, bias=False)
    module = SimpleNamespace(
        factory=lambda: made, images=lambda img: made(img) + 1, instance=made, none=lambda: None
    )
    monkeypatch.setitem(sys.modules, "strangers", module)
    for name in ("factory", "images", "instance"):
        subject = called(f"strangers:{name}", (8, 8))
        assert subject.model(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)
        assert subject.macs == 4 * 16 * 12
    with pytest.raises(ValueError, match="must give a callable on images"):
        called("strangers:none", (8, 8))


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_shares_find_the_reducer_and_leave_no_trace() -> None:
    model = small_vit(plan=PLANS["evit"]).eval()
    kept = [set(m.__dict__) for m in model.modules()]
    img = image((64, 64))
    before = step_shares(model, img)
    assert set(before) == {"hints", "reduce EViT", "all"}
    plain = type(model.plan.steps[0].reduce).forward
    reducer = model.plan.steps[0].reduce
    reducer.__class__ = type(
        "EViT", (type(reducer),), dict(forward=lambda *a: (busy(0.3), plain(*a))[1])
    )
    after = step_shares(model, img)
    assert after["reduce EViT"] > 0.5 and after["all"] == pytest.approx(
        sum(v for k, v in after.items() if k != "all")
    )
    assert [set(m.__dict__) for m in model.modules()] == kept
    assert step_shares(small_vit().eval(), img) == {}


def test_operations_are_those_of_the_call() -> None:
    a = torch.randn(64, 64)
    found = operations(partial(torch.mm, a, a), "cpu")
    assert found["mm"] > 0 and "conv2d" not in found


def test_peak_rates_by_name() -> None:
    assert peak_rate("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_rate("NVIDIA H100 80GB HBM3", "fp32", tf32=False) == 67e12
    assert peak_rate("NVIDIA H100 80GB HBM3", "fp32", tf32=True) == 494e12
    assert peak_rate("NVIDIA L40S", "fp16") == PEAK["L40S"]["fp16"] * 1e12
    assert peak_rate("NVIDIA A10G", "fp16") is None
    assert peak_rate("Tesla V100-SXM2-16GB", "bf16") is None
    assert peak_rate("AMD EPYC", "fp32") is None
