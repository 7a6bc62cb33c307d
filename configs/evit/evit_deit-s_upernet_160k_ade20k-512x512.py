"""EViT on DeiT-S under UPerNet on ADE20K, 512 x 512: a classification method in a segmentor.

Paper: EViT (arXiv:2202.07800), Sec. 3: 70 % of the tokens are kept in blocks 4, 7 and 10. The four maps
    that mmseg's DeiT-S gives are taken after blocks 3, 6, 9 and 12, each closed by the plan's
    restore. A proof that methods compose; recipe of mmseg's DeiT-S.
Command: python tools/train.py configs/evit/evit_deit-s_upernet_160k_ade20k-512x512.py
    DeiT-S (deit_small_patch16_224) is read from checkpoints/.
Cost: backbone 21.7 M parameters, 19.7 GMACs at 512 x 512 (dense baseline: 31.7); hours not measured.
Published: none: the paper has classification alone.
Measured: not run
"""

_base_ = "../_base_/tasks/ade20k_deit-s_upernet_160k.py"

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
        out_indices=(2, 5, 8, 11),
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/deit_small_patch16_224.pth"),
    ),
)
