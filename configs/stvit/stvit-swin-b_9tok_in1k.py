"""STViT-Swin-B with 9 semantic tokens a window on ImageNet-1K, 224 px.

Paper: STViT (arXiv:2303.08685), Sec. 3.2, 3.3, 4.1 and Table 2.
Recipe: the paper's: Swin's augmentation, loss and drop path, AdamW, weight decay 0.05, 300
    epochs, cosine, 20 of warm-up, no distillation. Learning rate (1e-3 at batch 1,024) and
    clipping at 5 are Swin's: the paper names neither. Batch 1,024 = 8 x 128.
Command: torchrun --nproc-per-node 8 tools/train.py
    configs/stvit/stvit-swin-b_9tok_in1k.py --launcher pytorch
Cost: 300 epochs of 1.28 M images, 11.37 GMACs an image and forward pass; hours not measured.
Published: 83.4 % top-1.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/stvit-swin-b.py",
    "../_base_/tasks/in1k_swin.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(num_tokens=9))
