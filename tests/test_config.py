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
