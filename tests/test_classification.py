"""The mmengine side of classification: classifier, heads, losses, data, metric, checkpoints."""

from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import build_optim_wrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from tokensparse.classification import (
    Accuracy,
    AttentionPenalty,
    CrossEntropy,
    DigitsDataset,
)
from tokensparse.classification.classifier import check_labels
from tokensparse.classification.losses import penalty
from tokensparse.classification.released_init import copy_fitting
from tokensparse.engine import AutocastOptimWrapper
from tokensparse.engine.runner import read_checkpoint
from tokensparse.registry import MODELS
from tokensparse.tokens import BlockRecord, Trace

GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"
SPARSE_SWIN = dict(
    type="SparseSwin",
    arch=dict(num_tokens=4, token_dim=32, num_heads=2, depth=2),
    trunk=dict(embed_dim=8, depths=(1, 1, 1), num_heads=(1, 1, 2)),
    img_size=64,
)


@MODELS.register_module(force=True)
class PlainMaps(nn.Module):
    """A backbone of another library: only ``forward``, one map."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 8)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(img),)


def classifier(backbone: dict, head: dict | None = None, **kwargs):
    head = head or dict(type="LinearHead", num_classes=5)
    model = MODELS.build(dict(type="ImageClassifier", backbone=backbone, head=head, **kwargs))
    model.init_weights()
    return model


def images(batch: int = 4, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", [SPARSE_SWIN, dict(type="PlainMaps")])
def test_three_modes(backbone: dict) -> None:
    model = classifier(backbone).eval()
    labels = {"labels": torch.tensor([0, 1, 2, 3])}
    logits = model(images())
    losses = model(images(), labels, mode="loss")
    results = model(images(), labels, mode="predict")
    assert logits.shape == (4, 5)
    expected = nn.functional.cross_entropy(logits, labels["labels"])
    torch.testing.assert_close(losses["loss"], expected)
    assert losses["acc"] == (logits.argmax(1) == labels["labels"]).float().mean() * 100
    torch.testing.assert_close(torch.stack([r["scores"] for r in results]), logits.softmax(-1))
    assert [int(r["label"]) for r in results] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"mode='nonsense'"):
        model(images(), mode="nonsense")


def test_objects_with_labels_work_like_mmpretrains() -> None:
    from mmengine.structures import BaseDataElement

    class Sample(BaseDataElement):
        def set_pred_score(self, value: Tensor) -> "Sample":
            self.pred_score = value
            return self

        def set_pred_label(self, value: Tensor) -> "Sample":
            self.pred_label = value
            return self

    samples = [Sample(gt_label=torch.tensor([i])) for i in range(4)]
    model = classifier(dict(type="PlainMaps"))
    batch = {"labels": torch.arange(4)}
    assert (
        model(images(), samples, mode="loss")["loss"] == model(images(), batch, mode="loss")["loss"]
    )
    assert model(images(), samples, mode="predict")[0].pred_score.shape == (5,)


def test_distilled_head_is_the_mean() -> None:
    vit = dict(
        type="VisionTransformer",
        arch=dict(embed_dim=24, depth=2, num_heads=2),
        img_size=32,
        distilled=True,
    )
    model = classifier(vit, dict(type="DistilledHead", num_classes=5)).eval()
    feats = model.backbone(images(2, 32))
    expected = (model.head.fc(feats[0]) + model.head.fc_dist(feats[1])) / 2
    torch.testing.assert_close(model(images(2, 32)), expected)
    batch = {"labels": torch.tensor([0, 1]), "teacher_labels": torch.tensor([2, 3])}
    losses = model(images(2, 32), batch, mode="loss")
    taught = nn.functional.cross_entropy(model.head.fc_dist(feats[1]), batch["teacher_labels"])
    torch.testing.assert_close(losses["loss_dist"], 0.5 * taught)
    with pytest.raises(ValueError, match=r"distilled=True"):
        classifier(dict(type="PlainMaps"), dict(type="DistilledHead", num_classes=5))(images(2, 32))


def test_auxiliary_losses_of_reducers_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(SPARSE_SWIN)
    reducer = model.backbone.plan.steps[0].reduce
    monkeypatch.setattr(reducer, "loss", lambda record: {"budget": record.size.sum() * 0 + 3.0})
    losses = model(images(), {"labels": torch.zeros(4, dtype=torch.long)}, mode="loss")
    assert losses["loss_step0_budget"] == 3.0
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses["loss"] + 3.0)


def test_wrong_sizes_are_refused_when_built() -> None:
    with pytest.raises(
        ValueError, match=r"in_channels=7, but the features have 6 channels.*in_channels=6"
    ):
        classifier(dict(type="PlainMaps"), dict(type="LinearHead", num_classes=5, in_channels=7))
    with pytest.raises(ValueError, match=r"forward_tokens"):
        classifier(
            dict(type="PlainMaps"),
            attention_penalty=dict(type="AttentionPenalty", kind="l2", weight=1.0),
        )
    wrong = dict(type="AttentionPenalty", kind="l2", weight=1.0, stage=4)
    with pytest.raises(ValueError, match=r"stages 0..3"):
        classifier(SPARSE_SWIN, attention_penalty=wrong)
    mixed = dict(type="ImagePreprocessor", mixup=dict(num_classes=4))
    with pytest.raises(ValueError, match=r"num_classes=4, but the head has 5"):
        classifier(dict(type="PlainMaps"), data_preprocessor=mixed)
    with pytest.raises(
        ValueError, match=r"10 classes.*num_classes=5; set model.head.num_classes=10"
    ):
        check_labels(classifier(dict(type="PlainMaps")), DigitsDataset("val", 16), "val_dataloader")


def penalised(kind: str, weight: float = 1.0):
    torch.manual_seed(0)
    return classifier(
        SPARSE_SWIN,
        attention_penalty=dict(type="AttentionPenalty", kind=kind, weight=weight, stage=3),
    )


def attention_grads(model, kind: str) -> tuple[Tensor, list[Tensor], list[nn.Parameter]]:
    losses = model(images(), {"labels": torch.zeros(4, dtype=torch.long)}, mode="loss")
    value = losses[f"loss_attn_{kind}"]
    params = [b.attn.qkv.weight for b in model.backbone.stages[3].blocks.values()]
    return value, list(torch.autograd.grad(value, params)), params


def test_l1_of_a_softmax_is_a_constant_without_gradient() -> None:
    value, grads, _ = attention_grads(penalised("l1"), "l1")
    batch, heads, tokens, blocks = 4, 2, 4, 2
    torch.testing.assert_close(value, torch.tensor(float(batch * heads * tokens * blocks)))
    _, reference, _ = attention_grads(penalised("l2"), "l2")
    assert max(g.abs().max() for g in grads) < 1e-4 * max(g.abs().max() for g in reference)


@pytest.mark.parametrize(("kind", "direction"), [("l2", 1), ("entropy", -1)])
def test_l2_spreads_attention_and_entropy_sharpens_it(kind: str, direction: int) -> None:
    model = penalised(kind)
    for block in model.backbone.stages[3].blocks.values():
        nn.init.normal_(block.attn.qkv.weight, std=0.3)

    def entropy() -> Tensor:
        with torch.no_grad():
            _, trace = model.extract(images(), frozenset({"attn"}))
        return penalty("entropy", [r.attn for r in trace.blocks if r.stage == 3])

    before = entropy()
    _, grads, params = attention_grads(model, kind)
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p -= 0.05 * g / g.norm()
    assert (entropy() - before) * direction > 1e-4


def test_published_sums_over_attention() -> None:
    if not GOLDENS.is_dir():
        pytest.skip(f"needs the parity tensors in {GOLDENS}")
    golden = load_file(GOLDENS / "sparseswin_cls.io.safetensors")
    maps = [golden["attn0"], golden["attn1"]]
    torch.testing.assert_close(penalty("l1", maps), golden["attn_l1"])
    torch.testing.assert_close(penalty("l2", maps), golden["attn_l2"])


def test_attention_is_collected_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for model in (classifier(SPARSE_SWIN), penalised("l2")):
        forward = model.backbone.forward_tokens
        monkeypatch.setattr(
            model.backbone,
            "forward_tokens",
            lambda img, valid=None, collect=frozenset(), forward=forward: (
                asked.append(collect) or forward(img, valid, collect)
            ),
        )
        model(images(), {"labels": torch.zeros(4, dtype=torch.long)}, mode="loss")
    assert asked[0] == frozenset()
    assert asked[1]


def test_penalty_without_its_stage_says_so() -> None:
    trace = Trace(blocks=(BlockRecord(1, 0, torch.full((1, 1, 2, 2), 0.5)),))
    with pytest.raises(ValueError, match=r"no attention of stage 3; stages with attention: \[1\]"):
        AttentionPenalty("l2", 1.0, stage=3)(trace)
    with pytest.raises(ValueError, match=r"legal: 'l1'"):
        AttentionPenalty("l3", 1.0)  # type: ignore[arg-type]


def test_cross_entropy_equals_torch() -> None:
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(0.1)(logits, labels), expected)
    soft = torch.rand(6, 5).softmax(1)
    torch.testing.assert_close(
        CrossEntropy(0.1)(logits, soft), nn.functional.cross_entropy(logits, soft)
    )
    with pytest.raises(ValueError, match=r"label_smoothing=1.5"):
        CrossEntropy(1.5)


def test_accuracy_counts_ranks() -> None:
    metric = Accuracy(topk=(1, 2, 5))
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
    labels = torch.tensor([0, 1, 0, 1])
    metric.process(None, [{"scores": s, "label": k} for s, k in zip(scores, labels, strict=True)])
    result = metric.evaluate(4)
    assert result == {"accuracy/top1": 25.0, "accuracy/top2": 75.0}


def test_norms_biases_and_tables_do_not_decay() -> None:
    from mmengine.config import Config

    root = Path(__file__).parents[1]
    wrapper = Config.fromfile(root / "configs/_base_/tasks/digits.py").optim_wrapper
    vit = dict(type="VisionTransformer", arch=dict(embed_dim=24, depth=1, num_heads=2), img_size=32)
    for backbone in (SPARSE_SWIN, vit):
        model = classifier(backbone)
        optimizer = build_optim_wrapper(model, wrapper).optimizer
        decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
        for name, p in model.named_parameters():
            exempt = p.ndim == 1 or "bias" in name or name.endswith(("pos_embed", "_token"))
            assert (id(p) in decayed) != exempt, name


def test_autocast_where_asked() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        wrapper = AutocastOptimWrapper(optimizer, precision)  # type: ignore[arg-type]
        wrapper.device = "cpu"
        with wrapper.optim_context(model):
            assert model(torch.ones(1, 4)).dtype == dtype
    assert AutocastOptimWrapper(optimizer).precision in ("bf16", "fp32")
    with pytest.raises(ValueError, match=r"precision='fp8'"):
        AutocastOptimWrapper(optimizer, "fp8")  # type: ignore[arg-type]


def test_a_training_step_with_mixup_and_a_penalty() -> None:
    model = classifier(
        SPARSE_SWIN,
        attention_penalty=dict(type="AttentionPenalty", kind="entropy", weight=0.1, stage=3),
        data_preprocessor=dict(
            type="ImagePreprocessor",
            mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
            random_erase=dict(probability=0.5, mode="pixel"),
        ),
    )
    wrapper = AutocastOptimWrapper(torch.optim.SGD(model.parameters(), 0.1), "bf16")
    before = model.head.fc.weight.clone()
    raw = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    log = model.train_step({"inputs": raw, "labels": torch.arange(4)}, wrapper)
    assert set(log) == {"loss", "loss_attn_entropy", "acc"} | ({"loss"} & set(log))
    assert torch.isfinite(log["loss"])
    assert not torch.equal(before, model.head.fc.weight)


class Hostile:
    def __reduce__(self):
        return (open, ("hostile-file-ran", "w"))


class HostileGetattr:
    def __reduce__(self):
        return (getattr, (HistoryBuffer, "__init__"))


def test_hostile_and_damaged_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "meta": Hostile()}, "hostile.pth")
    torch.save({"state_dict": {}, "meta": HostileGetattr()}, "getattr.pth")
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({"state_dict": {"a": torch.zeros(9)}, "message_hub": [history]}, "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:-400])
    for name in ("hostile.pth", "getattr.pth", "cut.pth"):
        with pytest.raises(ValueError, match=r"is refused|is damaged"):
            read_checkpoint(name)
    assert not Path("hostile-file-ran").exists()
    whole = read_checkpoint("whole.pth")
    assert whole["state_dict"]["a"].shape == (9,)
    assert whole["message_hub"][0].mean() == 1.5
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at"):
        read_checkpoint("none.pth")


def test_a_trunk_starts_from_released_weights(tmp_path: Path) -> None:
    torchvision_swin = TorchvisionSwin([4, 4], 16, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7])
    torch.save(torchvision_swin.state_dict(), tmp_path / "swin.pth")
    trunk = dict(embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4))
    init = dict(
        type="tokensparse.ReleasedInit",
        kind="torchvision-swin",
        weights=str(tmp_path / "swin.pth"),
        prefixes=("stem.", "stages.2."),
    )
    backbone = classifier({**SPARSE_SWIN, "trunk": trunk, "init_cfg": init}).backbone
    released = torchvision_swin.features
    assert torch.equal(backbone.stem.proj.weight, released[0][0].weight)
    assert torch.equal(backbone.stages[2].blocks["1"].mlp.fc1.weight, released[5][1].mlp[0].weight)
    ours, theirs = backbone.stages[1].blocks["1"].mlp.fc1, released[3][1].mlp[0]
    assert not torch.equal(ours.weight, theirs.weight)
    init["weights"] = "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=r"neither a file.*init_cfg=None"):
        classifier({**SPARSE_SWIN, "trunk": trunk, "init_cfg": init})


def test_released_weights_fill_what_fits() -> None:
    source, target = classifier(SPARSE_SWIN).backbone, classifier(SPARSE_SWIN).backbone
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("stages.3")}
    left = copy_fitting(state, target, 0.2, "a file")
    assert all(k.startswith("stages.3") for k in left)
    assert torch.equal(
        target.stages[0].blocks["0"].mlp.fc1.weight, source.stages[0].blocks["0"].mlp.fc1.weight
    )
    with pytest.raises(ValueError, match=r"only 0%"):
        copy_fitting({}, target, 0.2, "a file")
