"""SparseSwin-T under UPerNet on ADE20K, 512 x 512, 160,000 iterations.

Paper: SparseSwin (arXiv:2309.05224), the released dense encoder. The authors advertise segmentation but
    released none; the recipe is that of mmseg's Swin-T.
Command: python tools/train.py configs/sparseswin/sparseswin-t_upernet_ade20k-512x512.py
Cost: backbone 27.2 M parameters, 22.4 GMACs at 512 x 512; hours not measured.
Published: none: an open question of the paper.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_upernet_160k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="tokensparse.SparseSwin",
        arch="tiny",
        img_size=512,
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(
            type="tokensparse.ReleasedInit",
            kind="torchvision-swin",
            weights="Swin_T_Weights.IMAGENET1K_V1",
            prefixes=("stem.", "stages.0.", "stages.1.", "stages.2."),
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 512]),
)
