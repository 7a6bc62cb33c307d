"""A small STViT-DeiT with 16 semantic tokens, on the digits that come with scikit-learn.

Paper: STViT (arXiv:2303.08685), Sec. 3.2 and 3.3; the sizes are our own.
Command: python tools/train.py configs/stvit/stvit-deit_digits.py
Cost: 40 epochs of 1,437 images at 64 px, some minutes on 2 CPU cores.
Published: none (the paper does not train on these data).
Measured: 98.33 % top-1 (best, epoch 34; 98.33 % after epoch 40), seed 0, bf16, AMD EPYC with
    AVX512-BF16, torch 2.11.0; 5:48 minutes on one thread beside other jobs.
"""

_base_ = ["../_base_/tasks/digits.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.STViTDeiT",
        arch=dict(embed_dim=128, depth=8, num_heads=4),
        num_tokens=16,
        base_layers=2,
        img_size=64,
        patch_size=8,
    ),
    head=dict(
        type="tokensparse.LinearHead",
        num_classes=10,
        loss=dict(type="tokensparse.CrossEntropy", label_smoothing=0.1),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=40, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=40)
