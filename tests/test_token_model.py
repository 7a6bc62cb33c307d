"""TokenModel itself: valid sizes, losses, threads, copies, checkpoints, wrong use."""

import copy
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from small import SWIN, small_vit
from torch import Tensor, nn
from wrapped import SIZES, WITH_LOSS, Summing, backbone, batch, least, samples

import tokensparse
from tokensparse import TokenModel
from tokensparse.registry import MODELS


def test_maps_in_a_batch_are_those_of_the_image_alone_and_zero_outside() -> None:
    """Not the content alone, the amount of padding changes nothing (masked, shifted always)."""
    model = least()
    maps: list[Tensor] = []
    model.backbone.register_forward_hook(lambda m, args, out: maps.extend(out))
    x = batch(noise=5.0)
    model(x, samples())
    model(x[1:, :, :90, :101], samples(SIZES[1:]))
    for together, alone in zip(maps[:4], maps[4:], strict=True):
        h, w = alone.shape[-2:]
        torch.testing.assert_close(together[1:, :, :h, :w], alone, atol=2e-5, rtol=1e-4)
        assert together[1, :, h:].eq(0).all() and together[1, :, :, w:].eq(0).all()
        assert together[0].ne(0).any()


class ReadingTheImage(Summing):
    """A model with a second look at the image, past the backbone."""

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        return super().forward(inputs) + inputs.mean((1, 2, 3))


def test_content_of_padding_does_not_pass_beside_the_backbone() -> None:
    model = TokenModel(dict(type=ReadingTheImage, backbone=backbone())).eval()
    clean, noisy = (model(batch(noise=n), samples()) for n in (0.0, 5.0))
    assert clean.equal(noisy)


def test_maps_of_a_vit_are_zero_outside() -> None:
    vit = small_vit(out_indices=(2, 4), plan=[dict(span=(1, 3), reduce=dict(type="ToMe", r=9))])
    for out in vit.eval()(batch(noise=5.0), torch.tensor(SIZES)):
        assert out[1, :, 12:].eq(0).all() and out[1, :, :, 13:].eq(0).all()
        assert out[1, :, :12, :13].ne(0).all() and out[0].ne(0).all()


def test_auxiliary_losses_are_added_and_trained() -> None:
    model = least(plan=WITH_LOSS).train()
    losses = model(batch(), samples(), mode="loss")
    assert set(losses) == {"loss_own", "loss_step0_size"}
    _, trace = model.backbone.forward_tokens(batch(), torch.tensor(SIZES))
    expected = (trace.steps[0].size - 3.0).square().mean()
    torch.testing.assert_close(losses["loss_step0_size"], expected, check_stride=False)
    model.parse_losses(losses)[0].backward()
    assert model.backbone.plan.steps[0].reduce.target.grad.ne(0)
    assert isinstance(model(batch(), samples(), mode="tensor"), Tensor)


def test_several_passes_give_the_mean_of_their_losses() -> None:
    losses = []
    for passes in (1, 3):
        torch.manual_seed(0)
        inner = dict(type=Summing, backbone=backbone(plan=WITH_LOSS), passes=passes)
        losses.append(TokenModel(inner).eval()(batch(), samples(), mode="loss"))
    torch.testing.assert_close(losses[0]["loss_step0_size"], losses[1]["loss_step0_size"])


def test_losses_without_exact_padding() -> None:
    """Settings of released weights, which attend padding, keep their plain behaviour."""
    inner = dict(type=Summing, backbone=backbone(plan=WITH_LOSS, window_padding="official"))
    model = TokenModel(inner, exact_padding=False).eval()
    x = batch(noise=5.0)
    assert model(x, samples()).equal(model.model(x))
    assert "loss_step0_size" in model(batch(), samples(), mode="loss")


def test_around_the_classifier_of_this_package() -> None:
    torch.manual_seed(0)
    settings = dict(
        type="tokensparse.ImageClassifier",
        backbone=backbone(out_indices=None, plan=WITH_LOSS),
        head=dict(type="tokensparse.LinearHead", num_classes=3),
    )
    model = TokenModel(settings).eval()
    clean, noisy = (model(batch(noise=n), samples()) for n in (0.0, 5.0))
    assert clean.equal(noisy) and not clean.equal(model.model(batch(noise=5.0)))
    losses = model(batch(), dict(labels=torch.tensor([0, 1])), mode="loss")
    assert sorted(losses) == ["acc", "loss", "loss_step0_size"]


def meet_inside(models: list[TokenModel]) -> None:
    """Nobody comes to a backbone before both have set their values."""
    barrier = threading.Barrier(2, timeout=20)

    def wait(*_: Any) -> None:
        barrier.wait()

    for model in {id(m): m for m in models}.values():
        model.model.register_forward_pre_hook(wait)


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_threads_do_not_meet(shared: bool) -> None:
    models = [least(), least()]
    models = [models[0]] * 2 if shared else models
    sizes = [SIZES, ((64, 160), (128, 80))]
    x = batch([(128, 160)] * 2)
    with torch.no_grad():
        alone = [m(x, samples(s)) for m, s in zip(models, sizes, strict=True)]
        assert not alone[0].equal(alone[1])
        meet_inside(models)
        results: dict[int, Tensor] = {}

        def run(i: int) -> None:
            with torch.no_grad():
                results[i] = models[i](x, samples(sizes[i]))

        threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in (0, 1):
        torch.testing.assert_close(results[i], alone[i])


def test_a_model_called_inside_another_keeps_its_own_value() -> None:
    outer, teacher = least(), least()
    x, other = batch(noise=5.0), batch([(64, 80)] * 2)
    expected = outer(x, samples()), teacher(other, samples([(64, 80)] * 2))
    got = []

    def ask(*_: Any) -> None:
        got.append(teacher(other, samples([(64, 80)] * 2)))

    outer.backbone.stem.register_forward_pre_hook(ask)
    assert outer(x, samples()).equal(expected[0]) and got[0].equal(expected[1])


