"""Clips as files: every kind is written, read back and compared; nothing half-written is left behind."""

import json
import os
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from minit2v import video
from minit2v.files import check_folder, write_whole

SETTINGS = {"prompt": "一个红色的圆", "seed": 3, "guidance_scale": 9.0}


def moving_bar(frames=6, height=32, width=48):
    """A white bar that steps right over a blue ground: few colours, so that a GIF can hold it exactly."""
    clip = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    clip[..., 2] = 200
    for i in range(frames):
        clip[i, :, 6 * i:6 * i + 8] = 255
    return clip


def test_to_uint8_rounds_or_truncates():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 1, 6).repeat(3, 1, 1, 1)     # (3, 1, 1, 6)
    assert video.to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    assert video.to_uint8(x, "truncate")[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    with pytest.raises(ValueError, match="floor"):
        video.to_uint8(x, "floor")


def test_to_uint8_moves_the_colours_last():
    x = torch.rand(2, 3, 4, 5, 6) * 2 - 1                                                     # (N, 3, F, H, W)
    clip = video.to_uint8(x)
    assert clip.shape == (2, 4, 5, 6, 3) and clip.dtype == torch.uint8
    expected = ((x[1, 2, 3, 4, 5] + 1) * 127.5).round()
    assert clip[1, 3, 4, 5, 2] == expected


@pytest.mark.parametrize("ending", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [8, 24])
def test_loops_come_back_bit_for_bit(tmp_path, ending, fps):
    clip = moving_bar()
    path = video.save(clip, tmp_path / f"clip{ending}", fps=fps, settings=SETTINGS)
    assert torch.equal(video.load(path), clip)
    assert video.read_settings(path) == {"num_frames": 6, "fps": fps, **SETTINGS}


@pytest.mark.parametrize("ending", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [3, 8, 12, 30])
def test_frames_that_stand_still_are_not_lost(tmp_path, ending, fps):
    bar = moving_bar(3)
    clip = torch.stack([bar[0], bar[0], bar[1], bar[1], bar[1], bar[2]] + [bar[2]] * 10)
    assert torch.equal(video.load(video.save(clip, tmp_path / f"clip{ending}", fps=fps)), clip)
    still = bar[:1].repeat(16, 1, 1, 1)
    assert torch.equal(video.load(video.save(still, tmp_path / f"still{ending}", fps=fps)), still)


@pytest.mark.parametrize("fps", [8, 12.5])
def test_mp4_comes_back_nearly_equal_at_its_frame_rate(tmp_path, fps):
    clip = moving_bar()
    path = video.save(clip, tmp_path / "clip.mp4", fps=fps, settings=SETTINGS)
    back = video.load(path)
    assert back.shape == clip.shape
    assert (back.float() - clip.float()).abs().mean() < 4                     # lossy, colours at half size
    assert video.read_settings(path) == {"num_frames": 6, "fps": fps, **SETTINGS}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert stream.average_rate == fps


def test_png_is_a_film_strip(tmp_path):
    clip = moving_bar(16)
    path = video.save(clip, tmp_path / "clip.png", settings=SETTINGS)
    strip = video.film_strip(clip)
    assert strip.shape == (128, 8 * 4 * 48 + 7 * 2, 3)                        # 8 frames, four times as large, 7 gaps
    with Image.open(path) as image:
        assert image.size == (strip.shape[1], strip.shape[0])
        assert image.getpixel((4, 4)) == tuple(strip[4, 4].tolist())
    assert video.read_settings(path)["prompt"] == SETTINGS["prompt"]
    with pytest.raises(ValueError, match="picture"):
        video.load(path)


def test_film_strip_takes_first_and_last_frame():
    clip = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).repeat(1, 4, 4, 3)
    strip = video.film_strip(clip, frames=4, scale=1, gap=1)                  # (4, 4 * 4 + 3, 3)
    assert strip[0, [0, 5, 10, 15], 0].tolist() == [0, 3, 6, 9]
    assert strip[0, [4, 9, 14], 0].tolist() == [255, 255, 255]
    assert video.film_strip(clip[:2], frames=8, scale=1).shape == (4, 2 * 4 + 2, 3)
    with pytest.raises(ValueError, match="frames=0"):
        video.film_strip(clip, frames=0)


def test_load_takes_evenly_spaced_frames(tmp_path):
    clip = moving_bar(7)
    path = video.save(clip, tmp_path / "clip.webp")
    assert torch.equal(video.load(path, num_frames=3), clip[[0, 3, 6]])
    with pytest.raises(ValueError, match="num_frames=9.*7 frames"):
        video.load(path, num_frames=9)


def test_show_carries_the_clip_in_the_page():
    pytest.importorskip("IPython")
    with pytest.raises(ValueError, match="at most 50"):
        video.show(moving_bar(), fps=60)
    page = video.show(moving_bar(), alt='a "bar"').data
    assert page.count("data:image/gif;base64,") == 1 and 'alt="a &quot;bar&quot;"' in page
    assert video.show(moving_bar()[None].repeat(3, 1, 1, 1, 1)).data.count("<img") == 3


