"""DeiT-S on CIFAR-100, 224 px, fine-tuned: the dense model that SparseSwin is held against.

Paper: Training data-efficient image transformers (arXiv:2012.12877), Table 1; compared in
    SparseSwin (arXiv:2309.05224), Sec. 4.
Recipe: ours, that of configs/sparseswin/ (AdamW 5e-5, weight decay 0.01, no schedule, 100 epochs,
    batch 128; no decay on norms, biases and position tables), drop path 0.1 (DeiT's own), from
    ImageNet-1K weights of the authors. SparseSwin's paper does not say how its peers were
    trained.
Command: python tools/train.py configs/dense/deit-s_cifar100.py
Cost: 100 epochs of 50,000 images at 224 px, 4.60 GMACs an image and forward pass; hours not
    measured.
Published: none that is known to us.
Measured: not run
"""

_base_ = ["../_base_/tasks/cifar100_finetune.py", "../_base_/runtime.py"]

model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.VisionTransformer",
        arch="small",
        drop_path_rate=0.1,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
        ),
    ),
    head=dict(type="tokensparse.LinearHead", num_classes=100),
)
