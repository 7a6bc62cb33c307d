model = dict(
    type="tokensparse.ImageClassifier",
    data_preprocessor=dict(type="tokensparse.ImagePreprocessor"),
    backbone=dict(type="tokensparse.SparseSwin", arch="tiny", trunk="tiny"),
    head=dict(type="tokensparse.LinearHead"),
)
