"""Classification on mmengine: classifier, heads, losses, data, metric."""

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
from tokensparse.classification.released_init import ReleasedInit
from tokensparse.classification.stl10 import STL10Dataset
from tokensparse.classification.tiny_imagenet import TinyImageNetDataset

__all__ = [
    "Accuracy",
    "AttentionPenalty",
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
    "ReleasedInit",
    "RepeatedAugmentSampler",
    "STL10Dataset",
    "TinyImageNetDataset",
]
