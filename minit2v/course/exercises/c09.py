"""Chapter 09, measuring: the Fréchet distance, how sure a number is, a measure that can be fooled, and chance."""

from itertools import combinations

import torch

from minit2v.course import figures
from minit2v.course import sketches_07_12 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors

# 09.frechet

def _frechet_cases(seed):
    a, b, c, d, turn = random_tensors(seed, (12, 3), (9, 3), (7, 2), (7, 2), (3, 3))
    one = torch.eye(3, dtype=torch.float64)
    return [(a @ (one + 0.4 * turn), b @ (one - 0.3 * turn) + torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)),
            (c, 3 * d + 1), (a, a + 2)]


def _frechet_oracle(a, b):
    x, y = ((part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (a, b))
    spread = x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc")
    return (a.mean(0) - b.mean(0)).square().sum() + spread


def _root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _frechet(a, b, crossed=None, twice=2, unbiased=1, centred=True, squared=True, spread=True):
    s, t = (torch.cov(x.T, correction=unbiased) if centred else x.T @ x / (len(x) - 1) for x in (a, b))
    crossed = crossed(s, t) if crossed else _root(_root(s) @ t @ _root(s)).trace()
    moved = (a.mean(0) - b.mean(0)).square().sum()
    return (moved if squared else moved.sqrt()) + (s.trace() + t.trace() - twice * crossed if spread else 0)


def _frechet_entries(a, b):
    return _frechet(a, b, crossed=lambda s, t: (s @ t).sqrt().trace())


def _frechet_single(a, b):
    return _frechet(a, b, crossed=lambda s, t: (_root(s) @ _root(t)).trace())


def _frechet_half(a, b):
    return _frechet(a, b, crossed=lambda s, t: _root(s @ t).trace())


def _frechet_length(a, b):
    return _frechet(a, b, squared=False)


def _frechet_unsquared(a, b):
    return _frechet(a, b).sqrt()


def _frechet_once(a, b):
    return _frechet(a, b, twice=1)


def _frechet_means(a, b):
    return _frechet(a, b, spread=False)


def _frechet_axes(a, b):
    return (a.mean(0) - b.mean(0)).square().sum() + (a.std(0) - b.std(0)).square().sum()


def _frechet_moments(a, b):
    return _frechet(a, b, centred=False)


def _frechet_n(a, b):
    return _frechet(a, b, unbiased=0)


def _draw_frechet(function=_frechet_oracle):
    cloud = random_tensors(0, (400, 2))[0]
    cloud = (cloud - cloud.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(cloud.T))).T      # spread 1
    amounts = torch.linspace(0, 3, 31, dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return figures.plot({"moved by so much": [function(cloud, cloud + amount * shift).item() for amount in amounts],
                         "so many times as wide": [function(cloud, cloud * amount).item() for amount in amounts]},
                        x=amounts, ylabel="Fréchet distance", xlabel="amount",
                        alt="Two curves: for a cloud that is moved, the square of the way, from 0 up to 9; for one "
                            "that is stretched, 2 at width 0, down to 0 at width 1 and up to 8 at width 3.")


FRECHET = Exercise(
    name="09.frechet", target="frechet", kind="build", title="Two clouds of features", minutes=25, level=3, points=3,
    cases=_frechet_cases, oracle=_frechet_oracle, celebrate=_draw_frechet, tolerance=1e-5,
    forbidden=("frechet_distance", "course_frechet_distance", "FrechetInceptionDistance"),
    mistakes=(
        Mistake("root of the entries", _frechet_entries, "You take the root of every entry of the product. A matrix "
                "has a root of its own, which times itself gives the matrix. (Chapter 09, the Fréchet distance.)"),
        Mistake("root by root", _frechet_single, "You take the root of each covariance and multiply the roots. It is "
                "the root of their *product* that is asked for; the two are the same only where both clouds have their "
                "axes in common."),
        Mistake("half of the product", _frechet_half, "You give the product of the covariances to `eigh`. That "
                "believes its matrix to be symmetric and reads one half of it; but a product of symmetric matrices "
                "need not be symmetric."),
        Mistake("the root of it all", _frechet_unsquared, "You return the distance. Asked for is its square, as FID "
                "and FVD have it."),
        Mistake("the way, not its square", _frechet_length, "The distance of the two means comes in as it is. It "
                "should come in squared, as everything else here is a variance."),
        Mistake("once", _frechet_once, "A cloud has a distance from itself with you. How often do the roots have to be "
                "taken away, so that nothing is left?"),
        Mistake("means alone", _frechet_means, "You compare only where the clouds lie. A model that always makes the "
                "same average clip would be perfect."),
        Mistake("axis by axis", _frechet_axes, "You compare spreads axis by axis. How features go *together*, you do "
                "not see: a red circle and a blue square against a blue circle and a red square."),
        Mistake("not from the middle", _frechet_moments, "Your covariances are measured from zero, and not from the "
                "cloud's own middle: so the place counts twice."),
        Mistake("divided by N", _frechet_n, "You divide by N in the covariance. Here, as in FID and FVD, it is N - 1. "
                "(With thousands of clips nobody would notice; with a few it shows.)"),
    ),
    hints=(_draw_frechet, "Three steps: two means, two covariances (`torch.cov` wants features in rows), and one root "
           "of a matrix.",
           "The product S T of two covariances is not symmetric, but it has the same eigenvalues as R T R, which is, "
           "where R is the root of S. And a trace is the sum of the eigenvalues.",
           "The root of a symmetric matrix: `torch.linalg.eigh`, roots of the eigenvalues, and back. Rounding can make "
           "an eigenvalue a little negative."),
)


# 09.bootstrap

def _bootstrap_cases(seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for count, draws, share in ((20, 60, 0.7), (15, 41, 0.4)):
        right = (torch.rand(count, generator=generator) < share).double()
        right[:2] = torch.tensor([1.0, 0.0])
        found.append((right, torch.randint(count, (draws, count), generator=generator)))
    return found + [(torch.rand(12, generator=generator, dtype=torch.float64),
                     torch.randint(12, (80, 12), generator=generator))]


def _bootstrap_oracle(right, draws):
    means = sorted(sum(right[i] for i in row) / len(row) for row in draws.tolist())
    ends = []
    for share in (0.025, 0.975):
        place = share * (len(means) - 1)
        low = int(place)
        ends.append(means[low] + (place - low) * (means[min(low + 1, len(means) - 1)] - means[low]))
    return torch.stack(ends)


def _quantiles(values, low=0.025):
    return torch.quantile(values, torch.tensor([low, 1 - low], dtype=values.dtype))


def _bootstrap_clips(right, draws):
    return _quantiles(right)


def _bootstrap_flat(right, draws):
    return _quantiles(right[draws].flatten())


def _bootstrap_axis(right, draws):
    return _quantiles(right[draws].mean(0))


def _bootstrap_ninety(right, draws):
    return _quantiles(right[draws].mean(1), low=0.05)


def _bootstrap_extremes(right, draws):
    means = right[draws].mean(1)
    return torch.stack([means.min(), means.max()])


def _bootstrap_bell(right, draws):
    means = right[draws].mean(1)
    return torch.stack([means.mean() - 1.96 * means.std(), means.mean() + 1.96 * means.std()])


def _bootstrap_width(right, draws):
    low, high = _quantiles(right[draws].mean(1))
    return torch.stack([right.mean(), (high - low) / 2])


def _draw_bootstrap(function=_bootstrap_oracle):
    generator = torch.Generator().manual_seed(0)
    counts, lines = [10, 20, 40, 80, 160, 320], {"low": [], "high": []}
    for count in counts:
        right = (torch.arange(count) < round(0.7 * count)).double()
        low, high = function(right, torch.randint(count, (400, count), generator=generator))
        lines["low"].append(low.item())
        lines["high"].append(high.item())
    return figures.plot(lines, x=counts, xlabel="clips, 70 % of them right", ylabel="share",
                        alt="Two curves like a funnel around 0.7: the interval reaches from about 0.4 to 0.9 for 10 "
                            "clips, and from about 0.65 to 0.75 for 320.")


BOOTSTRAP = Exercise(
    name="09.bootstrap", target="bootstrap", kind="build", title="How sure?", minutes=15, level=2, points=2,
    cases=_bootstrap_cases, oracle=_bootstrap_oracle, celebrate=_draw_bootstrap,
    mistakes=(
        Mistake("of the clips", _bootstrap_clips, "You ask how much single clips differ, and `draws` is never used. "
                "Asked for is how much the *mean* of so many clips differs from one draw to the next."),
        Mistake("no means", _bootstrap_flat, "You have drawn, but not averaged: what you sort are single clips, very "
                "many of them."),
        Mistake("the other axis", _bootstrap_axis, "You average over the draws, so that there is one mean for each "
                "place in them. Each *row* is a draw, and each draw has one mean."),
        Mistake("ninety", _bootstrap_ninety, "You cut off 5 % at each end, and 90 % are left."),
        Mistake("everything", _bootstrap_extremes, "From the smallest to the largest mean: the more often you draw, "
                "the wider that gets. The interval should settle down."),
        Mistake("a bell assumed", _bootstrap_bell, "You assume a bell curve. Near 0 and 1 it is none, and your "
                "interval may leave the scale. The means that you have drawn can be asked themselves."),
        Mistake("middle and width", _bootstrap_width, "You return a middle and half a width. Asked for are the two "
                "ends; they need not be equally far away."),
    ),
    hints=(_draw_bootstrap, "Each row of `draws` is another hundred clips that you might have had: the same ones, some "
           "of them twice, some not at all. What would you have reported of each?",
           "Index with all of `draws` at once, average along one axis, and let `torch.quantile` find the two places "
           "between which 95 % lie."),
)


# 09.fooled

def _fooled_cases(seed):
    walk, turn = random_tensors(seed, (2, 6, 2), (1, 9, 2))
    line = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] * torch.tensor([0.6, -0.2], dtype=torch.float64)
    return [(torch.stack([*walk, line, line[[3, 0, 5, 1, 4, 2]], torch.full_like(line, 0.25)]),),
            (torch.cat([turn, torch.zeros_like(turn), 1e-3 * turn]),)]


def _fooled_oracle(tracks):
    found = []
    for track in tracks.tolist():
        ways = [((a - c) ** 2 + (b - d) ** 2) ** 0.5 for (a, b), (c, d) in zip(track, track[1:] + track[:1])]
        *steps, home = ways
        found.append(home / sum(steps) if sum(steps) > 0 else 0.0)
    return torch.tensor(found, dtype=tracks.dtype)


def _way(tracks):
    return tracks.diff(dim=1).norm(dim=-1).sum(1), (tracks[:, -1] - tracks[:, 0]).norm(dim=-1)


def _fooled_broken(tracks):
    steps = tracks.diff(dim=1)
    return _way(tracks)[1] / steps.sum(1).norm(dim=-1)


def _fooled_nan(tracks):
    length, away = _way(tracks)
    return away / length


def _fooled_frozen(tracks):
    length, away = _way(tracks)
    return torch.where(length > 0, away / length, torch.ones_like(away))


def _fooled_added(tracks):
    length, away = _way(tracks)
    return away / (length + 1e-6)


def _fooled_all(tracks):
    return (_way(tracks)[1] > 0).to(tracks.dtype)


def _fooled_axes(tracks):
    return torch.nan_to_num(_way(tracks)[1] / tracks.diff(dim=1).abs().sum((1, 2)))


def _fooled_squares(tracks):
    return torch.nan_to_num(_way(tracks)[1] / tracks.diff(dim=1).square().sum((1, 2)))


def _fooled_mean(tracks):
    return torch.nan_to_num(_way(tracks)[1] / tracks.diff(dim=1).norm(dim=-1).mean(1))


def _draw_fooled(function=_fooled_oracle):
    line = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None] * torch.tensor([0.6, 0.2], dtype=torch.float64)
    arc = torch.linspace(0, 1.5 * torch.pi, 8, dtype=torch.float64)
    tracks = {"straight on": line, "three quarters of a circle": torch.stack([arc.cos(), arc.sin()], -1),
              "straight, shuffled": line[[4, 0, 6, 2, 7, 1, 5, 3]], "frozen": line * 0}
    marks = function(torch.stack(list(tracks.values())))
    return figures.heat(marks[:, None], values=True, rows=list(tracks), columns=["mark"], limits=(0, 1), size=2.6,
                        alt="Four marks: straight on 1.00, three quarters of a circle 0.31, straight but shuffled "
                            "0.04, frozen 0.00.")


