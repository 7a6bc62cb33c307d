"""A narrow SparseSwin, dense form as released under Cascade Mask R-CNN on DigitScenes, beside the dense Swin of this folder.

Paper: SparseSwin (arXiv:2309.05224); Cascade R-CNN (arXiv:1906.09756).
Head: mmdet's Cascade Mask R-CNN narrowed to 64 channels, 256 in the box heads, 64 RoIs, 128
    proposals (256 at test, scores from 0.01), anchors of 4 cells; images of 192 px; no augmentation.
Start: the checkpoint of python tools/train.py configs/quick/sparseswin_digits.py
Command: python tools/train.py configs/quick/sparseswin_cascade-mask-rcnn_digit-scenes.py
Cost: 4 epochs of 2,000 scenes at 192 px, 4 a batch; about 35 CPU minutes.
Published: none (data of our own).
Measured: box AP 0.748, mask AP 0.680 (seed 0, fp32, AMD EPYC, torch 2.11.0; 43 minutes on one thread beside
    other jobs).
"""

_base_ = "../_base_/tasks/digit-scenes_instances.py"

model = dict(
    backbone=dict(
        type="tokensparse.SparseSwin",
        arch=dict(num_tokens=49, token_dim=256),
        trunk=dict(embed_dim=32, depths=(2, 2, 6), num_heads=(2, 4, 8)),
        img_size=192,
        init_cfg=dict(type="Pretrained", checkpoint="work_dirs/sparseswin_digits/epoch_20.pth"),
    ),
)
