"""A small DeiT on Fashion-MNIST, Top-K at the multiply-accumulates of STGM with 36 tokens.

Paper: baseline of EViT (arXiv:2202.07800), Sec. 4; without a class token, the mean attention received
    ranks the tokens.
Recipe: that of all five configs here: AdamW 2e-3 (position table 2e-2), batch 32, 2 epochs, cosine
    after 0.2 of warm-up, slight crops and flips, seed 0. The rates were chosen on the dense model,
    in runs of 400 steps.
Command: python tools/train.py configs/fashion_mnist/deit_topk-71.py
Cost: 2 epochs of 60,000 images at 28 px, 0.042 GMACs an image and forward pass; 71 tokens from layer 2.
    CPU time: docs/fashion_mnist.md.
Published: none (no paper trains on these data).
Measured: by tools/compare_fashion_mnist.py; figures in docs/fashion_mnist.md.
"""

_base_ = [
    "../_base_/backbones/deit-fashion_mnist.py",
    "../_base_/tasks/fashion_mnist.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(plan=[dict(span=(1, None), reduce=dict(type="TopK", keep=71))]))
