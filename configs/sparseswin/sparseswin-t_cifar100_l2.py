"""SparseSwin-T on CIFAR-100, 224 px, 49 tokens, L2 penalty on attention, weight 1e-4.

Paper: Less is More: SparseSwin (arXiv:2309.05224; Neurocomputing 580, 127433), Sec. 3 and 4.
Recipe: the CIFAR one of the released scripts (AdamW 5e-5, weight decay 0.01, no schedule, 100
    epochs); batch 128; no decay on norms, biases and position tables; trunk from ImageNet-1K
    weights of Swin-T.
Command: python tools/train.py configs/sparseswin/sparseswin-t_cifar100_l2.py
Cost: 100 epochs of 50,000 images at 224 px, 4.40 GMACs an image and forward pass; hours not
    measured.
Published: 84.80 % top-1.
Measured: not run
"""

_base_ = "sparseswin-t_cifar100.py"

model = dict(
    attention_penalty=dict(type="tokensparse.AttentionPenalty", kind="l2", weight=1e-4, stage=3)
)
