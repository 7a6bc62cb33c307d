"""EViT on DeiT-S, keep rate 0.7, on ImageNet-1K, 224 px.

Paper: EViT (arXiv:2202.07800), Sec. 3 and 4: 70 % of the tokens are kept in blocks 4, 7 and 10, the
    others are fused into one.
Recipe: DeiT's, 300 epochs. The keep rate is 0.7 from the first epoch; the paper lowers it from 1 by
    a cosine over 100 epochs, from epoch 10. Batch 1,024 = 8 x 128.
Command: torchrun --nproc-per-node 8 tools/train.py configs/evit/evit_deit-s_k0.7_in1k.py
    --launcher pytorch
Cost: 300 epochs of 1.28 M images, 3.03 GMACs an image and forward pass; hours not measured.
Published: 79.5 % top-1, 3.0 GMACs.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/deit-s.py",
    "../_base_/tasks/in1k_deit.py",
    "../_base_/runtime.py",
]

model = dict(
    backbone=dict(
        plan=[
            dict(span=(block, None), reduce=dict(type="EViT", keep=0.7, score="cls_attn"))
            for block in (3, 6, 9)
        ]
    )
)
