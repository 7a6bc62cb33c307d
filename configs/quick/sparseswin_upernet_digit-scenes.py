"""A narrow SparseSwin, dense form as released under UPerNet on DigitScenes, beside the dense Swin of this folder.

Paper: SparseSwin (arXiv:2309.05224); UPerNet (arXiv:1807.10221).
Head: mmseg's UPerNet and its auxiliary FCN head narrowed to 64 channels, batch norm, background
    weighted 0.2; trained on crops of 128 px of scenes resized by 0.8 to 1.25, tested on whole ones.
Start: the checkpoint of python tools/train.py configs/quick/sparseswin_digits.py
Command: python tools/train.py configs/quick/sparseswin_upernet_digit-scenes.py
Cost: 30 epochs of 2,000 crops, 4 a batch; 40 minutes on two threads of an AMD EPYC, 50 on one (measured on
    the first 300 iterations of dense Swin on idle cores).
Published: none (data of our own).
Measured: mIoU 61.45 (seed 0, bf16 autocast, AMD EPYC, torch 2.11.0; one thread beside other jobs).
"""

_base_ = "../_base_/tasks/digit-scenes_semantic.py"

model = dict(
    backbone=dict(
        type="tokensparse.SparseSwin",
        arch=dict(num_tokens=49, token_dim=256),
        trunk=dict(embed_dim=32, depths=(2, 2, 6), num_heads=(2, 4, 8)),
        img_size=192,
        init_cfg=dict(type="Pretrained", checkpoint="work_dirs/sparseswin_digits/epoch_20.pth"),
    ),
)
