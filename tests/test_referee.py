"""The referee reads real clips right, reads nothing into noise, and sees pixels only."""

import inspect
import random
from dataclasses import replace

import pytest
import torch

from minit2v.referee import Reading, agrees, read
from minit2v.world import (
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEEDS,
    Scene,
    Thing,
    combinations,
    render,
    sample_scene,
    sample_thing,
)

EVERYTHING = ("colour", "shape", "motion", "size", "speed")


def sampled(level: int, count: int) -> list[Scene]:
    """Scenes with a fixed seed, every third of them with an unseen combination."""
    rng = random.Random(f"referee {level}")
    return [sample_scene(rng, level, "unseen" if i % 3 == 2 else "train") for i in range(count)]


def one_of_each(seed=0) -> list[Scene]:
    """One scene for each motion."""
    rng = random.Random(seed)
    shapes = [s for s in SHAPES if s != "circle"]
    return [Scene((sample_thing(rng, list(COLOURS)[i % 8], shapes[i % 3], m),)) for i, m in enumerate(MOTIONS)]


def draw(scenes: list[Scene], **settings) -> list[torch.Tensor]:
    return [clip for i in range(0, len(scenes), 20) for clip in render(scenes[i:i + 20], **settings)]


def share(clips, scenes, what="all", fps=8.0, attributes=EVERYTHING) -> float:
    found = [agrees(read(clip, fps), scene, attributes) for clip, scene in zip(clips, scenes)]
    return sum(f[what] for f in found) / len(scenes)


def unreadable(clips) -> bool:
    return [read(clip) for clip in clips] == [[]] * len(clips)


@pytest.fixture(scope="module")
def real() -> tuple[list[torch.Tensor], list[Scene]]:
    scenes = sampled(1, 150)
    return draw(scenes), scenes


# --- real clips ---

def test_one_object_is_read_right(real):
    clips, scenes = real
    things = [scene.things[0] for scene in scenes]
    assert {k.motion for k in things} == set(MOTIONS) and {k.shape for k in things} == set(SHAPES)
    assert sum((k.colour, k.shape, k.motion) in combinations("unseen") for k in things) == 50
    assert share(clips, scenes) >= 0.995


def test_two_objects_are_read_right():
    orbits = [Scene((Thing("red", "circle", "orbit", speed=speed, x=0.6, y=0.6, phase=phase),
                     Thing("blue", "square", "stay", x=0.15, y=0.15))) for speed in SPEEDS for phase in (0.0, 2.0)]
    scenes = sampled(2, 56) + orbits                                         # orbits need room: sampled ones are rare
    assert {k.motion for scene in scenes for k in scene.things} == set(MOTIONS)
    assert share(draw(scenes), scenes) >= 0.995


@pytest.mark.parametrize("settings, fps", (
    ({"height": 96, "width": 96}, 8.0), ({"num_frames": 32, "fps": 16.0}, 16.0), ({"num_frames": 10, "fps": 5.0}, 5.0),
), ids=("96 x 96", "32 frames at 16 fps", "10 frames at 5 fps"))
def test_another_frame_size_or_rate(settings, fps):
    scenes = one_of_each()
    assert share(draw(scenes, **settings), scenes, fps=fps) == 1


def test_outlined_shapes_on_a_plain_ground():
    scenes = [Scene((Thing("green", s, "right", "big", x=0.35, outlined=o),)) for s in SHAPES for o in (True, False)]
    assert share(draw(scenes), scenes, attributes=(*EVERYTHING, "outlined")) == 1


def test_the_referee_is_given_a_clip_and_nothing_else(real):
    assert list(inspect.signature(read).parameters) == ["clip", "fps"]
    clip = real[0][0]
    before = clip.clone()
    assert read(clip) == read(before) and torch.equal(clip, before)


# --- time matters ---

def test_reversed_motions_read_as_their_opposites():
    opposite = {"right": "left", "up": "down", "up right": "down left", "up left": "down right", "grow": "shrink"}
    opposite |= {v: k for k, v in opposite.items()} | {m: m for m in ("spin", "bounce", "orbit", "stay")}
    scenes = one_of_each(1)
    turned = [replace(s, things=(replace(s.things[0], motion=opposite[s.things[0].motion]),)) for s in scenes]
    clips = [clip.flip(0) for clip in draw(scenes)]
    assert share(clips, turned) == 1


def test_a_frozen_clip_stays():
    scenes = one_of_each(2)
    frozen = [clip[7:8].expand(16, -1, -1, -1) for clip in draw(scenes)]
    readings = [read(clip) for clip in frozen]
    assert [[r.motion for r in found] for found in readings] == [["stay"]] * len(scenes)
    assert [(r.colour, r.shape) for (r,) in readings] == [(s.things[0].colour, s.things[0].shape) for s in scenes]


def test_shuffled_frames_lose_their_motion(real):
    clips, scenes = real[0][:60], real[1][:60]
    generator = torch.Generator().manual_seed(0)
    shuffled = [clip[torch.randperm(16, generator=generator)] for clip in clips]
    assert share(clips, scenes, "motion") == 1 and share(shuffled, scenes, "motion") < 0.3


# --- nothing to read ---

def test_noise_is_unreadable():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        assert unreadable([torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=generator)])
    for spread in (20, 40, 80):                       # fine grain and coarse clouds around grey, changing and fixed
        for cells, frames in ((64, 16), (8, 16), (4, 16), (8, 1), (4, 1)):
            noise = torch.randn(frames, 3, cells, cells, generator=generator) * spread + 128
            noise = torch.nn.functional.interpolate(noise, size=64, mode="nearest").clamp(0, 255).to(torch.uint8)
            assert unreadable([noise.permute(0, 2, 3, 1).expand(16, -1, -1, -1)]), (spread, cells, frames)


