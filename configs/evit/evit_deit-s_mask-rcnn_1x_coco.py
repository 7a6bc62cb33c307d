"""EViT on DeiT-S under Mask R-CNN on COCO, 1x: a classification method in a detector.

Paper: EViT (arXiv:2202.07800), Sec. 3: 70 % of the tokens are kept in blocks 4, 7 and 10. It has no
    detector: the map comes back by the plan's restore, and its levels by ViTDet's simple feature
    pyramid (arXiv:2203.16527, Sec. 3). A proof that methods compose, no recipe of either paper.
Command: python tools/train.py configs/evit/evit_deit-s_mask-rcnn_1x_coco.py
    DeiT-S (deit_small_patch16_224) is read from checkpoints/.
Cost: backbone 21.7 M parameters, 135.6 GMACs at 800 x 1280 (dense baseline: 233.7); hours not measured.
Published: none: the paper has classification alone.
Measured: not run
"""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

custom_imports = dict(imports=["tokensparse"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.VisionTransformer",
        arch="small",
        img_size=224,
        plan=[
            dict(span=(3, None), reduce=dict(type="EViT", keep=0.7)),
            dict(span=(6, None), reduce=dict(type="EViT", keep=0.7)),
            dict(span=(9, None), reduce=dict(type="EViT", keep=0.7)),
        ],
        drop_path_rate=0.1,
        out_indices=(11,),
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/deit_small_patch16_224.pth"),
    ),
    neck=dict(_delete_=True, type="tokensparse.SimpleFeaturePyramid", in_channels=384),
)
