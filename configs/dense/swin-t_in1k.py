"""Swin-T on ImageNet-1K, 224 px: the dense model that reduced ones are held against.

Paper: Swin Transformer (arXiv:2103.14030), Sec. 4.1 and App. A2.1.
Recipe: the published one: AdamW, 300 epochs, 20 of warm-up, RandAugment, mixup, cutmix, erasing,
    clipping at 5. Batch 1,024 = 8 x 128; the learning rate follows the batch linearly.
Command: torchrun --nproc-per-node 8 tools/train.py configs/dense/swin-t_in1k.py --launcher pytorch
Cost: 300 epochs of 1.28 M images, 4.5 GMACs an image and forward pass; hours not measured.
Published: 81.3 % top-1.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/swin-t.py",
    "../_base_/tasks/in1k_swin.py",
    "../_base_/runtime.py",
]
