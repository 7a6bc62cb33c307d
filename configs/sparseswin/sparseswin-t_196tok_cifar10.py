"""SparseSwin-T on CIFAR-10, 224 px, 196 tokens in place of 49.

Paper: Less is More: SparseSwin (arXiv:2309.05224; Neurocomputing 580, 127433), Sec. 3 and 4.
Recipe: the CIFAR one of the released scripts (AdamW 5e-5, weight decay 0.01, no schedule, 100
    epochs); batch 128; no decay on norms, biases and position tables; trunk from ImageNet-1K
    weights of Swin-T.
Command: python tools/train.py configs/sparseswin/sparseswin-t_196tok_cifar10.py
Cost: 100 epochs of 50,000 images at 224 px, 5.41 GMACs an image and forward pass; hours not
    measured.
Published: none: an open question of the paper.
Measured: not run
"""

_base_ = "sparseswin-t_cifar10.py"

model = dict(backbone=dict(arch=dict(_delete_=True, num_tokens=196, token_dim=512)))
