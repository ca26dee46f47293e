"""The configurations: written and read back, and told apart from what they are not."""

import pytest

from minit2v.config import ModelConfig, mini, modelscope_1_7b


@pytest.mark.parametrize("config", [mini(), modelscope_1_7b()], ids=lambda c: c.name)
def test_json_there_and_back(config):
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_two_models_differ_where_they_should():
    small, large = mini(), modelscope_1_7b()
    assert (large.autoencoder.downscale, small.autoencoder.downscale) == (8, 8)
    released = large.guidance_scale, large.autoencoder.scaling_factor, large.diffusion.prediction
    assert released == (9.0, 0.18215, "noise")
    assert (large.height, large.width, large.num_frames, large.fps) == (256, 256, 16, 8)
    assert small.diffusion.beta_end == large.diffusion.beta_end and small.num_frames == large.num_frames


@pytest.mark.parametrize("text, message", [
    ("[]", r"ModelConfig is \[\].*JSON object"),
    ('{"unet": 3}', "UNetConfig is 3.*JSON object"),
    ('{"colour": "red"}', "no field colour.*name"),
    ('{"unet": {"chanels": 3}}', "UNetConfig has no field chanels.*channels"),
    ("{", "Expecting"),
    ('{"unet": {"res_blocks": 10000000}}', "res_blocks is 10000000; it must be a whole number from 1 to 256"),
    ('{"text": {"layers": 0}}', "layers is 0"),
    ('{"height": "x"}', "height is 'x'; it must be a whole number"),
    ('{"num_frames": -1}', "num_frames is -1"),
    ('{"fps": true}', "fps is True"),
    ('{"guidance_scale": "9"}', "guidance_scale is '9'; it must be a number from 0"),
    ('{"autoencoder": {"scaling_factor": 0}}', "scaling_factor is 0"),
    ('{"autoencoder": {"multipliers": [1, "2"]}}', r"multipliers is \(1, '2'\); it must be a list of at most 8 whole"),
    ('{"unet": {"attention": [1, 0]}}', r"attention is \(1, 0\); .*true and false"),
    ('{"unet": {"multipliers": 4}}', "multipliers is 4; it must be a list"),
    ('{"diffusion": {"beta_end": NaN}}', "beta_end is nan"),
    ('{"diffusion": {"spacing": "bogus"}}', "spacing is 'bogus'; it must be one of None, 'modelscope'"),
    ('{"text": {"merges": 3}}', "merges is 3; it must be a text"),
    ('{"name": null}', "name is None"),
])
def test_what_is_no_configuration_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(text)


def test_the_released_scaling_factor_stands_in_one_place():
    from pathlib import Path

    import minit2v
    files = Path(minit2v.__file__).parent.glob("*.py")
    assert [f.name for f in files for line in f.read_text(encoding="utf-8").splitlines()
            if "0.18215" in line.split("#")[0]] == ["config.py"]
