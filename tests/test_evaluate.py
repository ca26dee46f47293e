"""`minit2v evaluate`: tried on generators whose worth is known, a perfect one and a frozen one."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from minit2v import cli, evaluate, frechet, fvd, judge, metrics, published, video
from minit2v.captions import caption
from minit2v.config import mini
from minit2v.world import render

COUNT, SEED = 8, 5


class Oracle:
    """A generator that knows the scene behind each caption, and draws it; or only its first frame, again and again."""

    def __init__(self, frozen: bool, **size):
        self.frozen, self.seeds = frozen, []
        self.config = replace(mini(), **size)
        self.autoencoder = SimpleNamespace(encode=lambda clips: clips, decode=lambda clips: clips,
                                           parameters=lambda: iter([torch.zeros(1)]))
        self.scenes = {}
        for name, (_, _, language) in metrics.SETS.items():
            rng = random.Random(f"captions {name} {SEED}")
            for scene in evaluate.scenes_of_set(name, COUNT, SEED):
                self.scenes[caption(scene, rng, language)] = scene

    def __call__(self, prompts, seed, progress):
        self.seeds += seed
        clips = metrics.draw([self.scenes[prompt] for prompt in prompts], **metrics.size_of(self.config))
        return clips[:, :1].expand_as(clips).contiguous() if self.frozen else clips


@pytest.fixture(scope="module")
def perfect():
    pipe = Oracle(frozen=False)
    sets = evaluate.collect(pipe, COUNT, SEED, progress=False)
    return pipe, sets, evaluate.figures(sets)


@pytest.fixture(scope="module")
def frozen():
    sets = evaluate.collect(Oracle(frozen=True), COUNT, SEED, progress=False)
    return sets, evaluate.figures(sets)


def rows_of(rows, measure):
    found = [row for row in rows if row["measure"] == measure]
    assert found
    return found


# --- known generators ---

def test_each_clip_is_made_once_and_a_perfect_generator_is_as_good_as_real_clips(perfect):
    pipe, _, rows = perfect
    assert pipe.seeds == len(metrics.SETS) * list(range(SEED, SEED + COUNT))
    for row in rows:
        assert row["count"] == (2 * COUNT if row["clips"] in evaluate.GROUPS else COUNT)
        for kind in ("model", "vae"):
            assert row[kind]["value"] == pytest.approx(row["real"]["value"], abs=1e-6)
        for kind in ("model", "shuffled", "vae", "real", "real shuffled"):
            assert row[kind]["low"] <= row[kind]["value"] <= row[kind]["high"]
    assert all(row["model"]["value"] == 1 for row in rows_of(rows, "caption accuracy"))
    assert all(row["biased"] for row in rows_of(rows, "course Frechet distance"))                   # 16 clips


def test_no_measure_is_flagged_for_a_perfect_generator(perfect):
    """They all see that frames were shuffled, the similarity of the single sets in small samples too."""
    _, _, rows = perfect
    distances = [flag for flag in evaluate.flags(rows) if not flag.startswith("course Frechet distance")]
    assert distances == []                                     # of 8 clips the distances' intervals are too wide


def test_a_model_of_shorter_and_slower_clips_is_compared_with_such_clips(monkeypatch):
    """As after `finetune --fps 4 --num-frames 8`: real clips have its frames, rate and size, and are read at it."""
    rates, genuine = set(), evaluate.read
    monkeypatch.setattr(evaluate, "read", lambda clip, fps: rates.add(fps) or genuine(clip, fps))
    pipe = Oracle(frozen=False, num_frames=8, fps=4, height=48, width=48)
    kinds = evaluate.collect(pipe, COUNT, SEED, progress=False)["unseen, English"]
    assert rates == {4}
    real = render(evaluate.scenes_of_set("unseen, English", COUNT, SEED), num_frames=8, fps=4, height=48, width=48)
    assert torch.equal(kinds["real"]["motion energy"], metrics.motion_energy(real))
    for key, values in kinds["real"].items():
        assert torch.equal(kinds["model"][key], values)
    assert kinds["real"]["all"].mean() == 1 and torch.equal(kinds["other"]["features"], judge.features(render(
        evaluate.scenes_of_set("unseen, English", COUNT, SEED + 1_000_003), num_frames=8, fps=4, height=48, width=48)))


def test_chance_is_the_captions_of_other_clips(perfect):
    _, _, rows = perfect
    for row in rows_of(rows, "text-video similarity"):
        assert row["chance"]["high"] < row["real"]["low"]
    assert [row["chance"]["value"] for row in rows_of(rows, "caption accuracy")] == [
        metrics.chance(level)["all"] for level, _, _ in metrics.SETS.values()]


def test_a_frozen_generator_wins_flicker_and_smoothness_and_is_found_out(frozen):
    """The trap: two measures rank it above real clips. The shuffled frames, all alike, say that nothing moves."""
    _, rows = frozen
    for measure in ("flicker score", "smoothness"):
        for row in rows_of(rows, measure):
            assert row["model"]["value"] == 1 > row["real"]["value"]
            assert row["real gets worse when shuffled"] and not row["model gets worse when shuffled"]
    for row in rows_of(rows, "motion energy"):
        assert row["model"]["value"] == 0 < row["real"]["low"]
    for measure in ("caption accuracy", "text-video similarity"):
        for row in rows_of(rows, measure):
            assert row["model"]["value"] < row["real"]["value"]
    found = "\n".join(evaluate.flags(rows))
    assert "flicker score (one object, English): the model's clips are not surely worse" in found


def test_a_measure_that_does_not_see_order_is_flagged():
    """One that says the same of a clip with its frames shuffled, as the mean colour would."""
    blind = torch.rand(20, generator=torch.Generator().manual_seed(0))
    kinds = ("model", "shuffled", "real", "real shuffled")
    row = evaluate.compare("flicker score", "a set", dict.fromkeys(kinds, blind))
    assert evaluate.flags([row]) == ["flicker score (a set): real clips are not surely worse with their frames "
                                     "shuffled; it does not see motion, or there are too few clips to tell"]


@pytest.mark.parametrize("measure, change, worse", (
    ("smoothness", -0.1, True), ("smoothness", 0.1, False), ("motion energy", 0.1, True), ("motion energy", -0.1, True),
    ("motion energy", 0.0, False)))
def test_worse_is_less_more_or_farther_from_real(measure, change, worse):
    values = torch.rand(30, generator=torch.Generator().manual_seed(1))
    row = evaluate.compare(measure, "", {"model": values, "shuffled": values + change, "real": values,
                                         "real shuffled": values + change})
    assert row["real gets worse when shuffled"] is worse and row["model gets worse when shuffled"] is worse


@pytest.mark.parametrize("model, shuffled, worse", (
    (0.002, 0.008, False), (0.002, 0.014, False), (0.002, 0.020, True), (0.009, 0.003, True), (0.008, 0.014, True)))
def test_worse_motion_energy_is_farther_from_that_of_real_clips_on_either_side(model, shuffled, worse):
    """Real clips have 0.008. Shuffled clips as far from it on the other side are no worse."""
    noise = 1e-4 * torch.randn(30, generator=torch.Generator().manual_seed(3))
    row = evaluate.compare("motion energy", "", {"model": model + noise, "shuffled": shuffled + noise.flip(0),
                                                 "real": 0.008 + noise.roll(7), "real shuffled": 0.02 + noise})
    assert row["model gets worse when shuffled"] is worse and row["real gets worse when shuffled"]


def test_a_distance_gets_worse_by_growing():
    values = torch.randn(40, 1, generator=torch.Generator().manual_seed(2))
    samples = {"model": values, "shuffled": values + 5, "real": values + 5, "real shuffled": values}
    row = evaluate.compare("course Frechet distance", "", samples, frechet.distance, values)
    assert row["model gets worse when shuffled"] and not row["real gets worse when shuffled"]


def test_the_course_frechet_distance_sees_that_frames_were_shuffled():
    """Of 96 clips, for 512 take too long to draw here; of more, the intervals are only narrower and farther apart."""
    real, others = (metrics.draw(metrics.judging_scenes(1, "train", 96, seed)) for seed in (SEED, SEED + 1_000_003))
    features, mixed = judge.features(real), judge.features(metrics.shuffled(real, SEED))
    row = evaluate.compare("course Frechet distance", "", {"model": features, "shuffled": mixed, "real": features,
                                                           "real shuffled": mixed}, frechet.distance,
                           judge.features(others))
    assert row["real gets worse when shuffled"] and evaluate.flags([row]) == []
    row = evaluate.compare("course Frechet distance", "", {kind: row[:12] for kind, row in (
        ("model", features), ("shuffled", mixed), ("real", features), ("real shuffled", mixed))}, frechet.distance,
        judge.features(others)[:12])
    assert "or there are too few clips to tell" in evaluate.flags([row])[0]


# --- what is printed and written ---

def test_accuracy_rows_are_the_referees(perfect):
    _, sets, _ = perfect
    rows = evaluate.accuracy_rows(sets)
    assert [row["clips"] for row in rows[:4]] == ["seen, English", "  its frames shuffled", "  real, through the VAE",
                                                  "  chance"]
    level, split, _ = metrics.SETS["unseen, Chinese"]
    scenes = metrics.judging_scenes(level, split, COUNT, SEED)
    expected = metrics.accuracy(metrics.shuffled(metrics.draw(scenes), SEED), scenes)
    row = rows[4 * list(metrics.SETS).index("unseen, Chinese") + 1]
    assert {name: row[name] for name in metrics.ATTRIBUTES} == pytest.approx(expected)
    assert all(row["intervals"][name] == metrics.wilson(row[name], COUNT) for name in metrics.ATTRIBUTES)
    assert metrics.table(rows, COUNT).count("\n") == 1 + len(rows)


def test_the_table_has_a_cell_for_each_figure(perfect):
    _, _, rows = perfect
    lines = evaluate.table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1
    row = rows_of(rows, "smoothness")[0]
    half = (row["model"]["high"] - row["model"]["low"]) / 2
    assert any(line.startswith(f"| smoothness ↑ | one object, English | {row['model']['value']:.4f} ± {half:.4f} |")
               for line in lines)
    assert "| caption accuracy ↑ | seen, English | 1.000 (0.676-1.000) |" in "\n".join(lines)     # 8 / (8 + 1.96^2)
    text = "\n".join(evaluate.notes(rows))
    assert "It is not FVD" in text and "--clips 256" in text
    assert "(16 of one object, English, 16 of one object, Chinese, 16 of two objects)" in text


def test_the_course_frechet_distance_says_when_clips_are_too_few():
    """Its note names the rows below 512; a row of FVD, which is marked below 2048, is not among them."""
    figure = {"value": 1.0, "low": 0.5, "high": 1.5}
    row = {"clips": "a set", "model": figure, "real gets worse when shuffled": True,
           "model gets worse when shuffled": True}
    enough, few = ({**row, "measure": "course Frechet distance", "count": count, "biased": count < evaluate.ENOUGH}
                   for count in (512, 511))
    films = {**row, "measure": "FVD", "count": 600, "biased": True}
    assert "(biased)" not in "".join(evaluate.notes([enough, films]))
    assert "fewer than 512 clips (511 of a set)" in "".join(evaluate.notes([enough, few, films]))


def test_real_clips_are_as_many_as_the_models(perfect):
    """A Frechet distance of other sizes has another bias: the floor must be that of the same counts."""
    _, sets, rows = perfect
    for kinds in sets.values():
        assert {len(kinds[kind]["features"]) for kind in ("model", "shuffled", "vae", "real", "other")} == {COUNT}
    assert all(2 * cli.build_parser().parse_args(["evaluate"]).clips >= evaluate.ENOUGH == 512 and len(members) == 2
               for members in evaluate.GROUPS.values())
    assert all(row["real"]["value"] > 0 for row in rows_of(rows, "course Frechet distance"))      # of other clips


@pytest.mark.parametrize("group", evaluate.GROUPS)
def test_a_group_has_no_real_clip_twice(group, perfect):
    """Scenes that two languages share would make a distance of 512 clips one of 256."""
    for kind, seed in (("real", SEED), ("other", SEED + 1_000_003)):
        scenes = [scene for name in evaluate.GROUPS[group] for scene in evaluate.scenes_of_set(name, COUNT, seed)]
        assert len(set(map(repr, scenes))) == 2 * COUNT
        looked = torch.cat([perfect[1][name][kind]["features"] for name in evaluate.GROUPS[group]])
        assert len(looked.unique(dim=0)) == 2 * COUNT
    assert evaluate.scenes_of_set("seen, English", COUNT, SEED) == evaluate.scenes_of_set("seen, Chinese", COUNT, SEED)


def test_a_picture_is_written_whole(perfect, tmp_path):
    evaluate.picture(perfect[2], tmp_path / "figures.png", "a title")
    with Image.open(tmp_path / "figures.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["figures.png"]


def test_the_command_prints_and_writes(tmp_path, capsys):
    """The mini model itself, two clips a set of one step: the numbers say nothing, the form does."""
    out = tmp_path / "figures.json"
    assert cli.main(["evaluate", "--clips", "2", "--steps", "1", "--sampler", "dpm++", "--json", str(out),
                     "--picture", str(tmp_path / "figures.png")]) == 0
    printed, warned = capsys.readouterr()
    assert "2 clips a row are too few for the course Frechet distance, which needs 512 of two rows" in warned
    assert printed.startswith("2 clips a row, per cent right; dpm++, 1 steps, guidance 4, seeds from 0\n| clips | ")
    assert "| two objects, Chinese |" in printed and "| course Frechet distance ↓ (biased) |" in printed
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["clips"] == 2 and len(found["rows"]) == 24 and len(found["figures"]) == 24
    assert all({"model", "shuffled", "real", "vae"} <= set(row) for row in found["figures"])
    assert (tmp_path / "figures.png").is_file()


def test_published_figures_come_with_their_protocol(capsys):
    assert cli.main(["evaluate", "--published"]) == 0
    printed = capsys.readouterr().out
    for figure in ("| FVD | ModelScopeT2V | 550 | MSR-VTT", "| CLIPSIM | ModelScopeT2V | 0.2930 |", "410 | UCF-101",
                   "2902 ± 438 | FETV", "674 ± 22", "| CLIPSIM | real videos | 0.3056 |"):
        assert figure in printed
    assert "cannot be compared" in printed and {row[4] for row in published.FIGURES} == set(published.CERTAINTY)
    assert all(row[0] in ("FVD", "FID-vid", "CLIPSIM") and len(row) == 5 for row in published.FIGURES)


def test_the_command_passes_on_what_it_is_told(perfect, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(evaluate, "collect", lambda pipe, *given, **settings: asked.append((given, settings))
                        or perfect[1])
    out = tmp_path / "out.json"
    assert cli.main(["evaluate", "--clips", "8", "--seed", "5", "--steps", "7", "--sampler", "ddpm", "--guidance-scale",
                     "2.5", "--json", str(out)]) == 0
    settings = {"num_inference_steps": 7, "guidance_scale": 2.5, "sampler": "ddpm"}
    assert asked == [((8, 5), settings)]
    assert settings.items() <= json.loads(out.read_text(encoding="utf-8")).items()


@pytest.mark.parametrize("options, message", (
    (["--json", "nowhere/a.json"], "no folder 'nowhere'"), (["--picture", "nowhere/a.png"], "no folder 'nowhere'"),
    (["--i3d", "a.pt"], "--real FOLDER"), (["--clip", "a.bin"], "--real FOLDER"),
    (["--real", "."], "neither file is given"), (["--real", ".", "--i3d", "none.pt"], "there is no I3D in 'none.pt'"),
    (["--real", ".", "--clip", "none.bin"], "there is no CLIP in 'none.bin'")))
def test_what_makes_no_sense_is_told_before_the_work(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--clips", "4", *options]) == 1
    assert message in capsys.readouterr().err


# --- against films, with stand-ins for the networks ---

class StandIn(torch.nn.Module):
    """Called as I3D is; answers the mean colour, and how it changes."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True):
        x = x.float() / 127.5 - 1
        return torch.cat([x.mean(dim=(2, 3, 4)), (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=(2, 3, 4))], dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve films, of which two share a caption and one is damaged in its middle; stand-ins of I3D and of CLIP."""
    open_clip = pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("real")
    (path / "films").mkdir()
    scenes = metrics.judging_scenes(1, "train", 11)
    for i, (scene, clip) in enumerate(zip(scenes, metrics.draw(scenes))):
        video.save(clip, path / "films" / f"{i}.gif", fps=8)
        (path / "films" / f"{i}.txt").write_text(caption(scenes[max(i, 1)], random.Random(max(i, 1))), encoding="utf-8")
    noise = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = video.save(noise, path / "films" / "damaged.mp4", fps=8).read_bytes()
    (path / "films" / "damaged.mp4").write_bytes(whole[:len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    (path / "films" / "damaged.txt").write_text("noise", encoding="utf-8")
    torch.jit.script(StandIn()).save(str(path / "i3d.pt"))
    (path / "minit2v-tiny-clip.json").write_text(json.dumps({
        "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}))
    open_clip.add_model_config(path / "minit2v-tiny-clip.json")
    state = open_clip.create_model("minit2v-tiny-clip").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, path / "clip.safetensors")
    return path


def test_the_released_models_way_from_a_folder_of_films(folder, tmp_path, capsys):
    """The mini model in the place of the released one: the same command, from films and captions to a table."""
    files = {"--real": "films", "--i3d": "i3d.pt", "--clip": "clip.safetensors"}
    options = [text for option, name in files.items() for text in (option, str(folder / name))]
    status = cli.main(["evaluate", "--clips", "4", "--steps", "1", "--clip-model", "minit2v-tiny-clip", *options,
                       "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "| FVD ↓ (biased) | 4 films |" in printed.out and "| CLIPSIM ↑ | 4 films |" in printed.out
    assert "CLIPSIM (4 films): real clips are not surely worse with their frames shuffled" in printed.out
    assert "--i3d-sha256" in printed.err
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["figures"]
    assert [row["measure"] for row in rows] == ["FVD", "CLIPSIM"] and fvd.CLIPS == 2048
    assert rows[0]["model"]["value"] > 0 and -1 <= rows[1]["model"]["value"] <= 1


class Remembers:
    """A perfect generator: it shows the very film that a caption was told of, the first one that it finds."""

    def __init__(self, films):
        self.config, self.asked = mini(), []
        self.films = {path.read_text(encoding="utf-8"): path.with_suffix(".gif")
                      for path in sorted(films.glob("*.txt"), reverse=True) if path.stem != "damaged"}

    def __call__(self, prompts, seed, progress):
        self.asked += prompts
        return torch.stack([video.load(self.films[prompt]) for prompt in prompts])


@pytest.mark.filterwarnings("ignore:i3d.pt is a program")
def test_a_perfect_generator_has_just_the_floor_and_a_damaged_film_is_left_out(folder):
    """Model, shuffled and real are five clips each against the same six others: like is compared with like."""
    pipe = Remembers(folder / "films")
    with pytest.warns(UserWarning, match="left out: .*damaged.mp4 cannot be read"):
        row, = evaluate.against_footage(pipe, folder / "films", 20, folder / "i3d.pt", None, seed=2, progress=False)
    assert row["count"] == len(pipe.asked) == 5 and "damaged" not in pipe.asked and row["clips"] == "5 films"
    films = [video.load(path) for path in (folder / "films").glob("*.gif")]
    own = [video.load(pipe.films[prompt]) for prompt in pipe.asked]
    rest = [film for film in films if not any(torch.equal(film, one) for one in own)]
    assert len(rest) == 6                                      # the two that share a caption are both among them
    features = [StandIn()(torch.stack(lot).permute(0, 4, 1, 2, 3)) for lot in (own, rest)]
    assert row["model"]["value"] == row["real"]["value"] == pytest.approx(fvd.fvd(*features), rel=1e-4)
    assert row["real gets worse when shuffled"] == (row["real"]["high"] < row["real shuffled"]["low"])
    assert row["shuffled"]["value"] > row["real"]["value"]


def test_clipsims_chance_is_another_caption(folder):
    """Two films share a caption, and neither may have it as a wrong one. Where all share one, there is no chance."""
    pipe = Remembers(folder / "films")
    with pytest.warns(UserWarning, match="left out: .*damaged.mp4"):
        row, = evaluate.against_footage(pipe, folder / "films", 20, None, folder / "clip.safetensors", None,
                                        "minit2v-tiny-clip", progress=False)
    assert row["count"] == len(pipe.asked) == 11 and len(set(pipe.asked)) == 10          # without I3D, no halves
    reader = fvd.Clip(folder / "clip.safetensors", "minit2v-tiny-clip")
    clips = reader.embed(torch.stack([video.load(pipe.films[prompt]) for prompt in pipe.asked]), progress=False)
    wrong = [next(text for text in (2 * pipe.asked)[i:] if text != pipe.asked[i]) for i in range(11)]
    assert row["chance"]["value"] == pytest.approx(float((clips * reader.embed_text(wrong)).sum(1).mean()), abs=1e-5)


def test_films_of_one_caption_have_no_chance(folder, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.gif").write_bytes((folder / "films" / f"{i}.gif").read_bytes())
        (tmp_path / f"{i}.txt").write_text("a thing that moves", encoding="utf-8")
    given = tmp_path, 20, None, folder / "clip.safetensors", None, "minit2v-tiny-clip"
    row, = evaluate.against_footage(Remembers(tmp_path), *given, progress=False)
    assert "chance" not in row and evaluate.table([row]).splitlines()[-1].count("|") == 6
    with pytest.raises(ValueError, match="3 of the 4 films .* were read, for 3 clips; a distance needs 4"):
        evaluate.against_footage(Remembers(tmp_path), tmp_path, 3, *given[2:], progress=False)
