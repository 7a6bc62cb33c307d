"""ToMe on DeiT-S, 13 tokens merged in every block, on ImageNet-1K, 224 px.

Paper: ToMe (arXiv:2210.09461), Sec. 3 and 4: merging in every block while training, too;
    attention is proportional to token size (Eq. 1).
Recipe: DeiT's, 300 epochs. Batch 1,024 = 8 x 128. For a DeiT-S that is trained already, see
    `tokensparse.apply_plan` (no training).
Command: torchrun --nproc-per-node 8 tools/train.py configs/tome/tome_deit-s_r13_in1k.py
    --launcher pytorch
Cost: 300 epochs of 1.28 M images, 2.71 GMACs an image and forward pass; hours not measured.
Published: 79.36 % top-1, trained with merging.
Measured: not run
"""

_base_ = [
    "../_base_/backbones/deit-s.py",
    "../_base_/tasks/in1k_deit.py",
    "../_base_/runtime.py",
]

model = dict(backbone=dict(plan=dict(every=dict(type="ToMe", r=13))))
