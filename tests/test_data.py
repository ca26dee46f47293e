"""Training data: shards on disk, the same scenes always, and batches that follow from a seed."""

import random
import re
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

from minit2v import data
from minit2v.autoencoder import Autoencoder
from minit2v.captions import CHINESE_COLOURS, VOCABULARY, unknown_words
from minit2v.config import AutoencoderConfig
from minit2v.data import Clips, encode_world, encoder_fingerprint, scenes_of, to_model
from minit2v.tensorfiles import fingerprint
from minit2v.world import COLOURS, combinations, render


@dataclass
class Corners:
    """An autoencoder that can be checked by eye: a latent is the mean colour of a corner of 8 x 8 pixels."""

    breaks_after: int = 10 ** 9
    calls: int = 0
    weight: float = 1.0
    decoder: float = 1.0
    config = AutoencoderConfig()

    def state_dict(self):
        return {"encoder.weight": torch.tensor([self.weight]), "decoder.weight": torch.tensor([self.decoder])}

    def encode(self, clips):
        self.calls += 1
        if self.calls > self.breaks_after:
            raise KeyboardInterrupt
        corner = self.weight * clips[..., :8, :8].mean(dim=(-1, -2), keepdim=True)                   # (N, 3, F, 1, 1)
        return torch.cat([corner, clips.mean(dim=(1, 3, 4), keepdim=True)], dim=1)     # (N, 4, F, 1, 1)


@pytest.fixture
def shards_of_eight(monkeypatch):
    monkeypatch.setattr(data, "SHARD", 8)


def encoded(folder, shards, **options):
    encode_world(folder, Corners(), shards, progress=False, **options)
    return folder


# --- scenes and clips ---

