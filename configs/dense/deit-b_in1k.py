"""DeiT-B on ImageNet-1K, 224 px: the dense model that reduced ones are held against.

Paper: Training data-efficient image transformers (arXiv:2012.12877), Sec. 6 and Table 9.
Recipe: the published one: AdamW, 300 epochs, 5 of warm-up, RandAugment, mixup, cutmix, erasing,
    repeated augmentation; without the moving average of weights. Batch 1,024 = 8 x 128; the
    learning rate follows the batch linearly.
Command: torchrun --nproc-per-node 8 tools/train.py configs/dense/deit-b_in1k.py --launcher pytorch
Cost: 300 epochs of 1.28 M images, 17.58 GMACs an image and forward pass; hours not measured.
Published: 81.8 % top-1.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/deit-b.py",
    "../_base_/tasks/in1k_deit.py",
    "../_base_/runtime.py",
]