def test_nothing_is_left_after_an_error() -> None:
    model = least()
    x = batch(noise=5.0)
    plain = model.model(x)
    handle = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x, samples())
    handle.remove()
    assert model.model(x).equal(plain)


def test_copies_and_pickles_work_alone() -> None:
    model = least()
    expected = model(batch(), samples())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    copies.append(ExponentialMovingAverage(model).module)
    del model
    for other in copies:
        torch.testing.assert_close(other(batch(noise=5.0), samples()), expected)


def test_checkpointing_compiling_and_ddp_change_nothing(tmp_path: Path) -> None:
    grads = []
    for with_cp in (False, True):
        model = least(plan=WITH_LOSS, with_cp=with_cp)
        sum(model(batch(), samples(), mode="loss").values()).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    expected = model(batch(), samples(), mode="loss")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(batch(noise=5.0), samples(), mode="loss"), expected)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = MMDistributedDataParallel(model)
        data = dict(inputs=batch(noise=5.0), data_samples=samples(), mode="loss")
        torch.testing.assert_close(parallel(**data), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_checkpoints_fit_with_and_without_the_wrapper(tmp_path: Path) -> None:
    model, other = least(), least()
    bare = model.model
    state = model.state_dict()
    assert list(state) == list(bare.state_dict()) == list(get_state_dict(model))
    assert state._metadata == bare.state_dict()._metadata
    with torch.no_grad():
        bare.head.running_mean.add_(1.0)
        bare.backbone.stem.proj.weight.mul_(2.0)
    for source in (model, bare):
        for target in (other, other.model):
            fresh = least().state_dict()
            other.load_state_dict(fresh)
            assert not target.state_dict()["head.running_mean"].any()
            target.load_state_dict(source.state_dict(), strict=True)
            assert other.backbone.stem.proj.weight.equal(bare.backbone.stem.proj.weight)
            other.load_state_dict(fresh)
            path = str(tmp_path / "model.pth")
            save_checkpoint(dict(state_dict=get_state_dict(source)), path)
            load_checkpoint(target, path, strict=True)
            assert other.head.running_mean.equal(bare.head.running_mean)
    versions: list[Any] = []
    other.head._register_load_state_dict_pre_hook(
        lambda state, prefix, local, *_: versions.append(local.get("version"))
    )
    for source in (model, bare):
        other.load_state_dict(source.state_dict())
    assert versions == [2, 2]
    wrapped = nn.ModuleDict(dict(module=other))
    assert all(not key.startswith("module.model.") for key in wrapped.state_dict())
    wrapped.load_state_dict(wrapped.state_dict(), strict=True)


def test_the_runner_s_preprocessor_goes_to_a_model_without_one() -> None:
    given = dict(type="ImgDataPreprocessor", mean=[1.0] * 3, std=[2.0] * 3)
    inner = dict(type=Summing, backbone=backbone())
    model = TokenModel(inner, data_preprocessor=given)
    assert model.data_preprocessor is model.model.data_preprocessor
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0] * 3
    own = dict(type="ImgDataPreprocessor", mean=[7.0] * 3, std=[2.0] * 3)
    model = TokenModel(dict(inner, data_preprocessor=own), data_preprocessor=given)
    assert model.data_preprocessor.mean.flatten().tolist() == [7.0] * 3
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = model.nothing_like_it


STVIT = dict(type="tokensparse.STViTSwin", arch=dict(SWIN, depths=(2, 2, 6, 2)), img_size=128)
STVIT.update(out_indices=(0, 1, 2, 3), window_padding="masked")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), r"has no backbone; TokenModel needs one of tokensparse"),
        (dict(backbone=backbone(window_padding="official")), r"remedy: window_padding='masked'"),
        (dict(backbone=dict(STVIT, pad_mask=False)), r"'attended'.*pad_mask=True"),
        (dict(backbone=dict(STVIT, released_pad_mask=True)), r"released_pad_mask=False"),
    ],
)
def test_models_that_cannot_be_exact_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenModel(dict(type=Summing, **settings))


def test_wrong_use_is_refused() -> None:
    model = least()
    with pytest.raises(ValueError, match=r"holds a TokenModel already"):
        TokenModel(model)
    two = nn.ModuleList([model.model, least().model])
    with pytest.raises(ValueError, match=r"2 backbones .*0\.backbone, 1\.backbone"):
        TokenModel(two)
    with pytest.raises(ValueError, match=r"data_samples\[1\].img_shape=\(90, 999\)"):
        model(batch(), samples([(128, 160), (90, 999)]))
    with pytest.raises(ValueError, match=r"3, but inputs hold 2"):
        model(batch(), samples([*SIZES, (90, 101)]))
    with pytest.raises(ValueError, match=r"one batch of images"):
        model([batch()[0]], samples())
    model.backbone.forward = None
    model.model.backbone = MODELS.build(backbone())
    with pytest.raises(RuntimeError, match=r"without calling its backbone"):
        model(batch(), samples())


def test_an_image_that_is_no_crop_is_refused_only_where_padded() -> None:
    model = least()
    inner = model.backbone

    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, img: Tensor) -> Any:
            return self.inner(img[..., ::2, ::2])

    model.model.backbone = Resized()
    assert model(batch([(128, 160)] * 2), samples([(128, 160)] * 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 80\) that is no crop"):
        model(batch(), samples())


def test_the_wrapper_is_found_by_name() -> None:
    assert tokensparse.TokenModel is TokenModel is MODELS.get("tokensparse.TokenModel")
