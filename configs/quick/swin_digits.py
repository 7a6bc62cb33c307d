"""A narrow dense Swin, on the digits that come with scikit-learn: where the
    dense configs of this folder start from.

Paper: Swin Transformer (arXiv:2103.14030); the sizes are our own.
Command: python tools/train.py configs/quick/swin_digits.py
Cost: 20 epochs of 1,437 images at 64 px, some minutes on 2 CPU cores.
Published: none (the paper does not train on these data).
Measured: 98.89 % top-1 (best, epoch 18; 98.33 % after epoch 20), seed 0, bf16, AMD EPYC with
    AVX512-BF16, torch 2.11.0; 5:50 minutes on one thread beside other jobs.
"""

_base_ = ["../_base_/tasks/digits.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.SwinTransformer",
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
