"""Does attention find cluster centres? Synthetic Gaussian clusters with known centres.

STViT (arXiv:2303.08685, Sec. 3.2) lets semantic tokens stand for cluster centres: guesses pooled in
space ask all tokens, and two layers of attention recover the centres. Here are the layers alone:
identity projections, one head, no residual, no norm, no feed-forward.

Shapes: B draws, K clusters, N tokens, C channels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokensparse.ops.attention import attend


class Clusters(NamedTuple):
    """Tokens drawn from Gaussians.

    Attributes:
        tokens: (B, N, C).
        labels: (B, N) the cluster of each token.
        centres: (B, K, C) means of the Gaussians.
        guess: (B, K, C) mean of each region: spatial pooling.
    """

    tokens: Tensor
    labels: Tensor
    centres: Tensor
    guess: Tensor


def gaussian_clusters(
    draws: int,
    dim: int,
    noise: float,
    num_clusters: int = 16,
    region: int = 12,
    purity: float = 0.5,
    lengths: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
) -> Clusters:
    """Draw tokens in regions, each of which belongs mostly to one cluster.

    Args:
        draws: B independent sets.
        dim: C.
        noise: root mean square distance of a token from its centre, whatever the dimension; centres
            have length 1, so random ones lie about 1.4 apart.
        num_clusters: K; there are as many regions.
        region: tokens of a region; N = K * region.
        purity: chance that a token belongs to its region's cluster; the rest come from all.
        lengths: smallest and largest length of a centre.
        seed: of the draws.

    Returns:
        The clusters.

    Raises:
        ValueError: a noise below 0 or a purity outside 0..1.
    """
    if noise < 0 or not 0.0 <= purity <= 1.0:
        raise ValueError(f"noise={noise}, purity={purity}; expected noise >= 0 and purity in 0..1")
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(draws, num_clusters, dim, generator=rng)
    low, high = lengths
    length = low + (high - low) * torch.rand(draws, num_clusters, 1, generator=rng)
    centres = centres / centres.norm(dim=-1, keepdim=True) * length
    own = torch.arange(num_clusters).repeat_interleave(region).expand(draws, -1)
    other = torch.randint(num_clusters, own.shape, generator=rng)
    labels = torch.where(torch.rand(own.shape, generator=rng) < purity, own, other)
    tokens = centres.gather(1, labels[..., None].expand(-1, -1, dim))
    tokens = tokens + noise * dim**-0.5 * torch.randn(tokens.shape, generator=rng)
    guess = tokens.unflatten(1, (num_clusters, region)).mean(2)
    return Clusters(tokens, labels, centres, guess)


def attention_centres(
    guess: Tensor, tokens: Tensor, temperature: float, layers: int = 2, distance: bool = False
) -> Tensor:
    """Let guesses attend to the tokens: S <- softmax(S X^T / temperature) X, ``layers`` times.

    Args:
        guess: (B, K, C).
        tokens: (B, N, C).
        temperature: of the softmax; a transformer learns it in its projections.
        layers: how often.
        distance: logits of the negative half squared distance instead of the product, which makes
            a layer one step of soft k-means. Attention lacks the lengths of the keys for it; those
            of the queries cancel in the softmax.

    Returns:
        (B, K, C).

    Raises:
        ValueError: a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}; expected a number above 0")
    scale = tokens.shape[-1] ** 0.5 / temperature  # attend() divides by the root of C
    bias = None
    if distance:
        bias = -tokens.square().sum(-1)[:, None, None, None] / (2 * temperature)
    keys = tokens[:, None, None]
    for _ in range(layers):
        out, _ = attend(guess[:, None, None] * scale, keys, keys, bias, form="eager")
        guess = out[:, 0, 0]
    return guess


def kmeans_centres(tokens: Tensor, num_clusters: int, guess: Tensor | None = None) -> Tensor:
    """Centres by scikit-learn's k-means.

    Args:
        tokens: (B, N, C).
        num_clusters: K.
        guess: (B, K, C) where it starts; None: ten starts by k-means++, the best one counts.

    Returns:
        (B, K, C); in the order of ``guess``, or in any.
    """
    from sklearn.cluster import KMeans

    found = []
    for i, points in enumerate(tokens.numpy()):
        start, count = ("k-means++", 10) if guess is None else (guess[i].numpy(), 1)
        fit = KMeans(num_clusters, init=start, n_init=count, random_state=0).fit(points)
        found.append(fit.cluster_centers_)
    return torch.from_numpy(np.stack(found)).to(tokens.dtype)


def label_means(clusters: Clusters) -> Tensor:
    """(B, K, C) mean of the tokens of each cluster, labels known; its centre where it has none."""
    hot = torch.nn.functional.one_hot(clusters.labels, clusters.centres.shape[1]).float()
    count = hot.sum(1)[..., None]
    means = hot.transpose(1, 2) @ clusters.tokens / count.clamp(min=1.0)
    return torch.where(count > 0, means, clusters.centres)


def centre_error(found: Tensor, centres: Tensor, matched: bool = True) -> Tensor:
    """Mean distance of found centres from the true ones, in units of the centres' spacing.

    Args:
        found: (B, K, C).
        centres: (B, K, C).
        matched: found centre k stands for centre k; else the best pairing counts.

    Returns:
        (B,); the unit is the mean distance of a centre from the nearest other one.
    """
    spacing = torch.cdist(centres, centres)
    spacing = spacing + torch.diag(spacing.new_full(spacing.shape[-1:], torch.inf))
    distance = torch.cdist(found, centres)
    if matched:
        paired = distance.diagonal(dim1=1, dim2=2)
    else:
        from scipy.optimize import linear_sum_assignment

        pairs = [linear_sum_assignment(d) for d in distance.numpy()]
        paired = torch.stack([d[pair] for d, pair in zip(distance, pairs, strict=True)])
    return paired.mean(1) / spacing.amin(-1).mean(1)
