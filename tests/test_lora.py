"""LoRA against its formula, and against peft and diffusers on the same UNet."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minit2v import lora
from minit2v.checkpoints import unet_to_diffusers
from minit2v.config import UNetConfig
from minit2v.unet import UNet

CONFIG = UNetConfig(channels=8, multipliers=(1, 2), attention=(True, False), res_blocks=1, head_dim=4, context_dim=6,
                    norm_groups=4)


def make(seed=0) -> UNet:
    unet, generator = UNet(CONFIG).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in unet.parameters():
            p.uniform_(-0.3, 0.3, generator=generator)
    return unet


def learnt(unet: UNet, **how) -> dict:
    """Adapters that are not at their start."""
    made, generator = lora.add(unet, **how), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in made.values():
            adapter.up.normal_(std=0.5, generator=generator)
    return made


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(2, 4, 3, 4, 4, generator=generator), torch.tensor([7, 500]),
            torch.randn(2, 5, 6, generator=generator))


def test_a_layer_is_the_formula():
    linear = nn.Linear(5, 3).double()
    adapter = lora.LoRA(linear, rank=2, alpha=6.0)
    with torch.no_grad():
        adapter.up.copy_(torch.arange(6.0).view(3, 2))
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)
    expected = torch.einsum("ni,oi->no", x, linear.weight) + linear.bias + 3.0 * torch.einsum(
        "ni,ri,or->no", x, adapter.down, adapter.up)
    assert torch.allclose(adapter(x), expected, atol=1e-12)


def test_it_starts_as_nothing_and_only_adapters_learn(inputs):
    unet = make()
    before = unet(*inputs)
    made = lora.add(unet, rank=2)
    assert torch.equal(unet(*inputs), before)
    assert all(re.search(r"\.attn[12]\.to_(q|k|v|out)$", name) for name in made) and len(made) % 8 == 0
    unet(*inputs).sum().backward()
    moved = {name.rsplit(".", 1)[1] for name, p in unet.named_parameters() if p.grad is not None}
    assert moved == {"down", "up"}
    assert 0 < lora.share(unet) < 0.2


def test_merged_it_computes_the_same_and_unmerged_it_is_as_before(inputs):
    unet = make()
    plain, weights = unet(*inputs), {name: p.clone() for name, p in unet.state_dict().items()}
    learnt(unet, rank=3, alpha=1.5)
    adapted = unet(*inputs)
    assert (adapted - plain).abs().max() > 0.05
    lora.merge(unet)
    lora.merge(unet)
    assert torch.allclose(unet(*inputs), adapted, atol=1e-4)
    lora.unmerge(unet)
    lora.remove(unet)
    assert all(torch.equal(p, weights[name]) for name, p in unet.state_dict().items())
    learnt(unet, rank=3, alpha=1.5)
    lora.merge(unet)
    lora.remove(unet)
    assert unet.state_dict().keys() == weights.keys() and torch.allclose(unet(*inputs), adapted, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_unmerged_in_another_type_it_is_in_that_type(dtype, inputs):
    """As if it had never been merged: the weights as they were, converted once."""
    unet, plain = make(), make().to(dtype)
    made = learnt(unet, rank=2)
    lora.merge(unet)
    unet.to(dtype)
    lora.unmerge(unet)
    assert {p.dtype for p in unet.parameters()} == {dtype}
    assert all(torch.equal(adapter.linear.weight, plain.get_submodule(name).weight) for name, adapter in made.items())
    x, t, context = inputs
    assert unet(x.to(dtype), t, context.to(dtype)).dtype == dtype


def test_saved_and_loaded(tmp_path, inputs):
    unet = make()
    learnt(unet, rank=2, alpha=8.0, where=r"attn2\.to_[qv]$")
    lora.save(unet, tmp_path / "adapter.safetensors")
    assert (tmp_path / "adapter.safetensors").stat().st_size < 20_000
    again = make()
    lora.load(again, tmp_path / "adapter.safetensors")
    assert lora.adapters(again).keys() == lora.adapters(unet).keys()
    assert torch.allclose(again(*inputs), unet(*inputs), atol=1e-5)


@pytest.fixture
def theirs():
    pytest.importorskip("peft", reason='peft is not installed: pip install -e ".[test]"')
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=6, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))
    network.load_state_dict(unet_to_diffusers(make().state_dict(), CONFIG))
    return network.eval()


def test_peft_reads_what_we_write_into_diffusers_unet(tmp_path, inputs, theirs):
    """Of a file that says nothing of alpha, alpha is the rank."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    unet = make()
    learnt(unet, rank=2, alpha=4.0)
    lora.save(unet, tmp_path / "lora.safetensors")
    stored = {key.removeprefix("unet."): value for key, value in load_file(tmp_path / "lora.safetensors").items()}
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in stored})
    network = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=layers), theirs)
    told = set_peft_model_state_dict(network, stored)
    assert not told.unexpected_keys and not [key for key in told.missing_keys if "lora" in key]
    with torch.no_grad():
        assert torch.allclose(network(*inputs).sample, unet(*inputs), atol=1e-4)


