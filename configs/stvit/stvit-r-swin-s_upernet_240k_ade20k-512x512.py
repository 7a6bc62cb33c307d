"""STViT-R-Swin-S under UPerNet on ADE20K, 512 x 512, 240,000 iterations.

Paper: STViT (arXiv:2303.08685), Sec. 3.4 and 4.3. The authors released no segmentation code: optimiser
    and augmentation are those of mmseg's Swin, drop path 0.3, batch 16.
Command: python tools/train.py configs/stvit/stvit-r-swin-s_upernet_240k_ade20k-512x512.py
    Multi-scale test (0.5-1.75 with flips, as published): the config's tta_model and tta_pipeline,
    python tools/test.py CONFIG CHECKPOINT --tta.
Cost: backbone 48.9 M parameters, 30.8 GMACs at 512 x 512 (dense baseline: 45.9); hours not measured.
Published: 48.3 mIoU, multi-scale; dense Swin-S 49.3.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_upernet_240k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.STViTSwin",
        arch="small",
        img_size=512,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/stvit-r-swin-s_in1k.pth"),
    ),
)
