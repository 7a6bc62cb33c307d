"""A small DeiT of 196 tokens on Fashion-MNIST, dense.

Paper: DeiT (arXiv:2012.12877), Sec. 3; without class token, as STViT-DeiT.
Recipe: that of all five configs here: AdamW 2e-3 (position table 2e-2), batch 32, 2 epochs, cosine
    after 0.2 of warm-up, slight crops and flips, seed 0. The rates were chosen on the dense model,
    in runs of 400 steps.
Command: python tools/train.py configs/fashion_mnist/deit.py
Cost: 2 epochs of 60,000 images at 28 px, 0.087 GMACs an image and forward pass; 196 tokens.
    CPU time: docs/fashion_mnist.md.
Published: none (no paper trains on these data).
Measured: by tools/compare_fashion_mnist.py; figures in docs/fashion_mnist.md.
"""

_base_ = [
    "../_base_/backbones/deit-fashion_mnist.py",
    "../_base_/tasks/fashion_mnist.py",
    "../_base_/runtime.py",
]
