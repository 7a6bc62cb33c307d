"""SparseSwin-T under RetinaNet on COCO, 1x: a one-stage head, as the authors' EfficientDet is.

Paper: SparseSwin (arXiv:2309.05224), the released dense encoder. The authors released an encoder and an EfficientDet of their
    own (COCO val2017: AP 21.4, AP50 34.2); this head and recipe are not theirs.
    mmdet's recipe for Swin-T under RetinaNet, with AdamW 1e-4 in place of its SGD.
Command: python tools/train.py configs/sparseswin/sparseswin-t_retinanet_coco.py
Cost: backbone 28.9 M parameters, 85.3 GMACs at 800 x 1280; hours not measured.
Published: none with this head: an open question of the paper.
Measured: not run
"""

_base_ = "mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py"

custom_imports = dict(imports=["tokensparse"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SparseSwin",
        arch="tiny",
        img_size=(800, 1280),
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        init_cfg=dict(
            type="tokensparse.ReleasedInit",
            kind="torchvision-swin",
            weights="Swin_T_Weights.IMAGENET1K_V1",
            prefixes=("stem.", "stages.0.", "stages.1.", "stages.2."),
        ),
    ),
    neck=dict(in_channels=[192, 384, 512]),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05))
