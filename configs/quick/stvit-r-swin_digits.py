"""A narrow STViT-R-Swin with one dumbbell unit, on the digits that come with scikit-learn: where the
    dense configs of this folder start from.

Paper: STViT (arXiv:2303.08685), Sec. 3.4; the sizes are our own.
Command: python tools/train.py configs/quick/stvit-r-swin_digits.py
Cost: 20 epochs of 1,437 images at 64 px, some minutes on 2 CPU cores.
Published: none (the paper does not train on these data).
Measured: 99.72 % top-1 (best, epoch 19; 99.44 % after epoch 20), seed 0, bf16, AMD EPYC with
    AVX512-BF16, torch 2.11.0; 6:14 minutes on one thread beside other jobs.
"""

_base_ = ["../_base_/tasks/digits.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.STViTSwin",
        spec="released-cls",
        arch=dict(embed_dim=32, depths=(2, 2, 6, 2), num_heads=(2, 4, 8, 16)),
        img_size=64,
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
    dict(type="CosineAnnealingLR", begin=2, end=20, eta_min_ratio=0.01, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20)