FOOLED = Exercise(
    name="09.fooled", target="directness", kind="repair", title="Full marks for standing still", minutes=15, level=2,
    points=2, cases=_fooled_cases, oracle=_fooled_oracle, celebrate=_draw_fooled,
    mistakes=(
        Mistake("as it came", _fooled_broken, "Still 1 for everything that moves, shuffled or not, and no number at "
                "all for what stands still. Follow one shuffled track by hand: what do its steps add up to, if they "
                "are added as *arrows*?"),
        Mistake("no number", _fooled_nan, "Shuffled frames are found out now. A frozen clip still gets no number: "
                "nothing divided by nothing. One such clip, and the mean over a thousand is gone, too."),
        Mistake("full marks", _fooled_frozen, "Shuffled frames are found out now. But a frozen clip gets full marks, "
                "and that is the very failure this measure is for."),
        Mistake("a small number added", _fooled_added, "Nearly. The small number that you add to the way keeps 0 / 0 "
                "away, but it takes something from everybody's mark, and from what moves slowly the most: straight on "
                "is no longer 1."),
        Mistake("shuffles pass", _fooled_all, "A frozen clip gets 0 now. But everything else gets 1: with frames in "
                "any order the mark is the same, so it does not measure motion."),
        Mistake("along the axes", _fooled_axes, "You measure the way along the axes, like a taxi, and the distance as "
                "the crow flies. Who goes straight but at a slant would not get 1."),
        Mistake("squares", _fooled_squares, "You add up the squares of the steps. A way is the sum of its lengths, and "
                "with squares the mark would depend on the size of the frame."),
        Mistake("mean step", _fooled_mean, "You divide by the mean step, not by the whole way: your marks go far "
                "beyond 1, and longer clips get better ones."),
    ),
    hints=(_draw_fooled, "The way is what your feet say: the lengths of all steps, added. The distance is what the map "
           "says. The mark is the one divided by the other.",
           "There are two faults. In which order do `sum` and `norm` have to stand? And what comes out of 0 / 0?"),
)