def pipeline_of(network):
    """diffusers' pipeline for this UNet, with next to nothing in it beside the UNet."""
    import diffusers

    return diffusers.TextToVideoSDPipeline(vae=diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2),
                                           text_encoder=None, tokenizer=None, unet=network,
                                           scheduler=diffusers.DDIMScheduler())


def test_diffusers_loads_what_we_write_by_the_lines_of_the_module(tmp_path, inputs, theirs):
    """The lines that the docstring gives are run as they stand there."""
    unet = make()
    learnt(unet, rank=2, alpha=4.0)
    lora.save(unet, tmp_path / "lora.safetensors")
    lines = re.findall(r"^    (.+)", lora.__doc__.partition("from diffusers.loaders")[2], flags=re.M)
    lines = ["from diffusers.loaders import PeftAdapterMixin", *lines]
    assert len(lines) == 3 and "load_lora_weights" in lines[2]
    pipe = pipeline_of(theirs)
    exec("\n".join(lines).replace("runs/cats/lora.safetensors", (tmp_path / "lora.safetensors").as_posix()),
         {"pipe": pipe})
    with torch.no_grad():
        assert torch.allclose(theirs(*inputs).sample, unet(*inputs), atol=1e-4)


def test_without_these_lines_diffusers_has_no_lora_for_this_unet(tmp_path, theirs):
    """What the docstring says of diffusers since 0.32. If this fails, they have mended it, and the lines can go."""
    pytest.importorskip("diffusers", minversion="0.32", reason="up to 0.31 it needed no help")
    from diffusers.loaders import PeftAdapterMixin

    assert not isinstance(theirs, PeftAdapterMixin)
    unet = make()
    learnt(unet, rank=2)
    lora.save(unet, tmp_path / "lora.safetensors")
    with pytest.raises(AttributeError, match="load_lora_adapter"):
        pipeline_of(theirs).load_lora_weights(tmp_path / "lora.safetensors")


# Of peft's settings, those that scale; each is judged by peft's own outputs.
SCALES = [{}, {"use_rslora": True}, {"alpha_pattern": {"attn1.to_q": 3, r"^down_blocks\..*to_out\.0": 12}},
          {"rank_pattern": {"to_out.0": 1}}, {"init_lora_weights": "gaussian", "lora_dropout": 0.5},
          {"use_rslora": True, "alpha_pattern": {"attn2.to_q": 3, "to_.*": 5}, "rank_pattern": {"attn2.to_q": 4}}]


def settings(**more) -> dict:
    return {"r": 2, "lora_alpha": 8, "target_modules": ["to_q", "to_out.0"], **more}


def filled(network):
    """peft's adapters, A and B, with random numbers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.3, generator=generator)
    return network.eval()


@pytest.mark.parametrize("more", SCALES)
def test_we_read_what_peft_writes(tmp_path, inputs, theirs, more):
    from peft import LoraConfig, get_peft_model

    wrapped = filled(get_peft_model(theirs, LoraConfig(**settings(**more))))
    wrapped.save_pretrained(tmp_path)
    unet = make()
    plain = unet(*inputs)
    lora.load(unet, tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        assert (unet(*inputs) - plain).abs().max() > 0.05
        assert torch.allclose(unet(*inputs), wrapped(*inputs).sample, atol=1e-4)


@pytest.mark.parametrize("more", SCALES)
def test_we_read_what_diffusers_writes(tmp_path, inputs, theirs, more):
    """As its training scripts write it, by peft's names and by its own: alpha stands in the header of the file."""
    pytest.importorskip("diffusers", minversion="0.34", reason="before 0.34 diffusers wrote no alpha")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    network = filled(inject_adapter_in_model(LoraConfig(**settings(**more)), theirs))
    layers = get_peft_model_state_dict(network)
    for tensors in (layers, convert_state_dict_to_diffusers(layers)):
        pipeline_of(network).save_lora_weights(tmp_path, unet_lora_layers=tensors,
                                               unet_lora_adapter_metadata=network.peft_config["default"].to_dict())
        unet = make()
        lora.load(unet, tmp_path / "pytorch_lora_weights.safetensors")
        with torch.no_grad():
            assert torch.allclose(unet(*inputs), network(*inputs).sample, atol=1e-4)
    assert ".lora.down.weight" in next(iter(tensors))


