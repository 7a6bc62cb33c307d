"""A narrow STViT-Swin with 9 semantic tokens a window, on the digits that come with scikit-learn.

Paper: STViT (arXiv:2303.08685), Sec. 3.2 and 3.3; the sizes are our own.
Command: python tools/train.py configs/stvit/stvit-swin_digits.py
Cost: 15 epochs of 1,437 images at 112 px, some minutes on 2 CPU cores.
Published: none (the paper does not train on these data).
Measured: 99.17 % top-1 (best, epoch 13; 98.89 % after epoch 15), seed 0, bf16, AMD EPYC with
    AVX512-BF16, torch 2.11.0; 7:15 minutes on one thread beside other jobs.
"""

_base_ = ["../_base_/tasks/digits.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.STViTSwin",
        arch=dict(embed_dim=48, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16)),
        num_tokens=9,
        img_size=112,
    ),
    head=dict(
        type="tokensparse.LinearHead",
        num_classes=10,
        loss=dict(type="tokensparse.CrossEntropy", label_smoothing=0.1),
    ),
)
train_dataloader = dict(dataset=dict(img_size=112))
val_dataloader = dict(dataset=dict(img_size=112))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=15, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=15)
