"""DeiT-S on ImageNet-1K with a moving average of weights, as the published code trains it.

Paper: Training data-efficient image transformers (arXiv:2012.12877), Sec. 6 and Table 8.
Recipe: that of deit-s_in1k.py, and an average with decay 0.99996 a step; epochs are evaluated with
    the averaged weights, and checkpoints hold both.
Command: torchrun --nproc-per-node 8 tools/train.py configs/dense/deit-s_ema_in1k.py
    --launcher pytorch
Cost: 300 epochs of 1.28 M images, 4.58 GMACs an image and forward pass; hours not measured.
Published: none by itself (79.8 % top-1 is the plain model's).
Measured: not run
"""

_base_ = "deit-s_in1k.py"

custom_hooks = [dict(type="EMAHook", momentum=4e-5)]
