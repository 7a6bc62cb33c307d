"""Swin-S under Cascade Mask R-CNN on COCO, 3x, multi-scale: what STViT-R is held against.

Paper: Swin Transformer (arXiv:2103.14030), Sec. 4.2; the baseline of STViT (arXiv:2303.08685). AdamW
    1e-4, weight decay 0.05 (none on norms and bias tables), drop path 0.2, batch 16, 36 epochs,
    steps at 27 and 33: the same as for STViT-R-Swin-S. With mixed precision: add --amp.
Command: python tools/train.py configs/dense/swin-s_cascade-mask-rcnn_ms-3x_coco.py
Cost: backbone 48.8 M parameters, 178.9 GMACs at 800 x 1280; 36 epochs of 118,000 images, hours not
    measured. The official ImageNet-1K weights are fetched (checkpoint of init_cfg).
Published: box AP 51.8, mask AP 44.7 (COCO val2017).
Measured: not run
"""

_base_ = "../_base_/tasks/coco_cascade-mask-rcnn_ms-3x.py"

weights = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth"
model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SwinTransformer",
        arch="small",
        window_shift="always",
        img_size=(800, 1280),
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint=weights),
    ),
)