@pytest.mark.filterwarnings("ignore")                        # peft's, of such settings
@pytest.mark.parametrize("more, says", [
    ({"use_dora": True}, "sets use_dora to True, and here nothing but A, B and alpha can be read; merge the adapter"),
    ({"bias": "all"}, "sets bias to 'all'"),
    ({"bias": "lora_only"}, "sets bias to 'lora_only'"),
    ({"lora_bias": True}, "sets lora_bias to True"),
    ({"modules_to_save": ["conv_out"]}, r"sets modules_to_save to \['conv_out'\]"),
    ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa'"),
])
def test_what_is_more_than_a_and_b_is_refused_by_name(tmp_path, theirs, more, says):
    from peft import LoraConfig, get_peft_model

    get_peft_model(theirs, LoraConfig(**settings(**more))).save_pretrained(tmp_path)
    unet = make()
    with pytest.raises(ValueError, match=f"adapter_config.json {says}"):
        lora.load(unet, tmp_path / "adapter_model.safetensors")
    stored = load_file(tmp_path / "adapter_model.safetensors")
    header = json.dumps({f"unet.{name}": value for name, value in
                         json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8")).items()})
    save_file({key.replace("base_model.model.", "unet."): value for key, value in stored.items()},
              tmp_path / "theirs.safetensors", metadata={"format": "pt", "lora_adapter_metadata": header})
    with pytest.raises(ValueError, match=f"^theirs.safetensors {says}"):
        lora.load(unet, tmp_path / "theirs.safetensors")
    assert not lora.adapters(unet)


@pytest.mark.parametrize("text, says", [
    (None, "alpha stands in adapter_config.json, and there is none beside it; copy it"),
    ("{", "adapter_config.json cannot be read"),
    ("[]", "adapter_config.json cannot be read"),
    ('{"lora_alpha": "much"}', "adapter_config.json cannot be read .*'much'"),
    ('{"lora_alpha": 2, "alpha_pattern": {"(": 2}}', "adapter_config.json cannot be read"),
])
def test_settings_that_cannot_be_read(tmp_path, text, says):
    """Only a file of peft's asks for them: beside it, one of ours is read as it was written."""
    unet = make()
    learnt(unet, rank=2, alpha=6.0)
    lora.save(unet, tmp_path / "lora.safetensors")
    save_file({key.replace("unet.", "base_model.model."): value
               for key, value in load_file(tmp_path / "lora.safetensors").items()}, tmp_path / "peft.safetensors")
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    other = make()
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        lora.load(other, tmp_path / "peft.safetensors")
    assert not lora.adapters(other)
    assert {adapter.scale for adapter in lora.load(other, tmp_path / "lora.safetensors").values()} == {1.0}


@pytest.mark.parametrize("spoil, says", [
    (lambda stored: {k.replace("attn1", "attn9"): v for k, v in stored.items()}, "no such layer"),
    (lambda stored: {k: v for k, v in stored.items() if "lora_A" in k}, "None"),
    (lambda stored: {k: v[:, :-1].contiguous() for k, v in stored.items()}, "they should be"),
])
def test_an_adapter_of_another_model_is_refused(tmp_path, spoil, says, inputs):
    unet = make()
    learnt(unet, rank=2)
    lora.save(unet, tmp_path / "a.safetensors")
    save_file(spoil(load_file(tmp_path / "a.safetensors")), tmp_path / "b.safetensors")
    other = make()
    with pytest.raises(ValueError, match=says):
        lora.load(other, tmp_path / "b.safetensors")
    assert not lora.adapters(other)


def test_a_file_of_another_rank_is_read_as_it_is(tmp_path, inputs):
    """The rank is the file's, whatever was loaded before; a layer may have another one than its neighbour."""
    unet = make()
    made = learnt(unet, rank=3)
    first = next(iter(made))
    made[first].down.data, made[first].up.data = made[first].down.data[:1], made[first].up.data[:, :1]
    expected = unet(*inputs)
    lora.save(unet, tmp_path / "a.safetensors")
    other = make()
    lora.add(other, rank=2)
    with pytest.raises(ValueError, match="adapters already"):
        lora.load(other, tmp_path / "a.safetensors")
    lora.remove(other)
    ranks = {name: len(adapter.down) for name, adapter in lora.load(other, tmp_path / "a.safetensors").items()}
    assert ranks.pop(first) == 1 and set(ranks.values()) == {3}
    assert torch.allclose(other(*inputs), expected, atol=1e-5)


def test_files_that_are_no_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no adapter.*none.safetensors.*--learns lora"):
        lora.load(make(), tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder; name the file"):
        lora.load(make(), tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged or cut short"):
        lora.load(make(), tmp_path / "broken.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="holds no adapter"):
        lora.load(make(), tmp_path / "empty.safetensors")
    save_file(make().state_dict(), tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match="which is neither A nor B of LoRA"):
        lora.load(make(), tmp_path / "whole.safetensors")


def test_bad_arguments():
    with pytest.raises(ValueError, match="rank is 99"):
        lora.add(make(), rank=99)
    with pytest.raises(ValueError, match="no linear layer has a name"):
        lora.add(make(), where="nothing")
    with pytest.raises(ValueError, match="no adapters to save"):
        lora.save(make(), "unused.safetensors")
    unet = make()
    lora.add(unet, rank=1)
    with pytest.raises(ValueError, match="adapters already"):
        lora.add(unet, rank=1)
