model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(
        type="tokensparse.ImagePreprocessor",
        mean=(72.94, 72.94, 72.94),
        std=(90.02, 90.02, 90.02),
    ),
    backbone=dict(
        type="tokensparse.VisionTransformer",
        arch=dict(embed_dim=64, depth=6, num_heads=2),
        img_size=28,
        patch_size=2,
        class_token=False,
        pool="mean",
    ),
    head=dict(
        type="tokensparse.LinearHead", num_classes=10, loss=dict(type="tokensparse.CrossEntropy")
    ),
)
