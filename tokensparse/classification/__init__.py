"""Classification on mmengine: classifier, heads, losses, data, metric, hooks, runner."""

from tokensparse.classification.augmentation import ImagePreprocessor, RepeatedAugmentSampler
from tokensparse.classification.classifier import ImageClassifier
from tokensparse.classification.data import (
    CIFARDataset,
    DigitsDataset,
    ImageFolderDataset,
    ImageNet100Dataset,
    ImageNetDataset,
    MissingDataError,
)
from tokensparse.classification.fashion_mnist import FashionMNISTDataset
from tokensparse.classification.heads import DistilledHead, LinearHead
from tokensparse.classification.losses import AttentionPenalty, CrossEntropy
from tokensparse.classification.metric import Accuracy
from tokensparse.classification.precision import AutocastOptimWrapper
from tokensparse.classification.progress import ProgressHook
from tokensparse.classification.released_init import ReleasedInit

__all__ = [
    "Accuracy",
    "AttentionPenalty",
    "AutocastOptimWrapper",
    "CIFARDataset",
    "CrossEntropy",
    "DigitsDataset",
    "DistilledHead",
    "FashionMNISTDataset",
    "ImageClassifier",
    "ImageFolderDataset",
    "ImageNet100Dataset",
    "ImageNetDataset",
    "ImagePreprocessor",
    "LinearHead",
    "MissingDataError",
    "ProgressHook",
    "ReleasedInit",
    "RepeatedAugmentSampler",
]
