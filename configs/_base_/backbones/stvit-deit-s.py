model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(
        type="tokensparse.ImagePreprocessor",
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1),
        random_erase=dict(probability=0.25, mode="pixel"),
    ),
    backbone=dict(type="tokensparse.STViTDeiT", arch="small", num_tokens=16, drop_path_rate=0.1),
    head=dict(
        type="tokensparse.LinearHead",
        num_classes=1000,
        loss=dict(type="tokensparse.CrossEntropy", label_smoothing=0.1),
    ),
)
