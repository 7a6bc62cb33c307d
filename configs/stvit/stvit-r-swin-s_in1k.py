"""STViT-R-Swin-S on ImageNet-1K, 224 px: three dumbbell units in stage 3.

Paper: STViT (arXiv:2303.08685), Sec. 3.4; the released classification code.
Recipe: that of the released log: AdamW, learning rate 1e-3 at batch 1,024 (5e-4 for every 512),
    at least 1e-5, weight decay 0.05, 300 epochs, cosine, 20 of warm-up from 1e-6, clipping at
    5, drop path 0.3; Swin's augmentation. Batch 1,024 = 8 x 128.
Command: torchrun --nproc-per-node 8 tools/train.py
    configs/stvit/stvit-r-swin-s_in1k.py --launcher pytorch
Cost: 300 epochs of 1.28 M images, 5.62 GMACs an image and forward pass; hours not measured.
Published: 82.7 % top-1 (released weights).
Measured: not run
"""

_base_ = [
    "../_base_/backbones/stvit-swin-s.py",
    "../_base_/tasks/in1k_swin.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(spec="released-cls", drop_path_rate=0.3))
