"""A training step of SparseSwin-T at 64 px: ours against the plain way, in turn in one process.

The plain way is torchvision's Swin stages 1-3 and the SparTa block of the paper written in eager
PyTorch, in the same precision with the same optimizer. Prints a table, writes JSON with ``--out``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer as TorchvisionSwin

import tokensparse  # noqa: F401  registers everything
from tokensparse.analysis import compare, device_name, peak_bytes
from tokensparse.registry import MODELS


class PlainBlock(nn.Module):
    """Transformer block of the released SparseSwin: a second GELU ends the feed-forward."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, e) -> (B, t, e)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.proj((attn @ v).transpose(1, 2).reshape(batch, tokens, dim))
        return x + F.gelu(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class PlainSparseSwin(nn.Module):
    """torchvision's Swin-T up to stage 3, converter, two blocks, head."""

    def __init__(self, places: int, num_tokens: int, dim: int, num_classes: int) -> None:
        super().__init__()
        swin = TorchvisionSwin(
            patch_size=[4, 4],
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=[7, 7],
            stochastic_depth_prob=0.0,
        )
        self.trunk = swin.features[:6]
        self.conv = nn.Conv2d(384, dim, 3, padding=1)
        self.spatial = nn.Linear(places, num_tokens)
        self.blocks = nn.Sequential(PlainBlock(dim, 16), PlainBlock(dim, 16))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        """(B, 3, h, w) -> logits."""
        x = self.conv(self.trunk(img).permute(0, 3, 1, 2)).flatten(2)
        x = self.blocks(self.spatial(x).transpose(1, 2))
        return self.fc(self.norm(x).mean(1))


def ours(size: int, num_tokens: int) -> nn.Module:
    """Our SparseSwin-T as the main config builds it."""
    backbone = dict(
        type="SparseSwin", arch=dict(num_tokens=num_tokens, token_dim=512), img_size=size
    )
    head = dict(type="LinearHead", num_classes=10)
    model: nn.Module = MODELS.build(dict(type="ImageClassifier", backbone=backbone, head=head))
    return model


def our_name(name: str) -> str:
    """Our name of one of the plain model's parameters."""
    first, _, rest = name.partition(".")
    if first in ("conv", "spatial"):
        return f"backbone.plan.steps.0.reduce.{name}"
    if first == "fc":
        return f"head.{name}"
    if first == "norm":
        return f"backbone.{name}"
    if first == "blocks":
        block, part, leaf = rest.split(".")
        inner = {"qkv": "attn.", "proj": "attn.", "fc1": "mlp.", "fc2": "mlp."}.get(part, "")
        return f"backbone.stages.3.blocks.{block}.{inner}{part}.{leaf}"
    index, _, rest = rest.partition(".")
    stage = int(index) // 2
    if index == "0":
        return "backbone.stem." + rest.replace("0.", "proj.", 1).replace("2.", "norm.", 1)
    if int(index) % 2 == 0:
        return f"backbone.stages.{stage}.transition.{rest}"
    rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
    return f"backbone.stages.{stage}.blocks.{rest}"


def share_weights(ours: nn.Module, plain: nn.Module, size: int) -> None:
    """Give ours the plain model's weights, and refuse to time two different functions.

    Compared in float64. Gradients far below the largest one count as zero: that of ``spatial.bias``
    vanishes, as layer norms remove what is constant over the channels.

    Raises:
        RuntimeError: logits or gradients of the two differ.
    """
    ours.load_state_dict({our_name(k): v for k, v in plain.named_parameters()})
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    logits = {}
    for name, model in (("ours", ours), ("plain", plain)):
        logits[name] = model.double().train()(images)
        logits[name].square().sum().backward()
    mine, theirs = dict(ours.named_parameters()), dict(plain.named_parameters())
    top = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    pairs = [("logits", logits["ours"], logits["plain"])]
    pairs += [(name, mine[our_name(name)].grad, p.grad) for name, p in theirs.items()]
    for name, found, wanted in pairs:
        scale = max(float(wanted.abs().max()), 1e-4 * top)
        worst = float((found - wanted).abs().max()) / scale
        if not worst < 1e-6:
            raise RuntimeError(f"{name} of the two models differ by {worst:.1e} of the largest")
    for model in (ours, plain):
        model.float().zero_grad()


def step_of(model: nn.Module, batch: int, size: int, bf16: bool, device: str) -> Callable[[], None]:
    """One training step: forward, loss, backward, AdamW."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=9, help="tokens of the converter")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    rows = []
    places = (-(-args.size // 16)) ** 2
    for bf16 in (False, True):
        torch.manual_seed(0)
        models = {
            "ours": ours(args.size, args.tokens),
            "plain": PlainSparseSwin(places, args.tokens, 512, 10),
        }
        share_weights(models["ours"], models["plain"], args.size)
        steps = {
            name: step_of(model, args.batch, args.size, bf16, args.device)
            for name, model in models.items()
        }
        times = compare(steps, args.rounds)
        memory = {name: peak_bytes(step, args.device) for name, step in steps.items()}
        row = dict(
            precision="bf16 autocast" if bf16 else "fp32",
            ours_ms=1e3 * times["ours"].median,
            plain_ms=1e3 * times["plain"].median,
            speedup=times["plain"].ratio(times["ours"]),
            speedup_cpu_time=times["plain"].cpu_ratio(times["ours"]),
            ours_peak_mib=memory["ours"] / 2**20,
            plain_peak_mib=memory["plain"] / 2**20,
            memory_ratio=memory["ours"] / memory["plain"],
        )
        rows.append(row)
        print(
            "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v:13}" for k, v in row.items())
        )
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("device", "out")}
        head = dict(
            device=device_name(args.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        )
        text = json.dumps({**head, **settings, "rows": rows}, indent=1)
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
