"""Moving Shapes: a scene is a closed formula of time, drawn to measure, and told in known words."""

import math
import random
from dataclasses import replace

import pytest
import torch

from minit2v import captions, world
from minit2v.captions import VOCABULARY, caption, caption_words, join, unknown_words
from minit2v.world import (
    CAMERAS,
    COLOURS,
    GROUNDS,
    HEADINGS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURES,
    Scene,
    Thing,
    combinations,
    render,
    sample_scene,
    sample_thing,
    state,
    times,
)

BOTH = ("en", "zh")
SHAPE_NAMES = list(SHAPES)
# How far each shape reaches from its centre when its area is that of a circle of radius 1: from the area of
# a square (2 R^2), an equilateral triangle (3 sqrt(3) / 4 R^2), and ten triangles with sides R and 0.45 R.
REACH = {"circle": 1.0, "square": math.sqrt(math.pi / 2), "triangle": math.sqrt(4 * math.pi / (3 * math.sqrt(3))),
         "star": math.sqrt(math.pi / (5 * 0.45 * math.sin(math.pi / 5)))}


def motion_scenes(seed=0) -> list[Scene]:
    """One scene for each motion, shapes and grounds in turn."""
    rng = random.Random(seed)
    shapes = {"spin": "star"}
    return [Scene((sample_thing(rng, "red", shapes.get(m, SHAPE_NAMES[i % 4]), m),), list(GROUNDS)[i % 3])
            for i, m in enumerate(MOTIONS)]


def camera_scenes(seed=0) -> list[Scene]:
    """One scene for each texture and camera, filled and outlined in turn."""
    rng = random.Random(seed)
    scenes = []
    for i, (texture, camera) in enumerate((t, c) for t in TEXTURES for c in CAMERAS):
        thing = sample_thing(rng, "green", SHAPE_NAMES[i % 4], MOTIONS[i % 14] if i % 14 != 10 else "stay")
        scenes.append(Scene((replace(thing, outlined=i % 2 == 0),), list(GROUNDS)[i % 3], texture, camera))
    return scenes


def pair_scenes(count: int, seed=0) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, 2) for _ in range(count)]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def covered(clip: torch.Tensor, ground: str, colour: str) -> torch.Tensor:
    """How much of each pixel an object of that colour covers, read from the clip: (..., H, W) in [0, 1]."""
    below, above = torch.tensor(GROUNDS[ground]).double(), torch.tensor(COLOURS[colour]).double()
    axis = above - below
    return ((clip.double() - below) @ axis / (axis @ axis)).clamp(0, 1)


# --- what there is ---

def test_the_world_is_as_large_as_the_design_asks():
    assert len(COLOURS) >= 8 and len(SHAPES) >= 4 and len(MOTIONS) >= 10 and len(GROUNDS) >= 3
    assert {"right", "left", "up", "down", "grow", "shrink", "spin", "bounce", "orbit", "stay"} <= set(MOTIONS)
    assert len(set(COLOURS.values())) == len(COLOURS) and len(set(MOTIONS)) == len(MOTIONS)


