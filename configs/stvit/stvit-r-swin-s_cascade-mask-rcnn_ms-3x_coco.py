"""STViT-R-Swin-S under Cascade Mask R-CNN on COCO, 3x, multi-scale.

Paper: STViT (arXiv:2303.08685), Sec. 3.4 and 4.2; the released recipe: AdamW 1e-4, weight decay 0.05
    (none on norms and bias tables), drop path 0.2, batch 16, 36 epochs, steps at 27 and 33.
    The released runs used mixed precision: add --amp. Padding is masked exactly here; released
    weights want backbone.released_pad_mask=True.
Command: python tools/train.py configs/stvit/stvit-r-swin-s_cascade-mask-rcnn_ms-3x_coco.py
    after `python tools/convert_checkpoint.py stvit-r-cls IN checkpoints/stvit-r-swin-s_in1k.pth`
Cost: backbone 48.9 M parameters, 128.2 GMACs at 800 x 1280 (dense baseline: 178.9); 36 epochs of 118,000
    images, hours not measured.
Published: box AP 51.8, mask AP 44.7 (COCO val2017); dense Swin-S 51.8 and 44.7.
Measured: not run
"""

_base_ = "../_base_/tasks/coco_cascade-mask-rcnn_ms-3x.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.STViTSwin",
        arch="small",
        img_size=(800, 1280),
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/stvit-r-swin-s_in1k.pth"),
    ),
)