@pytest.mark.parametrize("name, error, message", [
    ("clip.avi", ValueError, r"\.mp4, \.gif, \.webp, \.png"),
    ("clip", ValueError, "must end in"),
    ("none/clip.gif", FileNotFoundError, "no folder"),
    ("folder.gif", IsADirectoryError, "is a folder"),
    ("file/clip.gif", FileNotFoundError, "no folder"),
])
def test_bad_paths(tmp_path, name, error, message):
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        video.save(moving_bar(), tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="takes no file"):
            video.save(moving_bar(), tmp_path / "clip.gif")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("folder, name", [
    pytest.param("/proc", "clip.gif", marks=pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="of Linux")),
    (".", "x" * 300 + ".gif")])
def test_a_place_that_takes_no_file_is_told_before_the_work(folder, name):
    """For the superuser, too: os.access says yes to both."""
    path = Path(folder, name)
    with pytest.raises(PermissionError, match=r"cannot write '.*gif': the folder '.*' takes no file.*another") as told:
        video.check_path(path)
    assert repr(str(path)) in str(told.value) and ".part" not in str(told.value)


def test_the_look_at_a_place_leaves_nothing_there(tmp_path):
    old = tmp_path / "clip.gif"
    old.write_bytes(b"the file of yesterday")
    assert video.check_path(old) == old and video.check_path(tmp_path / "new.gif") == tmp_path / "new.gif"
    assert check_folder(tmp_path) == tmp_path and check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"] and old.read_bytes() == b"the file of yesterday"
    for folder in (old, old / "runs"):
        with pytest.raises(NotADirectoryError, match="cannot write into.*clip.gif' is no folder; choose another"):
            check_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.gif")                                  # as /dev/null is none, which root could replace
    with pytest.raises(IsADirectoryError, match="no plain file"):
        video.save(moving_bar(), tmp_path / "pipe.gif")


def test_what_a_kind_of_file_cannot_hold_is_told_before_the_work(tmp_path):
    for name, fps, size in (("a.gif", 50, (33, 48)), ("a.webp", 500, (33, 47)), ("a.mp4", 1000, (32, 48)),
                            ("a.png", 60, (33, 47)), ("a.gif", None, None)):
        video.check_path(tmp_path / name, fps, size)
    for name, fps, size, says in (("a.gif", 50.1, None, "fps is 50.1.*at most 50 frames a second"),
                                  ("a.webp", 501, None, "at most 500"), ("a.mp4", 1001, None, "at most 1000"),
                                  ("a.png", 0, None, "above 0"), ("a.mp4", 8, (32, 47), "even sizes.*32 x 47")):
        with pytest.raises(ValueError, match=says):
            video.check_path(tmp_path / name, fps, size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("clip, message", [
    (torch.zeros(2, 4, 4, 3), "uint8.*float32"),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "shape"),
    (torch.zeros(0, 4, 4, 3, dtype=torch.uint8), "shape"),
    (torch.zeros(5, 2, 4, 4, 3, dtype=torch.uint8), "5 clips"),
])
def test_bad_clips(tmp_path, clip, message):
    with pytest.raises(ValueError, match=message):
        video.save(clip, tmp_path / "clip.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 99999])
def test_bad_frame_rates(tmp_path, fps):
    with pytest.raises(ValueError, match="frames a second"):
        video.save(moving_bar(), tmp_path / "clip.mp4", fps=fps)
    with pytest.raises(ValueError, match="at most 50"):
        video.save(moving_bar(), tmp_path / "clip.gif", fps=60)


def test_nothing_half_written_is_left(tmp_path):
    old = tmp_path / "clip.mp4"
    old.write_bytes(b"the file of yesterday")
    with pytest.raises(ValueError, match="even sizes.*33 x 48"):
        video.save(moving_bar(height=33), old)
    with pytest.raises(TypeError):
        video.save(moving_bar(), tmp_path / "clip.gif", settings={"seed": object()})            # JSON cannot hold it
    with pytest.raises(RuntimeError, match="half way"):
        with write_whole(old) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("half way")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert old.read_bytes() == b"the file of yesterday"
    video.save(moving_bar(), old)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"] and len(video.load(old)) == 6


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_broken_files_are_named(tmp_path, ending):
    path = tmp_path / f"clip{ending}"
    with pytest.raises(FileNotFoundError, match="clip"):
        video.load(path)
    path.write_bytes(b"no clip at all, whatever the name says")
    with pytest.raises(ValueError, match=f"clip{ending} cannot be read"):
        video.load(path)
    with pytest.raises(ValueError, match=f"clip{ending} cannot be read"):
        video.read_settings(path)
    video.save(moving_bar(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"clip{ending} cannot be read"):
        video.load(path)


def test_a_foreign_comment_is_no_settings(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "other.gif", comment=b"made by hand")
    assert video.read_settings(tmp_path / "other.gif") == {}
    Image.new("RGB", (4, 4)).save(tmp_path / "list.gif", comment=json.dumps([1]).encode())
    assert video.read_settings(tmp_path / "list.gif") == {}
    assert video.load(tmp_path / "other.gif").shape == (1, 4, 4, 3)