def test_unseen_combinations_are_a_fixed_55_of_440():
    train, unseen = combinations("train"), combinations("unseen")
    possible = {(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS} - {(c, "circle", "spin") for c in COLOURS}
    assert len(unseen) == len(set(unseen)) == 55 and len(train) == len(set(train)) == 385
    assert set(train) | set(unseen) == possible and not set(train) & set(unseen)
    assert {(s, m) for _, s, m in unseen} == {(s, m) for _, s, m in possible}       # one colour each
    for pick in ((0, 1), (0, 2), (1, 2)):                                           # every pair of attributes is seen
        assert {tuple(t[i] for i in pick) for t in train} == {tuple(t[i] for i in pick) for t in possible}


@pytest.mark.parametrize("level", (1, 2, 3))
def test_no_training_scene_holds_an_unseen_combination(level):
    rng, unseen = random.Random(level), set(combinations("unseen"))
    scenes = [sample_scene(rng, level) for _ in range(500)]
    things = [thing for scene in scenes for thing in scene.things]
    assert not unseen & {(k.colour, k.shape, k.motion) for k in things}
    assert {k.motion for k in things} == set(MOTIONS) and {k.colour for k in things} == set(COLOURS)
    assert {len(s.things) for s in scenes} == ({2} if level == 2 else {1})
    assert {s.ground for s in scenes} == set(GROUNDS)
    assert {s.texture for s in scenes} == (set(TEXTURES) if level == 3 else {"plain"})
    assert {s.camera for s in scenes} == (set(CAMERAS) if level == 3 else {"still"})
    assert {k.outlined for k in things} == ({True, False} if level == 3 else {False})


def test_unseen_scenes_show_an_unseen_combination_first():
    rng, unseen = random.Random(0), set(combinations("unseen"))
    for level in (1, 2, 3):
        found = [sample_scene(rng, level, "unseen").things for _ in range(300)]
        triples = [[(k.colour, k.shape, k.motion) for k in things] for things in found]
        assert all(first in unseen and not set(rest) & unseen for first, *rest in triples)
        assert len({first for first, *_ in triples}) > 50


def test_a_seed_is_a_scene():
    for level in (1, 2, 3):
        one, other = random.Random(7), random.Random(7)
        first = [sample_scene(one, level) for _ in range(5)]
        assert first == [sample_scene(other, level) for _ in range(5)] and len(set(first)) == 5


# --- where things are ---

@pytest.mark.parametrize("motion", HEADINGS)
def test_a_straight_motion_goes_where_its_name_says(motion):
    t = torch.linspace(0, 2, 9)
    for speed, frames_a_second in (("slow", 0.14), ("fast", 0.25)):
        x, y, radius, angle = state(Thing("red", "circle", motion, speed=speed), t)
        across = ("right" in motion) - ("left" in motion)
        upwards = ("up" in motion) - ("down" in motion)
        length = frames_a_second / math.hypot(across, upwards)
        assert torch.allclose(x, 0.5 + across * length * t.double(), rtol=0, atol=1e-12)
        assert torch.allclose(y, 0.5 - upwards * length * t.double(), rtol=0, atol=1e-12)       # y points down
        assert (radius == 0.12).all() and (angle == 0).all()


def test_the_other_motions():
    t = torch.linspace(0, 2, 17)
    still = Thing("red", "star", "stay", size="big", x=0.3, y=0.6)
    x, y, radius, angle = state(still, t)
    assert (x == 0.3).all() and (y == 0.6).all() and (radius == 0.16).all() and (angle == 0).all()

    for motion, sign in (("grow", 1), ("shrink", -1)):
        _, _, radius, _ = state(replace(still, motion=motion), t)
        assert (radius.diff() * sign > 0).all() and math.isclose(radius[8], 0.16)       # its own size half-way
        assert torch.allclose(radius.log().diff(), f64(sign * 0.22 / 8), rtol=1e-9, atol=0)

    for sense in (1, -1):
        x, y, _, _ = state(replace(still, motion="orbit", sense=sense, phase=1.0), t)
        assert torch.allclose(torch.hypot(x - 0.3, y - 0.6), f64(0.2), rtol=1e-12, atol=0)
        turned = torch.atan2(y - 0.6, x - 0.3).diff() * sense % (2 * math.pi)
        assert torch.allclose(turned, f64(2 * math.pi * 0.40 / 8), rtol=1e-9, atol=0)
        _, _, _, angle = state(replace(still, motion="spin", sense=sense, speed="fast"), t)
        assert torch.allclose(angle.diff() * sense, f64(2 * math.pi * 0.39 / 8), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bounce_is_a_billiard(shape):
    """The closed formula against a ball that is moved in small steps and turned round at the walls."""
    for heading, start in (((1, 0), 0.6), ((-1, 0), 0.4), ((0, 1), 0.7), ((0, -1), 0.5)):
        thing = Thing("red", shape, "bounce", "big", "fast", x=0.5, y=0.5, heading=heading)
        axis = 0 if heading[0] else 1
        thing = replace(thing, **{"xy"[axis]: start})
        wall, place, velocity, dt = 0.16 * REACH[shape], start, 0.45 * sum(heading), 1 / 1600
        walked, touched = [], 0
        for _ in range(4800):                                                # 3 s: two walls for some
            walked.append(place)
            place += velocity * dt
            if not wall <= place <= 1 - wall:
                place, velocity, touched = 2 * (wall if place < wall else 1 - wall) - place, -velocity, touched + 1
        found = state(thing, torch.arange(4800) / 1600)
        assert touched >= 1 and (found[axis] - f64(walked)).abs().max() < 1e-4
        assert (found[1 - axis] - 0.5).abs().max() < 1e-12


def test_things_stay_inside_the_frame():
    rng, t = random.Random(1), torch.linspace(0, world.SECONDS, 33)
    for shape, motion in {(s, m) for _, s, m in combinations("train")}:
        for size in SIZES:
            for speed in SPEEDS:
                thing = sample_thing(rng, "blue", shape, motion, size, speed)
                x, y, radius, _ = state(thing, t)
                far = radius * REACH[shape] - 1e-9
                inside = (x >= far) & (x <= 1 - far) & (y >= far) & (y <= 1 - far)
                assert inside.all(), f"{thing} leaves the frame"


def test_a_bounce_meets_a_wall_and_comes_back_within_the_clip():
    rng, t = random.Random(2), torch.arange(16) / 8
    for _ in range(200):
        thing = sample_thing(rng, "blue", rng.choice(SHAPE_NAMES), "bounce")
        along = state(thing, t)[0 if thing.heading[0] else 1]
        steps = along.diff()
        assert (steps > 1e-6).any() and (steps < -1e-6).any(), f"{thing} does not turn round"


def test_two_things_have_two_colours_and_never_touch():
    scenes = pair_scenes(300)
    t = torch.linspace(0, world.SECONDS, 33)
    for scene in scenes:
        one, other = scene.things
        assert one.colour != other.colour
        (xa, ya, ra, _), (xb, yb, rb, _) = state(one, t), state(other, t)
        assert (torch.hypot(xa - xb, ya - yb) > ra + rb).all(), f"{one} and {other} touch"
    for scene in scenes[:20]:                                               # and no pixel belongs to both
        alone = [covered(render([Scene((k,), "black")], height=32, width=32), "black", k.colour) for k in scene.things]
        assert not ((alone[0] > 0.05) & (alone[1] > 0.05)).any(), f"{scene.things} share a pixel"


def test_two_things_move_in_every_way():
    """No motion is rarer than a third of its share, or a model hardly meets it among two things."""
    motions = [thing.motion for scene in pair_scenes(400, seed=1) for thing in scene.things]
    share = {motion: motions.count(motion) / len(motions) * len(MOTIONS) for motion in MOTIONS}
    assert min(share.values()) > 1 / 3, share


# --- how they are drawn ---

@pytest.mark.parametrize("level", (1, 2, 3))
def test_a_frame_depends_on_its_time_only(level):
    """32 frames at 16 fps, every second one, are the 16 frames at 8 fps, bit for bit; so is any frame alone."""
    scenes = {1: motion_scenes(), 2: pair_scenes(4), 3: camera_scenes()}[level]
    clips = render(scenes, num_frames=16, fps=8, height=32, width=32)
    twice = render(scenes, num_frames=32, fps=16, height=32, width=32)
    assert clips.shape == (len(scenes), 16, 32, 32, 3) and clips.dtype == torch.uint8
    assert torch.equal(twice[:, ::2], clips)
    assert torch.equal(render(scenes, num_frames=5, height=32, width=32), clips[:, :5])
    assert torch.equal(render(scenes, seconds=torch.tensor([7 / 8]), height=32, width=32), clips[:, 7:8])
    moving = [i for i, s in enumerate(scenes) if s.things[0].motion != "stay"]
    assert not torch.equal(twice[moving, 1::2], clips[moving])


@pytest.mark.parametrize("size", ((64, 64), (48, 40)))
def test_a_scene_looks_the_same_alone_and_in_a_batch(size):
    height, width = size
    scenes = [*motion_scenes(), *pair_scenes(3), *camera_scenes()[::3]]
    together = render(scenes, num_frames=3, fps=2, height=height, width=width)
    for scene, clip in zip(scenes, together):
        assert torch.equal(render([scene], num_frames=3, fps=2, height=height, width=width)[0], clip), scene
    assert torch.equal(render(scenes[::-1], num_frames=3, fps=2, height=height, width=width), together.flip(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_one_size_have_one_area(shape):
    """Half-covered pixels counted as halves, at 256 x 256, against pi r^2; within 1 per cent."""
    things = [Thing("red", shape, "stay", "small", x=0.4, y=0.6), Thing("blue", shape, "stay", "big"),
              Thing("green", shape, "grow", "big", "fast"), Thing("pink", shape, "orbit", "small", phase=2.0)]
    if shape != "circle":
        things.append(Thing("cyan", shape, "spin", "big"))
    clips = render([Scene((k,), "black") for k in things], height=256, width=256, seconds=torch.tensor([0.3]))
    for thing, clip in zip(things, clips):
        grown = math.exp(0.38 * (0.3 - 1)) if thing.motion == "grow" else 1
        radius = {"small": 0.12, "big": 0.16}[thing.size] * grown
        area = covered(clip, "black", thing.colour).mean().item()
        assert math.isclose(area, math.pi * radius ** 2, rel_tol=0.01), thing


def test_shapes_look_like_themselves():
    """Corners, by the farthest covered pixel in each direction from the centre, on a large drawing."""
    corners = {"circle": 0, "square": 4, "triangle": 3, "star": 5}
    ys, xs = torch.meshgrid(*[(torch.arange(256) + 0.5) / 256 - 0.5] * 2, indexing="ij")
    distance, direction = torch.hypot(xs, ys), torch.atan2(ys, xs)
    for shape, count in corners.items():
        clip = render([Scene((Thing("red", shape, "stay", "big"),))], num_frames=1, height=256, width=256)
        mask = covered(clip, "black", "red")[0, 0] > 0.5
        sector = ((direction + math.pi) / (2 * math.pi) * 120).long().clamp(max=119)
        far = torch.stack([distance[mask & (sector == k)].max() for k in range(120)])
        wave = torch.fft.rfft(far).abs()[1:13] / 120                                  # how often it goes in and out
        assert abs(far.max().item() - 0.16 * REACH[shape]) < 0.006
        if count:
            assert wave.argmax().item() + 1 == count and wave.max() > 0.005
            top = far.argmax().item() / 120 * 360 - 180                              # degrees; -90 is up
            ups = (-135, -45, 45, 135) if shape == "square" else [-90 + k * 360 / count for k in range(count)]
            assert min(abs((top - up + 180) % 360 - 180) for up in ups) < 4
        else:
            assert wave.max() < 0.001


def test_an_outline_is_a_ring():
    clip = render([Scene((Thing("red", "circle", "stay", "big", outlined=True),))], num_frames=1, height=256, width=256)
    mask = covered(clip, "black", "red")[0, 0]
    expected = math.pi * world.SIZES["big"] ** 2 * (1 - (1 - world.OUTLINE) ** 2)
    assert math.isclose(mask.mean().item(), expected, rel_tol=0.01) and mask[128, 128] == 0


def test_a_large_drawing_shrinks_to_the_small_one():
    scenes = [*motion_scenes(), *pair_scenes(3), *camera_scenes()[::4]]
    small = render(scenes, num_frames=2, fps=1).float()
    large = render(scenes, num_frames=2, fps=1, height=128, width=128).float()
    averaged = large.unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean(dim=(3, 5))      # (N, 2, 64, 64, 3)
    difference = (averaged - small).abs()
    assert difference.mean() < 0.5, f"{difference.mean():.2f} of 255 on average"
    assert difference.amax(-1).flatten().quantile(0.999) < 64


def test_the_camera_pans_over_a_fixed_world():
    """Panned right by k pixels, the frame shows what a still camera sees k pixels further right."""
    for texture in TEXTURES:
        scene = Scene((Thing("red", "star", "stay"),), "grey", texture)
        still = render([scene], num_frames=1)[0, 0].int()
        for camera, pixels in (("pans right", 5), ("pans left", -5)):
            late = torch.tensor([1 + 5 / 64 / 0.12], dtype=torch.float64)
            panned = render([replace(scene, camera=camera)], seconds=late)[0, 0].int()
            ours, theirs = (panned[:, :-5], still[:, 5:]) if pixels > 0 else (panned[:, 5:], still[:, :-5])
            assert (ours - theirs).abs().max() <= 1, f"{texture}, {camera}"
            middle = render([replace(scene, camera=camera)], seconds=torch.tensor([1.0]))[0, 0].int()
            assert torch.equal(middle, still)


def test_the_camera_zooms():
    """A picture zoomed in by a factor z shows an area z^2 times as large."""
    t = torch.linspace(0, 2, 5)
    for camera, sign in (("zooms in", 1), ("zooms out", -1)):
        scene = Scene((Thing("blue", "circle", "stay", "big"),), camera=camera)
        areas = covered(render([scene], seconds=t, height=128, width=128)[0], "black", "blue").mean(dim=(1, 2))
        expected = math.pi * world.SIZES["big"] ** 2 * torch.exp(2 * sign * 0.2 * (t.double() - 1))
        assert torch.allclose(areas, expected, rtol=0.01)


# --- how they are told ---

@pytest.mark.parametrize("language", BOTH)
def test_a_caption_follows_from_its_seed_and_has_several_wordings(language):
    for scene in (*motion_scenes(), *pair_scenes(3), *camera_scenes()):
        assert caption(scene, random.Random(3), language) == caption(scene, random.Random(3), language)
        rng = random.Random(0)
        assert len({caption(scene, rng, language) for _ in range(40)}) >= 8
        words = caption_words(scene, random.Random(5), language)
        assert join(words, language) == caption(scene, random.Random(5), language)


def test_captions_name_what_is_there():
    rng, zh_colours = random.Random(0), captions.CHINESE_COLOURS
    for _ in range(300):
        scene = sample_scene(rng, rng.choice((1, 2, 3)))
        en, zh = caption(scene, rng, "en"), caption(scene, rng, "zh")
        for thing in scene.things:
            assert thing.colour in en and zh_colours[thing.colour] in zh
            assert any(" ".join(w) in en for w in captions.ENGLISH["shape"][thing.shape])
            assert any("".join(w) in zh for w in captions.CHINESE["motion"][thing.motion])
            assert ("outlined" in en, "空心" in zh) == (thing.outlined, thing.outlined)
        assert ("camera" in en) == ("镜头" in zh) == (scene.camera != "still")
        assert " " not in zh and " ," not in en and "  " not in en
        assert "a orange" not in en and "a outlined" not in en and " an s" not in f" {en}"


@pytest.mark.parametrize("table", (captions.ENGLISH, captions.CHINESE), ids=BOTH)
def test_no_wording_has_two_meanings(table):
    for kind in ("motion", "shape", "size", "speed", "camera", "ground", "texture"):
        wordings = [tuple(w) for options in table[kind].values() for w in options]
        assert len(wordings) == len(set(wordings)), kind
    assert set(table["motion"]) == set(MOTIONS) and set(table["shape"]) == set(SHAPES)
    assert all(len(options) >= 2 for options in table["motion"].values())


@pytest.mark.parametrize("language", BOTH)
def test_a_caption_leaves_out_what_it_is_told_to(language):
    """Of the same draws the rest of the sentence stays as it was; nothing is left of what is unsaid."""
    colours = set(COLOURS) | set(captions.CHINESE_COLOURS.values())
    table = captions.ENGLISH if language == "en" else captions.CHINESE
    said = {kind: {word for ways in table[kind].values() for way in ways for word in way} for kind in table}
    moves = (said["motion"] | said["speed"]) - said["shape"] - {"a", "and"}               # "moves in a circle"
    scenes = [scene for scene in (*motion_scenes(), *pair_scenes(3)) if scene.camera == "still"]
    for i, scene in enumerate(scenes):
        whole = caption_words(scene, random.Random(i), language)
        for unsaid, gone in ((("colour",), colours), (("motion",), moves), (("colour", "motion"), colours | moves)):
            words = caption_words(scene, random.Random(i), language, unsaid)
            named = [word for word in words if word not in said["ground"] | said["texture"] | {"a", "an"}]
            rest = iter(whole)
            assert not gone.intersection(named) and len(words) < len(whole)
            assert all(word in rest for word in named), (whole, words)                    # in the same order
            assert unknown_words(join(words, language)) == [] and "a orange" not in join(words, language)


@pytest.mark.parametrize("language", BOTH)
def test_the_vocabulary_is_what_captions_say(language):
    rng, said = random.Random(0), set()
    for i in range(3000):
        scene = sample_scene(rng, 3 if i % 10 else 2)
        said.update(caption_words(scene, rng, language))
    assert said - {","} == set(VOCABULARY[language]) and len(VOCABULARY[language]) == len(set(VOCABULARY[language]))


def test_unknown_words():
    rng = random.Random(1)
    for _ in range(300):
        scene = sample_scene(rng, rng.choice((1, 2, 3)))
        for language in BOTH:
            assert unknown_words(caption(scene, rng, language)) == []
    assert unknown_words("a red dog moves right, Dog and cat, 2 dogs!") == ["dog", "cat", "2", "dogs"]
    assert unknown_words("一个红色的狗向右移动") == ["狗"]
    assert unknown_words("a red 狗 and a blue circle，一只猫") == ["狗", "一只猫"]
    assert unknown_words("A RED CIRCLE moves to the right.") == [] == unknown_words("")


# --- what is refused ---

@pytest.mark.parametrize("call, value, rule", (
    (lambda: sample_scene(random.Random(0), 4), "4", "1, 2 or 3"),
    (lambda: sample_scene(random.Random(0), 1, "test"), "'test'", '"train" or "unseen"'),
    (lambda: combinations("all"), "'all'", '"train" or "unseen"'),
    (lambda: caption(motion_scenes()[0], random.Random(0), "fr"), "'fr'", '"en" or "zh"'),
    (lambda: times(0), "0", "num_frames >= 1"),
    (lambda: times(16, fps=0), "0", "fps > 0"),
    (lambda: render([]), "empty", "at least one"),
    (lambda: Thing("magenta", "circle", "stay"), "'magenta'", "red, orange"),
    (lambda: Thing("red", "heart", "stay"), "'heart'", "circle, square"),
    (lambda: Thing("red", "circle", "jump"), "'jump'", "bounce, orbit"),
    (lambda: Thing("red", "circle", "stay", size="huge"), "'huge'", "small, big"),
    (lambda: Thing("red", "circle", "stay", speed="mad"), "'mad'", "slow, fast"),
    (lambda: Scene((), ground="green"), "'green'", "black, grey, white"),
    (lambda: Scene((), texture="wood"), "'wood'", "striped"),
    (lambda: Scene((), camera="tilts"), "'tilts'", "pans left"),
))
def test_bad_input_is_named_with_its_rule(call, value, rule):
    with pytest.raises(ValueError) as error:
        call()
    assert value in str(error.value) and rule in str(error.value)
