"""What the released weights cannot do is said where it is used, and a clip of NaN is never drawn."""

import warnings
from dataclasses import replace

import pytest
import torch
from test_pipeline import STEPS, make_pipe

from minit2v import limits, load
from minit2v.config import TextConfig
from minit2v.pipeline import TextToVideo, networks

CLIP = TextConfig(width=16, heads=2, layers=2)                        # CLIP's own vocabulary, as the released model


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A tiny model whose text tower reads what the released one reads."""
    config = replace(make_pipe(tmp_path_factory.mktemp("model")).config, text=CLIP)
    return TextToVideo(config, **networks(config)).save(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return make_pipe(tmp_path_factory.mktemp("own")).save(tmp_path_factory.mktemp("own_saved"))


# --- language ---

def test_chinese_gets_one_warning(released):
    pipe = load(released)
    with pytest.warns(UserWarning, match="English only.*'一个红色的圆'.*'сон'.*--translate") as caught:
        pipe(["一个红色的圆", "a red circle", "一个红色的圆"], negative_prompt="сон", **STEPS)
    assert len(caught) == 1 and caught[0].filename == __file__        # it points at the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("A café, naïve ﬁlm №１: 100 % “red” 🎈!", **STEPS)


def test_a_model_with_a_vocabulary_of_its_own_may_know_chinese(own):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(own)("红", **STEPS)


# --- the note ---

def test_limits_are_told_once_where_the_weights_are_loaded(released, own, capsys):
    limits.tell.cache_clear()
    load(own)
    assert capsys.readouterr().err == ""
    load(released)
    load(released)
    err = capsys.readouterr().err
    assert err.count("minit2v: note:") == 1 and err.count("\n") == 1
    for limit in ("non-commercial", "CC-BY-NC-4.0", "English only", "no legible text", "watermark", "bias"):
        assert limit in err


# --- half precision ---

def scale(pipe, part, layer, factor):
    """Makes a layer's numbers larger; the GroupNorm after it divides by the factor again."""
    with torch.no_grad():
        for p in getattr(pipe, part).get_submodule(layer).parameters():
            p.mul_(factor)
    return pipe


def test_an_autoencoder_too_large_for_half_precision(own, tmp_path):
    folder = scale(load(own), "autoencoder", "decoder.conv_in", 6e4).save(tmp_path)   # fits float16; its sums do not
    expected = load(folder)("red circle", guidance_scale=1.0, **STEPS)
    assert expected.float().std() > 5
    with pytest.raises(ValueError, match=r"decoding gave \d+ values that are NaN.*float16.*vae_dtype=\"float32\".*"
                                         r"--vae-dtype float32"):
        load(folder, dtype="float16")("red circle", **STEPS)
    pipe = load(folder, dtype="float16", vae_dtype="float32")
    assert pipe.dtype == torch.float16 and pipe.autoencoder.decoder.conv_in.weight.dtype == torch.float32
    clip = pipe("red circle", guidance_scale=1.0, **STEPS)
    assert (clip.float() - expected.float()).abs().mean() < 3         # of 255; half precision in the UNet remains
    pipe = load(folder, dtype="float16")                              # by hand, from weights rounded to float16
    pipe.autoencoder.float()
    clip = pipe("red circle", guidance_scale=1.0, **STEPS)
    assert (clip.float() - expected.float()).abs().mean() < 3


def test_a_unet_too_large_for_half_precision(own, tmp_path):
    folder = scale(load(own), "unet", "conv_in", 5e4).save(tmp_path)
    assert load(folder)("red circle", **STEPS).float().std() > 5
    with pytest.raises(ValueError, match=r"step 1 of 4 gave \d+ values.*float16.*float32, or in bfloat16"):
        load(folder, dtype="float16")("red circle", **STEPS)
    load(folder, dtype="bfloat16")("red circle", **STEPS)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_the_step_is_named(own, sampler):
    pipe = load(own)

    def damage(i, x0):
        if i == 1:
            pipe.unet.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="step 3 of 4 gave 768 values that are NaN or infinite .of 768., computed in "
                                         "float32.*damaged"):
        pipe("red circle", sampler=sampler, on_step=damage, **STEPS)


def test_a_sampler_that_tells_no_steps_is_watched_at_its_end(own):
    pipe = load(own)
    pipe.swap(dpm_solver_pp=lambda denoise, process, x, times, on_step: x * float("nan"))
    with pytest.raises(ValueError, match="step 4 of 4 gave 768 values that are NaN"):
        pipe("red circle", sampler="dpm++", **STEPS)


def test_number_types_of_the_autoencoder_are_checked(own):
    with pytest.raises(ValueError, match="'int8' is unknown"):
        load(own, vae_dtype="int8")
