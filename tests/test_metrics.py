"""Scores, and what stands beside them: chance, shuffled frames, real clips."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minit2v import frechet, metrics
from minit2v.config import mini
from minit2v.data import scenes_of
from minit2v.metrics import accuracy, chance, draw, interval, shuffled, table
from minit2v.world import COLOURS, MOTIONS, ORBIT_RADIUS, SHAPES, SPEEDS, Scene, Thing, combinations, state, times

ALL = [*combinations("train"), *combinations("unseen")]


class Perfect(torch.nn.Linear):
    """An autoencoder that loses nothing. It has weights, for these say where it is."""

    def encode(self, clips):
        return clips

    decode = encode


# --- chance ---

def test_chance_for_one_object_by_counting():
    """Every guess against every truth."""
    found = chance(1)
    for i, (name, names) in enumerate((("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS))):
        hits = sum(guess == truth[i] for truth in ALL for guess in names)
        assert found[name] == pytest.approx(hits / (len(ALL) * len(names)))
    hits = sum(guess == truth for truth in ALL for guess in ALL)
    assert found["all"] == pytest.approx(hits / len(ALL) ** 2) and list(found) == list(metrics.ATTRIBUTES)


def test_chance_for_two_objects_by_counting():
    """Two objects of different colours, guessed as two objects of different colours, in either order."""
    found = chance(2)
    truth = ("red", "blue")
    pairs = list(itertools.permutations(COLOURS, 2))
    assert found["colour"] == pytest.approx(sum(set(pair) == set(truth) for pair in pairs) / len(pairs))
    for name, names in (("shape", SHAPES), ("motion", MOTIONS)):              # matched by colour: one guess for each
        pairs = list(itertools.product(names, repeat=2))
        assert found[name] == pytest.approx(sum(pair == (pairs[0][0], pairs[-1][0]) for pair in pairs) / len(pairs))
    truth = {("red", "circle", "up"), ("blue", "star", "spin")}
    pairs = [(a, b) for a in ALL for b in ALL if a[0] != b[0]]
    assert found["all"] == pytest.approx(sum({a, b} == truth for a, b in pairs) / len(pairs))


# --- intervals ---

@pytest.mark.parametrize("right, count", ((0, 10), (1, 10), (5, 10), (10, 10), (380, 400), (400, 400), (81, 263)))
def test_the_interval_is_wilsons(right, count):
    """Its ends solve (share - p)^2 = z^2 p (1 - p) / n: the shares that are just z standard errors away."""
    share, z2 = right / count, 1.96 ** 2
    ends = np.roots([1 + z2 / count, -(2 * share + z2 / count), share ** 2])
    assert interval(share, count) == pytest.approx(abs(ends[0] - ends[1]).item() / 2, abs=1e-7)


    assert metrics.wilson(share, count) == pytest.approx(sorted(ends.real), abs=1e-7)


def test_the_interval_of_published_examples():
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                    (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert metrics.wilson(right / count, count) == pytest.approx((low, high), abs=1e-4)


def test_shares_near_nothing_and_all_have_intervals_to_one_side():
    """By hand: none of n has z^2 / (n + z^2) at the upper end."""
    assert metrics.per_cent(0.0, 100, 0) == "0 (0-4)" and metrics.per_cent(1.0, 400) == "100.0 (99.0-100.0)"
    assert metrics.wilson(0.0, 100) == pytest.approx((0, 1.96 ** 2 / (100 + 1.96 ** 2)))
    assert all(0 <= low <= k / n <= high <= 1 for n in range(1, 60) for k in range(n + 1)
               for low, high in [metrics.wilson(k / n, n)])


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    """200 samples of 60 from an exponential distribution, whose mean is 1: 95 % of the intervals, give or take."""
    generator = torch.Generator().manual_seed(0)
    samples = -torch.rand(200, 60, generator=generator, dtype=torch.float64).log()
    for level, low, high in ((0.95, 0.89, 0.98), (0.5, 0.40, 0.60)):
        ends = [metrics.bootstrap(sample, draws=300, level=level, seed=i) for i, sample in enumerate(samples)]
        assert low <= sum(a <= 1 <= b for a, b in ends) / 200 <= high


def test_the_bootstrap_of_a_mean_is_as_wide_as_the_formula_says():
    """1.96 standard errors to each side, for 2000 numbers of a normal distribution."""
    values = 5 + 2 * torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = metrics.bootstrap(values, draws=2000)
    error = float(values.std()) / math.sqrt(2000)
    assert (low, high) == pytest.approx((float(values.mean()) - 1.96 * error, float(values.mean()) + 1.96 * error),
                                        abs=0.15 * error)


def test_the_bootstrap_is_seeded_and_takes_any_statistic():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    spread = lambda rows: rows.std(0).sum()                                                    # noqa: E731
    torch.manual_seed(0)
    first = metrics.bootstrap(values, spread, seed=3)
    untouched = torch.random.get_rng_state()
    assert first == metrics.bootstrap(values, spread, seed=3) != metrics.bootstrap(values, spread, seed=4)
    assert torch.equal(untouched, torch.random.get_rng_state())                               # the global one is left
    assert metrics.bootstrap(torch.tensor([True, True])) == (1, 1)
    middle = sum(metrics.bootstrap(values, spread, centred=True)) / 2
    assert middle == pytest.approx(float(spread(values)), rel=0.01) and first[0] < first[1]


def test_the_interval_of_a_distance_is_as_wide_as_it_varies():
    """Against 100 pairs of samples, drawn anew, of two Gaussians a shift apart: the distances' own standard deviation.

    Both samples might have been others. With the reference held fixed the interval is too narrow, by nearly a third.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(100, 2, 60, 4, generator=generator, dtype=torch.float64)
    pairs[:, 1] += 1
    spread = torch.tensor([frechet.distance(*pair) for pair in pairs]).std()
    widths = {}
    for fixed in (False, True):
        ends = [metrics.bootstrap(a, (lambda rows: frechet.distance(rows, b)) if fixed else frechet.distance, 100,
                                  centred=True, reference=None if fixed else b) for a, b in pairs[:5]]
        widths[fixed] = sum(high - low for low, high in ends) / 5 / (2 * 1.96 * float(spread))
    assert widths[False] == pytest.approx(1, abs=0.15) and widths[True] < 0.8