# 09.chance

def _chance(colours, shapes, motions):
    pairs = list(combinations(range(colours), 2))
    return 1 / (len(pairs) * (shapes * motions) ** 2)


CHANCE = Exercise(
    name="09.chance", target="answer_chance", kind="explore", title="What guessing gets", minutes=10, points=1, level=2,
    options=lambda rng: {"colours": rng.choice((6, 8, 10)), "shapes": rng.choice((3, 4, 5)),
                         "motions": rng.choice((8, 11, 12))},
    oracle=_chance, tolerance=5e-3,
    mistakes=(
        Mistake("one object", lambda colours, shapes, motions: 1 / (colours * shapes * motions), "That is the chance "
                "level of a single object."),
        Mistake("first and second", lambda colours, shapes, motions:
                1 / (colours * (colours - 1) * (shapes * motions) ** 2), "Nearly. You count a red circle and a blue "
                "square apart from a blue square and a red circle; the referee does not ask which comes first."),
        Mistake("twins", lambda colours, shapes, motions: 1 / (colours * shapes * motions) ** 2, "You guess each "
                "object by itself. But two objects never have the same colour, and a guesser may know that."),
        Mistake("colours alone", lambda colours, shapes, motions: 2 / (colours * (colours - 1)), "That is for the "
                "two colours alone. Shapes and motions have to be right as well."),
        Mistake("shapes and motions once", lambda colours, shapes, motions:
                2 / (colours * (colours - 1) * shapes * motions), "The two colours are right, but there are two shapes "
                "and two motions to guess."),
    ),
    hints=(sketches.chance,
           "First the colours: how many *pairs* of different ones are there, if the order does not count?",
           "Once it is said which colours there are, each of them has a shape and a motion, guessed by itself."),
)

EXERCISES = [FRECHET, BOOTSTRAP, FOOLED, CHANCE]
