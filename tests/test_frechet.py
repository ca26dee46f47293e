"""The Frechet distance, against closed forms and against other ways to compute it."""

import math

import pytest
import torch

from minit2v import frechet


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int, size: int, rank: int | None = None) -> torch.Tensor:
    a = normal(seed, size, rank or size)
    return a @ a.T


# --- closed forms ---

def test_of_one_dimension_by_hand():
    """(m_a - m_b)^2 + (s_a - s_b)^2, with the standard deviations s."""
    a, b = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[10.0], [11.0]])
    assert frechet.distance(a, b) == pytest.approx(8.5 ** 2 + (2 - math.sqrt(0.5)) ** 2)
    assert frechet.distance(a, b, correction=0) == pytest.approx(8.5 ** 2 + (math.sqrt(8 / 3) - 0.5) ** 2)


def test_of_diagonal_covariances_dimension_by_dimension():
    mean_a, mean_b, std_a, std_b = normal(0, 7), normal(1, 7), normal(2, 7).abs(), normal(3, 7).abs()
    found = frechet.between(mean_a, torch.diag(std_a ** 2), mean_b, torch.diag(std_b ** 2))
    assert found == pytest.approx(float(((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2).sum()), rel=1e-12)


def test_covariances_with_common_axes_are_as_diagonal_ones():
    axes, _ = torch.linalg.qr(normal(4, 6, 6))
    std_a, std_b, zero = normal(5, 6).abs(), normal(6, 6).abs(), torch.zeros(6)
    found = frechet.between(zero, axes @ torch.diag(std_a ** 2) @ axes.T, zero, axes @ torch.diag(std_b ** 2) @ axes.T)
    assert found == pytest.approx(float(((std_a - std_b) ** 2).sum()), rel=1e-10)


def test_a_shift_of_all_costs_its_square_and_a_stretch_by_k_costs_its_share_of_the_trace():
    features = normal(7, 300, 5)
    assert frechet.distance(features, features + 3) == pytest.approx(5 * 9, rel=1e-9)
    mean, cov = frechet.gaussian(features)
    expected = float((mean.square().sum() + cov.trace()) * (2.5 - 1) ** 2)
    assert frechet.distance(features, 2.5 * features) == pytest.approx(expected, rel=1e-9)


# --- other ways to compute it ---

@pytest.mark.parametrize("size, rank", ((3, 3), (20, 20), (64, 64), (30, 12)))
def test_against_the_eigenvalues_of_the_product(size, rank):
    """tr (S_a S_b)^(1/2) is also the sum of the roots of the eigenvalues of the product, which is not symmetric."""
    cov_a, cov_b, mean = covariance(size, size, rank), covariance(size + 1, size), normal(8, size)
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()
    expected = float(mean.square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum())
    assert frechet.between(mean, cov_a, torch.zeros(size), cov_b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size, rank", ((3, 3), (20, 20), (64, 64)))
def test_against_scipys_matrix_root(size, rank):
    linalg = pytest.importorskip("scipy.linalg")
    cov_a, cov_b = covariance(10, size, rank), covariance(11, size)
    root = linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = float(cov_a.trace() + cov_b.trace()) - 2 * root.trace()
    assert frechet.between(torch.zeros(size), cov_a, torch.zeros(size), cov_b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count_a, count_b, size", ((200, 300, 16), (10, 500, 40), (10, 7, 40), (2, 2, 3)))
def test_of_few_samples_against_singular_values_of_the_features(count_a, count_b, size):
    """For centred features A (N, D) and B (M, D) the trace is the nuclear norm of A B^T / sqrt((N - 1)(M - 1)).

    It needs no covariance and no root, so it stays exact where there are fewer samples than dimensions.
    """
    a, b = normal(12, count_a, size), 2 * normal(13, count_b, size) + 1
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    trace = torch.linalg.svdvals(centred_a @ centred_b.T).sum() / math.sqrt((count_a - 1) * (count_b - 1))
    expected = float((a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * trace)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-6)


# --- what a distance must be ---

@pytest.mark.parametrize("count, size", ((500, 16), (8, 40), (2, 3)))
def test_it_is_symmetric_never_negative_and_zero_for_equal_sets(count, size):
    a, b = normal(14, count, size), normal(15, count, size).exp()
    assert frechet.distance(a, b) == pytest.approx(frechet.distance(b, a), rel=1e-6)
    assert 0 <= frechet.distance(a, a) < 1e-6 and frechet.distance(a, b) > 0.1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert frechet.distance(a, a[order]) < 1e-6


def test_features_that_never_vary_are_no_trouble():
    a, b = normal(16, 50, 4), normal(17, 50, 4)
    a[:, 1], b[:, 1], b[:, 2] = 5.0, 5.0, 0.0
    found = frechet.distance(a, b)
    assert math.isfinite(found) and found > float(a[:, 2].var())          # a whole dimension of spread is missing in b
    constant = torch.ones(10, 4)
    assert frechet.distance(constant, constant) == 0 and frechet.distance(constant, 3 * constant) == 16


def test_half_precision_features_are_summed_in_float64():
    features = (1000 + normal(18, 400, 3)).float()
    _, cov = frechet.gaussian(features)
    assert cov.dtype == torch.float64
    assert torch.allclose(cov, torch.cov(features.double().T), rtol=1e-12)
    assert frechet.distance(features, features + 1) == pytest.approx(3, rel=1e-3)


# --- the bias of few samples ---

@pytest.mark.parametrize("size, count, known", ((16, 32, 5.1), (16, 128, 1.3), (16, 512, 0.35), (64, 128, 17),
                                                (64, 512, 4.3), (64, 2048, 1.1), (400, 512, 159)))
def test_two_samples_of_one_gaussian_are_not_at_distance_zero(size, count, known):
    """Known from an independent measurement with scipy; the mean of four pairs, within a fifth."""
    repeats = 4 if size < 400 else 1
    found = [frechet.distance(normal(100 + 2 * i, count, size), normal(101 + 2 * i, count, size))
             for i in range(repeats)]
    assert sum(found) / repeats == pytest.approx(known, rel=0.2)


# --- what is refused ---

@pytest.mark.parametrize("features, message", (
    (torch.zeros(5), r"\(5,\).*two\s+samples"), (torch.zeros(1, 4), "two samples or more"),
    (torch.zeros(3, 0), "dimensions"), (torch.tensor([[1.0], [float("nan")]]), "1 of 2 rows"),
    (torch.tensor([[1.0], [float("inf")]]), "not finite")))
def test_bad_features_are_named(features, message):
    with pytest.raises(ValueError, match=message):
        frechet.gaussian(features)


def test_other_dimensions_are_named():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet.distance(torch.zeros(5, 3), torch.zeros(5, 4))
