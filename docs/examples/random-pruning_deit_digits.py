"""Random pruning of half the tokens of a small DeiT, on the digits that come with scikit-learn.

Paper: the control of DynamicViT (arXiv:2106.02034, Table 4).
Command: PYTHONPATH=docs/examples python tools/train.py docs/examples/random-pruning_deit_digits.py
Cost: 10 epochs of 1,437 images at 64 px, about 1 minute on 2 CPU cores.
Published: none (the paper does not train on these data).
Measured: not run
"""

_base_ = ["../../configs/_base_/tasks/digits.py", "../../configs/_base_/runtime.py"]

custom_imports = dict(imports=["tokensparse", "random_pruning"])
model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(
        type="tokensparse.VisionTransformer",
        arch=dict(embed_dim=128, depth=6, num_heads=4),
        img_size=64,
        patch_size=8,
        plan=[dict(span=(2, None), reduce=dict(type="RandomPruning", num_tokens=32))],
    ),
    head=dict(
        type="tokensparse.LinearHead",
        num_classes=10,
        loss=dict(type="tokensparse.CrossEntropy", label_smoothing=0.1),
    ),
)
