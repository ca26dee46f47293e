"""FVD and CLIPSIM, on stand-ins: the real networks are not here, but the way to them is the same."""

import hashlib
import json
import warnings
import weakref

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from minit2v import fvd, video
from minit2v.config import mini


class StandIn(torch.nn.Module):
    """Called as I3D is. What it answers shows how it was called."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True):
        assert x.dtype == torch.uint8 and x.shape[1] == 3, "clips of StyleGAN-V are (N, 3, F, H, W), 0 to 255"
        assert rescale and resize and return_features
        x = x.float() / 127.5 - 1
        first, last = x[:, :, 0].mean(dim=(2, 3)), x[:, :, -1].mean(dim=(2, 3))
        return torch.cat([x.mean(dim=(2, 3, 4)), last - first, x.std(dim=(2, 3, 4))], dim=1)       # (N, 9)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of open_clip with 32 numbers a vector, random weights, in a file; and its name."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "minit2v-test-clip.json").write_text(json.dumps({
        "embed_dim": 32, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}))
    open_clip.add_model_config(folder / "minit2v-test-clip.json")
    model = open_clip.create_model("minit2v-test-clip")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.bin")
    return folder, model.eval()


def random_clips(seed, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- I3D ---

def test_i3d_is_called_as_the_protocol_says(i3d):
    clips = random_clips(0, 5, 16, 8, 10, 3)
    with pytest.warns(UserWarning, match="is a program.*--i3d-sha256 [0-9a-f]{64}"):
        detector = fvd.load_i3d(i3d)
    found = fvd.i3d_features(detector, clips, batch=2, progress=False)
    expected = StandIn()(clips.permute(0, 4, 1, 2, 3))
    assert found.shape == (5, 9) and torch.allclose(found, expected, atol=1e-6)


def test_fvd_is_style_gan_vs_formula():
    """|m|^2 + tr(S_a + S_b - 2 (S_b S_a)^(1/2)), covariances divided by N, as that project's code has it."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (np.random.RandomState(seed).randn(50, 6) * (1 + seed) + seed for seed in (0, 1))
    moments = [(x.mean(0), x.T @ x / len(x) - np.outer(x.mean(0), x.mean(0))) for x in (a, b)]
    root = linalg.sqrtm(moments[0][1] @ moments[1][1]).real
    expected = np.square(moments[0][0] - moments[1][0]).sum() + np.trace(moments[0][1] + moments[1][1] - 2 * root)
    assert fvd.fvd(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-8)


def test_a_digest_that_is_known_decides_before_the_file_is_opened(i3d, tmp_path):
    digest = hashlib.sha256(i3d.read_bytes()).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fvd.load_i3d(i3d, digest.upper())
    other = tmp_path / "other.pt"
    other.write_bytes(b"a program of somebody else")
    with pytest.raises(ValueError, match="another file, and it was not opened"):
        fvd.load_i3d(other, digest)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_that_hold_no_i3d(tmp_path):
    with pytest.raises(FileNotFoundError, match="i3d_torchscript.pt"):
        fvd.load_i3d(tmp_path / "none.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is no TorchScript"):
        fvd.load_i3d(tmp_path / "weights.pt")


def test_too_few_frames_for_i3d():
    with pytest.raises(ValueError, match="9 frames.*10.*16"):
        fvd.i3d_features(StandIn(), random_clips(0, 2, 9, 8, 8, 3))


# --- CLIP ---

@pytest.mark.parametrize("name", ("weights.safetensors", "weights.bin"))
def test_clip_from_a_file_is_the_model_that_was_saved(tiny_clip, name):
    folder, model = tiny_clip
    state = torch.random.get_rng_state()
    found = fvd.Clip(folder / name, "minit2v-test-clip")
    assert torch.equal(state, torch.random.get_rng_state())                       # nothing was drawn on the way
    texts = ["a panda eats bamboo", "a red circle"]
    tokens = open_clip.get_tokenizer("minit2v-test-clip")(texts)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(tokens), dim=-1)
        assert torch.allclose(found.embed_text(texts, batch=1), expected, atol=1e-5)
        clips = random_clips(1, 2, 20, 32, 32, 3)
        picked = clips[:, torch.linspace(0, 19, 16).round().long()]               # 16 of 20, evenly
        each = F.normalize(model.encode_image(found.pixels(picked.flatten(0, 1))), dim=-1).unflatten(0, (2, 16))
    assert torch.allclose(found.embed(clips, progress=False), F.normalize(each.mean(1), dim=-1), atol=1e-5)


