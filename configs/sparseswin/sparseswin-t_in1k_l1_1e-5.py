"""SparseSwin-T on ImageNet-1K, 224 px, 49 tokens, L1 penalty on attention, weight 1e-5.

Paper: Less is More: SparseSwin (arXiv:2309.05224; Neurocomputing 580, 127433), Sec. 3 and 4.
Recipe: that of the released CIFAR scripts (AdamW 5e-5, weight decay 0.01, no schedule, 100 epochs),
    not the authors' own for ImageNet-100 (Adam 1e-4, e = 256, batch 22, stages 1-2 frozen); batch
    128; no decay on norms, biases and position tables; trunk from ImageNet-1K weights of Swin-T.
Command: python tools/train.py configs/sparseswin/sparseswin-t_in1k_l1_1e-5.py
Cost: 100 epochs of 1.28 M images at 224 px, 4.40 GMACs an image and forward pass; hours not
    measured.
Published: none for this weight.
Measured: not run
"""

_base_ = "sparseswin-t_in1k.py"

model = dict(
    attention_penalty=dict(type="tokensparse.AttentionPenalty", kind="l1", weight=1e-5, stage=3)
)