def test_clips_as_networks_see_them():
    clips = torch.randint(0, 256, (2, 5, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = to_model(clips)
    assert seen.shape == (2, 3, 5, 6, 7) and seen.dtype == torch.float32
    assert torch.allclose(seen[1, 2, 3, 4, 5], clips[1, 3, 4, 5, 2].float() / 255 * 2 - 1)
    extremes = torch.tensor([0, 0, 0, 255, 255, 255], dtype=torch.uint8).reshape(1, 1, 1, 2, 3)
    assert to_model(extremes).unique().tolist() == [-1, 1]


def test_a_shard_has_always_the_same_scenes():
    assert scenes_of(1, 0, 30) == scenes_of(1, 0, 30) == scenes_of(1, 0)[:30]
    assert len(scenes_of(1, 0)) == data.SHARD == 1000
    firsts = [scenes_of(level, shard, 1)[0] for level in (1, 2, 3) for shard in range(4)]
    assert len(set(firsts)) == 12 and [len(s.things) for s in firsts[3:5]] == [1, 2]


def test_unseen_combinations_are_in_no_shard():
    unseen = set(combinations("unseen"))
    scenes = [s for level, shard in ((1, 0), (1, 1), (2, 0), (3, 0)) for s in scenes_of(level, shard, 400)]
    assert not unseen & {(k.colour, k.shape, k.motion) for s in scenes for k in s.things}


# --- shards ---

def test_a_shard_holds_the_latents_of_its_scenes(tmp_path, shards_of_eight):
    encoded(tmp_path / "clips", {1: 2, 2: 1}, batch=3)                        # 3 does not divide 8
    assert sorted(p.name for p in (tmp_path / "clips").iterdir()) == [
        "level1_000.safetensors", "level1_001.safetensors", "level2_000.safetensors"]
    latents = load_file(tmp_path / "clips" / "level1_001.safetensors")["latents"]
    assert latents.shape == (8, 4, 16, 1, 1) and latents.dtype == torch.float16
    expected = Corners().encode(to_model(render(scenes_of(1, 1, 8))))
    assert torch.equal(latents, expected.half())

    clips = Clips(tmp_path / "clips", {1: 2, 2: 1})
    assert len(clips) == 24 == len(clips.latents)
    assert clips.scenes == [*scenes_of(1, 0, 8), *scenes_of(1, 1, 8), *scenes_of(2, 0, 8)]
    assert torch.equal(clips.latents[8:16], latents)
    assert len(Clips(tmp_path / "clips", {2: 1})) == 8 and len(Clips(tmp_path / "clips", {1: 1, 3: 0})) == 8


def test_the_autoencoder_itself_fits_in(tmp_path, shards_of_eight):
    config = AutoencoderConfig(channels=4, multipliers=(1, 1, 2, 2), res_blocks=1, norm_groups=2, scaling_factor=0.5)
    autoencoder = Autoencoder(config)
    encode_world(tmp_path, autoencoder, {1: 1}, progress=False)
    latents = Clips(tmp_path, {1: 1}).latents
    assert latents.shape == (8, 4, 16, 8, 8)
    with torch.no_grad():
        alone = autoencoder.encode(to_model(render(scenes_of(1, 0, 8)[5:6])))
    assert torch.allclose(latents[5:6].float(), alone, atol=2e-3 * alone.abs().max().item())


def test_encoding_under_autocast_stores_half_precision(tmp_path, shards_of_eight):
    """As `train --dtype bfloat16` does: autocast joins no float16, so the latents are joined before they are halved."""
    sizes = AutoencoderConfig(channels=4, multipliers=(1, 1, 1, 1), res_blocks=1, norm_groups=2)
    with torch.autocast("cpu", torch.bfloat16):
        encode_world(tmp_path, Autoencoder(sizes), {1: 1}, progress=False, batch=4)
    latents = load_file(tmp_path / "level1_000.safetensors")["latents"]
    assert latents.shape == (8, 4, 16, 8, 8) and latents.dtype == torch.float16 and latents.isfinite().all()


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path, shards_of_eight):
    with pytest.raises(KeyboardInterrupt):
        encode_world(tmp_path, Corners(breaks_after=3), {1: 3}, batch=4, progress=False)      # in the second shard
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["level1_000.safetensors"]
    stamp = (tmp_path / "level1_000.safetensors").stat().st_mtime_ns

    rest = Corners()
    encode_world(tmp_path, rest, {1: 3}, batch=4, progress=False)
    assert rest.calls == 4 and (tmp_path / "level1_000.safetensors").stat().st_mtime_ns == stamp
    encode_world(tmp_path, Corners(breaks_after=0), {1: 3}, progress=False)                   # nothing left to do
    whole = encoded(tmp_path / "whole", {1: 3})
    assert torch.equal(Clips(tmp_path, {1: 3}).latents, Clips(whole, {1: 3}).latents)


def test_shards_of_another_encoder_or_world_are_made_anew(tmp_path, shards_of_eight, monkeypatch):
    encoded(tmp_path, {1: 2})
    old = Clips(tmp_path, {1: 2}).latents
    encode_world(tmp_path, Corners(breaks_after=0, decoder=2.0), {1: 2}, progress=False)      # same encoder: kept
    encode_world(tmp_path, Corners(weight=2.0), {1: 2}, progress=False)
    assert torch.allclose(Clips(tmp_path, {1: 2}).latents[:, :3].float(), 2 * old[:, :3].float(), atol=1e-2)

    encoded(tmp_path, {1: 2})
    monkeypatch.setattr(data, "render", lambda scenes, **how: 255 - render(scenes, **how))    # the world has changed
    encoded(tmp_path, {1: 2})
    assert torch.allclose(Clips(tmp_path, {1: 2}).latents.float(), -old.float(), atol=1e-2)

    (tmp_path / "level1_001.safetensors").write_bytes(b"torn")
    encoded(tmp_path, {1: 2})
    assert len(Clips(tmp_path, {1: 2})) == 16


def test_a_fingerprint_changes_with_whatever_it_is_of():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    others = [{**tensors, "a": tensors["a"].view(3, 2)}, {**tensors, "a": tensors["a"].double()},
              {"a": tensors["a"], "c": tensors["b"]}, {**tensors, "c": torch.zeros(0)}, {"a": tensors["a"]}, {},
              {**tensors, "a": tensors["a"] + torch.eye(2, 3) * 1e-6}]
    found = [fingerprint(tensors), *map(fingerprint, others), fingerprint(tensors, 1), fingerprint(tensors, "1"),
             fingerprint(tensors, ["a", "b"]), fingerprint(tensors, ["a|b"])]
    assert len(set(found)) == len(found) and all(re.fullmatch("[0-9a-f]{64}", one) for one in found)
    assert fingerprint({"b": tensors["b"], "a": tensors["a"].T.contiguous().T.requires_grad_()}) == found[0]


def test_the_fingerprint_of_an_encoder_is_not_that_of_the_decoder():
    sizes = AutoencoderConfig(channels=4, multipliers=(1, 1, 1, 1), res_blocks=1, norm_groups=2)
    torch.manual_seed(0)
    one, found = Autoencoder(sizes), []
    other = Autoencoder(replace(sizes, scaling_factor=0.5))
    other.load_state_dict(one.state_dict())
    first = encoder_fingerprint(one)
    assert first == encoder_fingerprint(one) != encoder_fingerprint(other)
    assert encoder_fingerprint(one, drawing=torch.zeros(1)) != first
    with torch.no_grad():
        for name, p in one.named_parameters():
            before = encoder_fingerprint(one)
            p += 1
            found.append((name.startswith(("decoder.", "post_quant_conv.")), encoder_fingerprint(one) == before))
    assert all(decodes == same for decodes, same in found) and len(set(found)) == 2


def test_a_shard_is_written_whole_or_not_at_all(tmp_path, shards_of_eight, monkeypatch):
    def fills_up(tensors, path, metadata):
        path.write_bytes(b"half a shard")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(data, "save_file", fills_up)
        encoded(tmp_path, {1: 1})
    assert not list(tmp_path.glob("*.safetensors"))
    assert len(Clips(encoded(tmp_path, {1: 1}), {1: 1})) == 8
    assert [p.name for p in tmp_path.iterdir()] == ["level1_000.safetensors"]


# --- batches ---

@pytest.fixture
def clips(tmp_path, shards_of_eight):
    return Clips(encoded(tmp_path, {1: 1, 2: 1}), {1: 1, 2: 1})


def test_a_batch_follows_from_its_seed(clips):
    latents, texts = clips.batch(random.Random(3), 10)
    again, same = clips.batch(random.Random(3), 10)
    assert latents.shape == (10, 4, 16, 1, 1) and latents.dtype == torch.float32 and len(texts) == 10
    assert torch.equal(latents, again) and texts == same
    other, different = clips.batch(random.Random(4), 10)
    assert not torch.equal(latents, other) and texts != different


def test_clips_of_more_weight_are_drawn_more_often(tmp_path, shards_of_eight):
    folder = encoded(tmp_path, {1: 1})
    chosen = scenes_of(1, 0, 8)[3]
    clips = Clips(folder, {1: 1})
    for drawn, expected in ((clips.weighted(lambda scene: 3 if scene == chosen else 1), 3 / 10), (clips, 1 / 8)):
        latents, _ = drawn.batch(random.Random(0), 4000)
        share = (latents == clips.latents[3].float()).flatten(1).all(1).float().mean().item()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_captions_belong_to_their_clips_in_both_languages(clips):
    chinese_of = dict(zip(("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
                          ("红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色")))
    latents, texts = clips.batch(random.Random(0), 200)
    chinese = 0
    for latent, text in zip(latents.half(), texts):
        row = next(i for i, own in enumerate(clips.latents) if torch.equal(own, latent))
        is_chinese = any(word in text for word in VOCABULARY["zh"])
        for thing in clips.scenes[row].things:
            assert (chinese_of[thing.colour] if is_chinese else thing.colour) in text
        assert unknown_words(text) == []
        chinese += is_chinese
    assert 60 < chinese < 140
    assert len(set(texts)) > 100                                               # worded anew each time


def test_some_captions_are_terse(clips):
    """A third of the terse ones say no colour, a third no motion, a third neither; without, all say both."""
    colours = {*COLOURS, *CHINESE_COLOURS.values()}
    texts = clips.terse(0.3).batch(random.Random(0), 3000)[1]
    silent = sum(not any(colour in text for colour in colours) for text in texts)
    assert abs(silent - 600) < 4 * (3000 * 0.2 * 0.8) ** 0.5
    assert all(any(colour in text for colour in colours) for text in clips.batch(random.Random(0), 500)[1])


def test_captions_are_dropped_as_often_as_asked(clips):
    assert clips.batch(random.Random(0), 50, drop=1.0)[1] == [""] * 50
    assert "" not in clips.batch(random.Random(0), 200, drop=0.0)[1]
    dropped = clips.batch(random.Random(0), 1000, drop=0.1)[1].count("")
    assert 60 < dropped < 140
