"""STViT-R-Swin-B under UPerNet on ADE20K, 512 x 512, 240,000 iterations.

Paper: STViT (arXiv:2303.08685), Sec. 3.4 and 4.3. The authors released no segmentation code: optimiser
    and augmentation are those of mmseg's Swin, drop path 0.3, batch 16.
Command: python tools/train.py configs/stvit/stvit-r-swin-b_upernet_240k_ade20k-512x512.py
    Multi-scale test (0.5-1.75 with flips, as published): the config's tta_model and tta_pipeline,
    python tools/test.py CONFIG CHECKPOINT --tta.
Cost: backbone 86.8 M parameters, 53.9 GMACs at 512 x 512 (dense baseline: 80.9); hours not measured.
Published: 48.9 mIoU, multi-scale; dense Swin-B 49.7.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_upernet_240k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.STViTSwin",
        arch="base",
        img_size=512,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/stvit-r-swin-b_in1k.pth"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
