# COCO by Cascade Mask R-CNN as Swin and STViT-R train it: box heads of four convolutions and one
# fully connected layer with SyncBN, GIoU loss weight 10, 36 epochs, steps at 27 and 33, scales
# 480-800 with and without crops, batch 16, AdamW 1e-4.
_base_ = (
    "mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
)

custom_imports = dict(_delete_=True, imports=["tokensparse"])
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "relative_position_bias_table": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    ),
)
