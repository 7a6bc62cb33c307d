"""A small STViT-DeiT on Fashion-MNIST, 36 semantic tokens.

Paper: STViT (arXiv:2303.08685), Sec. 3.2 and 3.3; STGM at the second third of the layers, as there.
Recipe: that of all five configs here: AdamW 2e-3 (position table 2e-2), batch 32, 2 epochs, cosine
    after 0.2 of warm-up, slight crops and flips, seed 0. The rates were chosen on the dense model,
    in runs of 400 steps.
Command: python tools/train.py configs/fashion_mnist/deit_stgm-36.py
Cost: 2 epochs of 60,000 images at 28 px, 0.042 GMACs an image and forward pass; 36 tokens from layer 3.
    CPU time: docs/fashion_mnist.md.
Published: none (no paper trains on these data).
Measured: by tools/compare_fashion_mnist.py; figures in docs/fashion_mnist.md.
"""

_base_ = [
    "../_base_/backbones/deit-fashion_mnist.py",
    "../_base_/tasks/fashion_mnist.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.STViTDeiT",
        arch=dict(embed_dim=64, depth=6, num_heads=2),
        num_tokens=36,
        base_layers=2,
        img_size=28,
        patch_size=2,
    )
)