def test_clipsim_does_not_see_the_order_of_frames(tiny_clip):
    """Known beforehand, and a reason why it must not stand alone."""
    reader = fvd.Clip(tiny_clip[0] / "weights.safetensors", "minit2v-test-clip")
    clips = random_clips(2, 2, 16, 32, 32, 3)
    assert torch.allclose(reader.embed(clips, progress=False), reader.embed(clips.flip(1), progress=False), atol=1e-5)


@pytest.mark.parametrize("height, width", ((48, 64), (64, 48), (32, 32), (20, 30)))
def test_pixels_are_those_of_open_clips_own_transform(tiny_clip, height, width):
    """On a smooth picture; Pillow rounds after each of its two passes, hence 1.6 levels of 255."""
    reader = fvd.Clip(tiny_clip[0] / "weights.safetensors", "minit2v-test-clip")
    ys, xs = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    frame = (torch.stack([ys + 0 * xs, xs + 0 * ys, (ys - xs).abs()], dim=-1) * 255).round().to(torch.uint8)
    theirs = open_clip.image_transform(32, is_train=False, mean=fvd.CLIP_MEAN, std=fvd.CLIP_STD)(
        Image.fromarray(frame.numpy()))
    assert torch.allclose(reader.pixels(frame[None])[0], theirs, atol=1.6 / 255 / min(fvd.CLIP_STD))


def test_hard_edges_overshoot_as_little_as_open_clips(tiny_clip):
    """Bicubic weights are negative in places: beside an edge there is no darker than black, as in a picture."""
    reader = fvd.Clip(tiny_clip[0] / "weights.safetensors", "minit2v-test-clip")
    frame = torch.zeros(64, 64, 3, dtype=torch.uint8)
    frame[:, 20:41] = 255
    theirs = open_clip.image_transform(32, is_train=False, mean=fvd.CLIP_MEAN, std=fvd.CLIP_STD)(
        Image.fromarray(frame.numpy()))
    assert torch.allclose(reader.pixels(frame[None])[0], theirs, atol=1.6 / 255 / min(fvd.CLIP_STD))


def test_files_that_hold_no_clip(tiny_clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="ViT-B/32"):
        fvd.Clip(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="knows no model 'ViT-B-33'.*ViT-B-32-quickgelu"):
        fvd.Clip(tiny_clip[0] / "weights.bin", "ViT-B-33")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of open_clip's minit2v-test-clip"):
        fvd.Clip(tmp_path / "other.safetensors", "minit2v-test-clip")
    with pytest.raises(ValueError, match="does not hold the weights"):            # a pickle that wants to run code
        torch.save({"evil": Evil()}, tmp_path / "evil.bin")
        fvd.Clip(tmp_path / "evil.bin", "minit2v-test-clip")
    assert not Evil.ran


# --- a folder of films ---

def test_films_and_a_models_clips_pass_by_and_are_not_kept(tmp_path):
    """2048 clips of 16 x 256 x 256 are 6 GB. Row i of each kind is of caption i; films that lend none are "other"."""
    for i in range(9):
        clip = torch.full((16, 16, 16, 3), 25 * i, dtype=torch.uint8)
        clip[torch.arange(16), :, torch.arange(16)] += 20                                      # a line that moves
        video.save(clip, tmp_path / f"{i}.gif", fps=8)
        (tmp_path / f"{i}.txt").write_text(str(25 * i), encoding="utf-8")
    refs, sizes = [], []

    def mean(clips):
        refs.append(weakref.ref(clips))
        sizes.append((len(clips), sum(ref() is not None for ref in refs)))
        return clips.float().mean(dim=(1, 2, 3, 4))[:, None]                                   # (N, 1)

    def pipe(prompts, seed, progress):
        return torch.stack([torch.full((16, 64, 64, 3), int(prompt), dtype=torch.uint8) for prompt in prompts])

    pipe.config = mini()
    for halves, wanted in ((False, 6), (True, 4)):
        captions, kinds = fvd.collect(pipe, tmp_path, 6, {"mean": mean}, halves, progress=False)
        assert len(captions) == wanted
        levels = torch.tensor([float(text) for text in captions])[:, None]
        for kind in ("model", "shuffled", "real", "real shuffled"):
            assert torch.allclose(kinds[kind]["mean"], levels, atol=5)                         # the line adds 1 or 2
        assert ("other" in kinds) is halves
    apart = torch.cdist(kinds["other"]["mean"], kinds["real"]["mean"])
    assert len(kinds["other"]["mean"]) == 5 and apart.min() > 15
    assert max(count for count, _ in sizes) == 4 and max(alive for _, alive in sizes) == 2     # and the same, shuffled


class Evil:
    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    Evil.ran = True