def test_empty_and_uniform_clips_are_unreadable():
    values = [(0, 0, 0), (128, 128, 128), (255, 255, 255), *COLOURS.values()]
    assert unreadable([torch.tensor(v, dtype=torch.uint8).expand(16, 64, 64, 3) for v in values])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_that_jumps_about_is_unreadable(shape):
    rng = random.Random(shape)
    things = [Thing("red", shape, "stay", x=rng.uniform(0.2, 0.8), y=rng.uniform(0.2, 0.8)) for _ in range(16)]
    assert unreadable([render([Scene((thing,)) for thing in things], num_frames=1)[:, 0]])


@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_is_unreadable(seed):
    """Each step up to 0.15 of the frame: no single one is a jump, but there is no motion that has a name."""
    rng, things = random.Random(seed), [Thing("red", "circle", "stay")]
    for _ in range(15):
        x, y = (min(0.8, max(0.2, p + rng.uniform(-0.15, 0.15))) for p in (things[-1].x, things[-1].y))
        things.append(replace(things[0], x=x, y=y))
    assert unreadable([render([Scene((thing,)) for thing in things], num_frames=1)[:, 0]])


def test_a_little_noise_and_blur_do_no_harm():
    generator = torch.Generator().manual_seed(0)
    scenes = one_of_each(3)
    for clip, scene in zip(draw(scenes), scenes):
        picture = torch.nn.functional.avg_pool2d(clip.permute(0, 3, 1, 2).float(), 3, stride=1, padding=1)
        noisy = picture.permute(0, 2, 3, 1) + 8 * torch.randn(clip.shape, generator=generator)
        assert agrees(read(noisy.clamp(0, 255).to(torch.uint8)), scene)["all"], scene


def test_a_rim_in_the_hue_of_the_other_object_does_no_harm():
    """As an autoencoder paints it: around something orange a thin, weak, yellowish line, while yellow is there, too."""
    rng, alike = random.Random(3), ({"yellow", "orange"}, {"red", "orange"}, {"green", "cyan"}, {"red", "pink"})
    scenes = [sample_scene(rng, 2) for _ in range(400)]
    scenes = [scene for scene in scenes if {thing.colour for thing in scene.things} in alike]
    assert len(scenes) > 15
    right = 0
    for scene, clip in zip(scenes, draw(scenes)):
        clip = clip.float()
        own, other = (torch.tensor(COLOURS[thing.colour]).float() for thing in scene.things)
        inside = (clip == own).all(-1).float()                                          # (F, H, W)
        rim = torch.nn.functional.max_pool2d(inside[:, None], 3, 1, 1)[:, 0] > inside
        clip[rim] = 0.6 * clip[0, 0, 0] + 0.4 * (0.4 * own + 0.6 * other)
        right += agrees(read(clip.round().to(torch.uint8)), scene)["all"]
    assert right / len(scenes) > 0.8                                                    # without neighbours: none


def test_an_object_that_vanishes_is_unreadable():
    clip = draw([Scene((Thing("red", "circle", "right", x=0.3),))])[0]
    clip[6:12] = 0
    assert unreadable([clip])


# --- agreement ---

RED = Reading("red", "circle", "right", "small", "slow", False, 0.0)
BLUE = Reading("blue", "square", "stay", "big", "slow", False, 0.0)
TWO = Scene((Thing("red", "circle", "right"), Thing("blue", "square", "stay", "big")))
ONE = Scene(TWO.things[:1])


def test_agreement_names_each_attribute():
    assert agrees([RED], ONE) == {"colour": True, "shape": True, "motion": True, "all": True}
    for wrong in ({"colour": "blue"}, {"shape": "star"}, {"motion": "left"}):
        found = agrees([replace(RED, **wrong)], ONE)
        assert found == {name: name not in (*wrong, "all") for name in ("colour", "shape", "motion", "all")}
    assert agrees([replace(RED, size="big")], ONE)["all"]
    assert agrees([replace(RED, size="big")], ONE, ("size", "colour")) == {"size": False, "colour": True, "all": False}


def test_another_number_of_objects_is_all_wrong():
    for readings, scene in (([], ONE), ([RED, BLUE], ONE), ([RED], TWO), ([], TWO)):
        assert agrees(readings, scene) == dict.fromkeys(("colour", "shape", "motion", "all"), False)


def test_two_objects_agree_in_either_order():
    assert agrees([RED, BLUE], TWO)["all"] and agrees([BLUE, RED], TWO)["all"]
    swapped = [replace(RED, motion="stay"), replace(BLUE, motion="right")]
    for readings in (swapped, swapped[::-1]):                                # motions bound to the wrong objects
        assert agrees(readings, TWO) == {"colour": True, "shape": True, "motion": False, "all": False}
    green = replace(BLUE, colour="green")
    for readings in ([RED, green], [green, RED]):                            # one colour wrong: the other still pairs
        assert agrees(readings, TWO) == {"colour": False, "shape": True, "motion": True, "all": False}


# --- what is refused ---

@pytest.mark.parametrize("clip", (
    torch.zeros(16, 64, 64, 3), torch.zeros(1, 16, 64, 64, 3, dtype=torch.uint8),
    torch.zeros(3, 16, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64, 3, dtype=torch.uint8),
), ids=("float", "a batch", "channels first", "three frames"))
def test_what_is_no_clip_is_refused(clip):
    with pytest.raises(ValueError, match=r"uint8 \(F, H, W, 3\) with F >= 4") as error:
        read(clip)
    assert str(tuple(clip.shape)) in str(error.value)


def test_a_frame_rate_must_be_positive():
    with pytest.raises(ValueError, match="fps is 0"):
        read(torch.zeros(16, 64, 64, 3, dtype=torch.uint8), fps=0)
