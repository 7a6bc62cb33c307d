"""ToMe in windows of Swin-T under UPerNet on ADE20K, 512 x 512: a ViT's method in a segmentor.

Paper: ToMe (arXiv:2210.09461), Sec. 3, in every 7 x 7 window: 24 of 49 tokens are merged in blocks 3 and
    5 of stage 3 and come back after the next block. It has no segmentor. A proof that methods
    compose, no recipe of the paper; mmseg's for Swin-T.
Command: python tools/train.py configs/tome/tome_swin-t_upernet_160k_ade20k-512x512.py
Cost: backbone 27.5 M parameters, 21.7 GMACs at 512 x 512 (dense baseline: 23.6); hours not measured.
    mmseg's ImageNet-1K weights are fetched (checkpoint of init_cfg).
Published: none: the paper has classification alone.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_upernet_160k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SwinTransformer",
        arch="tiny",
        window_shift="always",
        img_size=512,
        plan=[
            dict(
                stage=2,
                span=(block, block + 1),
                reduce=dict(type="Windowed", window=7, reducer=dict(type="ToMe", r=24)),
                recover=dict(type="Scatter"),
            )
            for block in (2, 4)
        ],
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint={{_base_.checkpoint_file}}),
    ),
)
