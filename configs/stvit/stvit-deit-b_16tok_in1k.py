"""STViT-DeiT-B with 16 semantic tokens on ImageNet-1K, 224 px.

Paper: STViT (arXiv:2303.08685), Sec. 3.2, 3.3, 4.1 and Table 1.
Recipe: the paper's: DeiT's augmentation, loss and drop path, AdamW, weight decay 0.05, 300
    epochs, cosine, 20 of warm-up, no distillation. Learning rate (1e-3 at batch 1,024) and
    repeated augmentation are DeiT's: the paper names neither. Batch 1,024 = 8 x 128.
Command: torchrun --nproc-per-node 8 tools/train.py
    configs/stvit/stvit-deit-b_16tok_in1k.py --launcher pytorch
Cost: 300 epochs of 1.28 M images, 7.26 GMACs an image and forward pass; hours not measured.
Published: 81.8 % top-1.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/stvit-deit-b.py",
    "../_base_/tasks/in1k_deit_warmup-20.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(num_tokens=16))
