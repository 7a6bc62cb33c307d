"""SparseSwin-T on ImageNet-100, 224 px, 49 tokens.

Paper: Less is More: SparseSwin (arXiv:2309.05224; Neurocomputing 580, 127433), Sec. 3 and 4.
Recipe: that of the released CIFAR scripts (AdamW 5e-5, weight decay 0.01, no schedule, 100 epochs),
    not the authors' own for ImageNet-100 (Adam 1e-4, e = 256, batch 22, stages 1-2 frozen); batch
    128; no decay on norms, biases and position tables; trunk from ImageNet-1K weights of Swin-T.
Command: python tools/train.py configs/sparseswin/sparseswin-t_in100.py
Cost: 100 epochs of 130,000 images at 224 px, 4.40 GMACs an image and forward pass; hours not
    measured.
Published: 86.64 % top-1 (seed page; no regularisation).
Measured: not run
"""

_base_ = [
    "../_base_/backbones/sparseswin-t.py",
    "../_base_/tasks/in100_finetune.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        init_cfg=dict(
            type="tokensparse.ReleasedInit",
            kind="torchvision-swin",
            weights="Swin_T_Weights.IMAGENET1K_V1",
            prefixes=("stem.", "stages.0.", "stages.1.", "stages.2."),
        )
    ),
    head=dict(num_classes=100),
)
