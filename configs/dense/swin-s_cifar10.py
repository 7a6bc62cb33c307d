"""Swin-S on CIFAR-10, 224 px, fine-tuned: the dense model that SparseSwin is held against.

Paper: Swin Transformer (arXiv:2103.14030), Sec. 3; compared in SparseSwin (arXiv:2309.05224),
    Sec. 4.
Recipe: ours, that of configs/sparseswin/ (AdamW 5e-5, weight decay 0.01, no schedule, 100 epochs,
    batch 128; no decay on norms, biases and position tables), drop path 0.3 (Swin-S's own), from
    ImageNet-1K weights of torchvision. SparseSwin's paper does not say how its peers were
    trained.
Command: python tools/train.py configs/dense/swin-s_cifar10.py
Cost: 100 epochs of 50,000 images at 224 px, 8.74 GMACs an image and forward pass; hours not
    measured.
Published: none that is known to us.
Measured: not run
"""

_base_ = ["../_base_/tasks/cifar10_finetune.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.SwinTransformer",
        arch="small",
        drop_path_rate=0.3,
        init_cfg=dict(
            type="tokensparse.ReleasedInit",
            kind="torchvision-swin",
            weights="Swin_S_Weights.IMAGENET1K_V1",
        ),
    ),
    head=dict(type="tokensparse.LinearHead", num_classes=10),
)
