"""Swin-S under UPerNet on ADE20K, 512 x 512, 240,000 iterations: what STViT-R is held against.

Paper: Swin Transformer (arXiv:2103.14030), Sec. 4.3; the baseline of STViT (arXiv:2303.08685). mmseg's
    recipe for Swin, drop path 0.3, batch 16: the same as for STViT-R-Swin-S.
Command: python tools/train.py configs/dense/swin-s_upernet_240k_ade20k-512x512.py
    Multi-scale test (0.5-1.75 with flips, as published): the config's tta_model and tta_pipeline,
    python tools/test.py CONFIG CHECKPOINT --tta.
Cost: backbone 48.8 M parameters, 45.9 GMACs at 512 x 512; hours not measured. The official
    ImageNet-1K weights are fetched (checkpoint of init_cfg).
Published: 49.3 mIoU, multi-scale.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_upernet_240k.py"

weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SwinTransformer",
        arch="small",
        window_shift="always",
        img_size=512,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint=weights),
    ),
)