def test_a_reference_is_drawn_again_on_its_own():
    """Not row by row with the values: a statistic that pairs them would else see its pairs again."""
    values = torch.arange(50.0)
    low, high = metrics.bootstrap(values, lambda a, b: (a - b[:50]).abs().sum(), 50, reference=torch.arange(70.0))
    assert low > 0
    assert metrics.bootstrap(values, lambda a, b: len(a) + len(b), 20, reference=values[:30]) == (80, 80)


def test_centred_intervals_do_not_move_with_the_bias_of_repetition():
    """Rows drawn twice take the Frechet distance up; the centred interval stays around what was measured."""
    a, b = (torch.randn(64, 16, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (5, 6))
    here = frechet.distance(a, b)
    low, high = metrics.bootstrap(a, lambda rows: frechet.distance(rows, b), draws=100)
    assert low > here                                                                          # so this one misses it
    low, high = metrics.bootstrap(a, lambda rows: frechet.distance(rows, b), draws=100, centred=True)
    assert low < here < high


@pytest.mark.parametrize("values, options", ((torch.zeros(0), {}), (torch.tensor(1.0), {}),
                                             (torch.ones(3), {"draws": 1}), (torch.ones(3), {"level": 95})))
def test_the_bootstrap_names_what_is_wrong(values, options):
    with pytest.raises(ValueError, match="one row or more, 20 draws or more and a level between 0 and 1"):
        metrics.bootstrap(values, **options)


# --- clips ---

def test_judging_scenes_are_fixed_and_not_those_of_training():
    for level, split in ((1, "train"), (1, "unseen"), (2, "train")):
        scenes = metrics.judging_scenes(level, split, 20)
        assert scenes == metrics.judging_scenes(level, split, 40)[:20]
        assert scenes != metrics.judging_scenes(level, split, 20, seed=1)
        assert not set(scenes) & set(scenes_of(level, 0, 300))
        unseen = [(t.colour, t.shape, t.motion) in combinations("unseen") for t in (s.things[0] for s in scenes)]
        assert all(unseen) if split == "unseen" else not any(unseen)


def test_real_clips_score_one_and_swapped_ones_do_not():
    scenes = [*metrics.judging_scenes(1, "train", 8), *metrics.judging_scenes(2, "train", 4)]
    clips = draw(scenes, batch=5)
    assert clips.shape == (12, 16, 64, 64, 3)
    assert accuracy(clips, scenes) == {"colour": 1, "shape": 1, "motion": 1, "all": 1}
    half = [*scenes[:4], *scenes[5:8], scenes[4], *scenes[8:]]                # three or four of twelve in wrong places
    found = accuracy(clips, half)
    assert found["all"] == pytest.approx(8 / 12) and all(found[name] >= found["all"] for name in found)
    with pytest.raises(ValueError):
        accuracy(clips, scenes[:5])


def test_shuffled_clips_show_the_same_pictures():
    clips = torch.arange(3 * 16).reshape(3, 16, 1, 1, 1).expand(3, 16, 2, 2, 3)
    mixed = shuffled(clips, seed=4)
    assert torch.equal(mixed.sort(dim=1).values, clips) and torch.equal(mixed, shuffled(clips, seed=4))
    assert not torch.equal(mixed, shuffled(clips, seed=5))
    orders = {tuple((mixed[i, :, 0, 0, 0] - 16 * i).tolist()) for i in range(3)}
    assert len(orders) == 3 and tuple(range(16)) not in orders               # each clip in an order of its own


def test_a_passage_through_a_perfect_autoencoder_changes_no_bit():
    clips = torch.randint(0, 256, (5, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(metrics.through_autoencoder(SimpleNamespace(autoencoder=Perfect(1, 1)), clips, batch=2), clips)


def test_each_prompt_has_its_own_seed_whatever_the_batch():
    calls = []

    def pipe(prompts, seed, progress, **settings):
        calls.append((prompts, settings))
        return torch.tensor(seed).reshape(-1, 1, 1, 1, 1)

    prompts = [f"prompt {i}" for i in range(7)]
    for batch in (1, 3, 7, 50):
        calls.clear()
        clips = metrics.generate(pipe, prompts, seed=100, batch=batch, progress=False, eta=0.5)
        assert clips.flatten().tolist() == list(range(100, 107))
        assert [p for part, _ in calls for p in part] == prompts and all(s == {"eta": 0.5} for _, s in calls)
        assert len(calls) == math.ceil(7 / batch)


# --- motion ---

def test_motion_energy_is_the_mean_change_in_float64():
    clips = torch.randint(0, 256, (3, 5, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = metrics.motion_energy(clips)
    expected = np.abs(np.diff(clips.numpy().astype(np.float64), axis=1)).mean(axis=(1, 2, 3, 4)) / 255
    assert found.dtype == torch.float32 and np.allclose(found.numpy(), expected, atol=1e-6)


def test_motion_energy_of_known_clips():
    black, white = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.full((2, 2, 3), 255, dtype=torch.uint8)
    orders = ((black, black, black), (white, black, white), (white, white, black))         # frozen, flashing, one cut
    clips = torch.stack([torch.stack(frames) for frames in orders])
    assert metrics.motion_energy(clips).tolist() == [0, 1, 0.5]


@pytest.mark.parametrize("clips", (torch.zeros(16, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 16, 8, 8, 3),
                                   torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 3, 16, 8, 8).byte()))
def test_motion_energy_names_what_is_wrong(clips):
    with pytest.raises(ValueError, match="frames, height, width, 3.*2 frames or more"):
        metrics.motion_energy(clips)


def test_flicker_rewards_a_frozen_picture():
    """It is VBench's formula, (255 - mean |difference|) / 255; and so a real clip loses against a still of itself."""
    real = draw(metrics.judging_scenes(1, "train", 6))
    steps = real.double().diff(dim=1).abs().mean((1, 2, 3, 4))
    assert torch.allclose(metrics.flicker(real).double(), (255 - steps) / 255, atol=1e-6)
    frozen = real[:, :1].expand_as(real)
    assert (metrics.flicker(frozen) == 1).all() and (metrics.smoothness(frozen) == 1).all()
    assert (metrics.flicker(frozen) >= metrics.flicker(real)).all()
    assert metrics.flicker(shuffled(real)).mean() < metrics.flicker(real).mean()


def test_centroids_follow_the_thing_that_is_there():
    """Against the world's own formula of where it is; a big star is off its centre by less than a pixel."""
    scenes = [Scene((Thing("red", "circle", "right", x=0.2, y=0.7),), "white"),
              Scene((Thing("blue", "star", "bounce", x=0.4, y=0.5, heading=(-1.0, 0.0)),), "grey"),
              Scene((Thing("yellow", "square", "orbit", "big", "fast", x=0.45, y=0.5),), "black")]
    for scene, track in zip(scenes, metrics.centroids(draw(scenes))):
        x, y, _, _ = state(scene.things[0], times(16, 8.0))
        assert torch.allclose(track.double(), torch.stack([x, y], dim=1), atol=1 / 64)


def test_an_empty_frame_has_its_middle():
    clips = torch.full((1, 3, 8, 10, 3), 128, dtype=torch.uint8)
    assert torch.equal(metrics.centroids(clips), torch.full((1, 3, 2), 0.5)) and metrics.smoothness(clips) == 1


def test_smoothness_is_one_minus_acceleration():
    """An orbit accelerates by r (2 pi turns / fps)^2 a frame; a straight motion does not."""
    things = [Thing("red", "circle", "right", x=0.2), Thing("red", "circle", "orbit", speed="fast")]
    straight, orbit = metrics.smoothness(draw([Scene((thing,)) for thing in things])).tolist()
    assert straight > 0.999
    assert 1 - orbit == pytest.approx(ORBIT_RADIUS * (2 * math.pi * SPEEDS["fast"]["orbit"] / 8) ** 2, rel=0.05)
    real = draw(metrics.judging_scenes(1, "train", 12))
    assert metrics.smoothness(real).mean() - metrics.smoothness(shuffled(real)).mean() > 0.05


# --- tables ---

def test_the_referee_stands_between_chance_and_one():
    rows = metrics.referee_rows(SimpleNamespace(autoencoder=Perfect(1, 1), config=mini()), count=6)
    found = {row["clips"]: row for row in rows}
    assert list(found) == [f"{n} object{s}, {kind}" for n, s in (("one", ""), ("two", "s")) for kind in
                           ("real", "through the VAE", "frames shuffled", "chance")] + ["noise that was readable"]
    for name, level in (("one object", 1), ("two objects", 2)):
        assert found[f"{name}, real"]["all"] == found[f"{name}, through the VAE"]["all"] == 1
        assert found[f"{name}, frames shuffled"]["motion"] < 0.7
        assert found[f"{name}, chance"] == {"clips": f"{name}, chance", **chance(level)}
    assert found["noise that was readable"] == {"clips": "noise that was readable", "all": 0}


def test_a_table_is_markdown_in_per_cent():
    rows = [{"clips": "seen, English", "colour": 1.0, "shape": 0.975, "motion": 0.5, "all": 0.4875},
            {"clips": "  chance", "colour": 0.125, "shape": 0.25, "motion": 1 / 14, "all": 1 / 440},
            {"clips": "noise that was readable", "all": 0.0}]
    assert table(rows, 400).splitlines() == [
        "| clips | colour | shape | motion | all three |",
        "|---|---|---|---|---|",
        "| seen, English | 100.0 | 97.5 | 50.0 | 48.8 (43.9-53.6) |",
        "|   chance | 12.5 | 25.0 | 7.1 | 0.2 |",
        "| noise that was readable |  |  |  | 0.0 (0.0-1.0) |"]
