"""ToMe in windows of Swin-T under Mask R-CNN on COCO, 1x: a ViT's method in a detector.

Paper: ToMe (arXiv:2210.09461), Sec. 3, in every 7 x 7 window: 24 of 49 tokens are merged in blocks 3 and
    5 of stage 3 and come back after the next block. It has no detector. A proof that methods
    compose, no recipe of the paper; mmdet's for Swin-T.
Command: python tools/train.py configs/tome/tome_swin-t_mask-rcnn_1x_coco.py
Cost: backbone 27.5 M parameters, 90.9 GMACs at 800 x 1280 (dense baseline: 91.9); hours not measured.
    The official ImageNet-1K weights are fetched (checkpoint of init_cfg).
Published: none: the paper has classification alone.
Measured: not run
"""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

custom_imports = dict(imports=["tokensparse"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SwinTransformer",
        arch="tiny",
        window_shift="always",
        img_size=(800, 1280),
        plan=[
            dict(
                stage=2,
                span=(block, block + 1),
                reduce=dict(type="Windowed", window=7, reducer=dict(type="ToMe", r=24)),
                recover=dict(type="Scatter"),
            )
            for block in (2, 4)
        ],
        drop_path_rate=0.2,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint={{_base_.pretrained}}),
    ),
)
