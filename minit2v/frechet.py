"""The Frechet distance: how far apart two sets of features lie, each taken for a Gaussian.

FID, FVD and our course Frechet distance are this one number on different features (Heusel et al. 2017,
arXiv:1706.08500). For Gaussians with means m and covariances S it has a closed form (Dowson & Landau 1982):

    d^2(a, b) = |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

The product S_a S_b is not symmetric, and the square root of such a matrix is where implementations lose digits or
get complex numbers. But S_a^(1/2) S_b S_a^(1/2) has the same eigenvalues and is symmetric: the trace of its root is
the sum of the roots of its eigenvalues.

What is called a distance is d^2, here as in all papers. And it is biased: of two finite samples of the *same*
distribution it is above zero, the more so the more features and the fewer samples. So a figure stands beside its
floor, the distance of real clips from other real clips, as many of them.
"""

import torch
from torch import Tensor


def gaussian(features: Tensor, correction: int = 1) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), float64; the sum of squares is divided by N - correction.

    Raises ValueError for another shape, for fewer than two rows and for values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2 or features.shape[1] == 0:
        raise ValueError(f"features have the shape {tuple(features.shape)}, but must be (samples, dimensions) with two "
                         "samples or more: one has no covariance")
    features = features.double()
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(features)} rows of features are not finite; look at what was generated, or "
                         "compute the features in float32")
    return features.mean(0), torch.cov(features.T, correction=correction).reshape(features.shape[1], -1)


def between(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The squared Frechet distance of two Gaussians: means (D,), covariances (D, D), in float64."""
    mean_a, cov_a, mean_b, cov_b = (value.double() for value in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T                        # (D, D), root @ root = cov_a
    middle = root @ cov_b @ root
    eigenvalues = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0)        # (D,); a zero comes as -1e-17
    squared = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()
    return max(float(squared), 0.0)


def distance(features_a: Tensor, features_b: Tensor, correction: int = 1) -> float:
    """The squared Frechet distance of two sets of features, (N, D) and (M, D); N and M may differ.

    correction: 1 divides covariances by N - 1, as FID's code does, 0 by N, as StyleGAN-V's FVD does.
    Raises ValueError for sets of different dimensions, and what `gaussian` raises.
    """
    if features_a.ndim == features_b.ndim == 2 and features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features of {features_a.shape[1]} and {features_b.shape[1]} dimensions cannot be compared; "
                         "take both from the same network")
    return between(*gaussian(features_a, correction), *gaussian(features_b, correction))
