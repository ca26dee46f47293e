"""minit2v and the original side by side at full size: the same 1.84 billion random weights, in the original's layout.

    python tests/compare_with_modelscope.py --folder DIR

Run by hand, after benchmark_vs_diffusers.py with the same DIR, whose checkpoint it converts to the layout of
ModelScope (another 7.4 GB, kept in DIR). The files of the `modelscope` package then read what `minit2v convert` wrote,
strictly, and `minit2v.load` reads it, too. Exactness alone; a busy machine does no harm. About ten minutes.

    unet      one forward of a clip, 16 frames, 32 x 32 latents
    loop      4 steps of DDIM with guidance 9, by the original's loop and by ours
    decoder   the latents of the loop, to frames of 256 x 256, rounded down as the original does
"""

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import original  # noqa: E402

from minit2v import cli, pipeline, samplers  # noqa: E402
from minit2v.diffusion import guided_denoiser  # noqa: E402
from minit2v.video import to_uint8  # noqa: E402


def originals(code: dict, folder: Path, config):
    """The original's UNet and autoencoder, made as its own pipeline does it (text_to_video_synthesis_model.py)."""
    a = config.autoencoder
    with torch.device("meta"):
        unet = original.unet_sd(code, config.unet)
    weights = torch.load(folder / "text2video_pytorch_model.pth", map_location="cpu", weights_only=True, mmap=True)
    unet.load_state_dict(weights, strict=True, assign=True)
    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": a.channels,
             "ch_mult": list(a.multipliers), "num_res_blocks": a.res_blocks, "attn_resolutions": [], "dropout": 0.0}
    decoder = code["autoencoder"].AutoencoderKL(shape, 4, str(folder / "VQGAN_autoencoder.pth"))
    return unet.eval(), decoder.eval()


def tell(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    print(f"| {what} | {difference:.2g} | {largest:.3g} | {difference / largest:.1g} |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what benchmark_vs_diffusers.py was given")
    folder = parser.parse_args().folder / "full-modelscope"
    if not (folder / "configuration.json").exists():
        cli.main(["convert", str(folder.with_name("full")), str(folder), "--to", "modelscope"])
    ours, code = pipeline.load(folder), original.modules()
    unet, decoder = originals(code, folder, ours.config)
    x = torch.randn(1, 4, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    text, empty = ours.encode_text(["a panda eats bamboo on a rock", ""]).split(1)

    print("| part | largest difference | of | ratio |\n|---|---|---|---|")
    times = torch.tensor([981])
    tell("UNet, one forward", ours.unet(x, times, text), unet(x, times, text))

    d = json.loads((folder / "configuration.json").read_text())["model"]["model_cfg"]
    betas = code["diffusion"].beta_schedule("linear_sd", d["num_timesteps"], init_beta=0.00085, last_beta=0.0120)
    loop = code["diffusion"].GaussianDiffusion(betas, mean_type="eps", var_type="fixed_small", rescale_timesteps=False)
    expected = loop.ddim_sample_loop(x.clone(), unet, [{"y": text}, {"y": empty}], guide_scale=9.0, ddim_timesteps=4,
                                     eta=0.0)
    process = ours.process
    found = samplers.ddim(guided_denoiser(ours.unet, process, text, empty, 9.0), process, x,
                          process.times(4, "modelscope"))
    tell("loop of 4 steps, latents", found, expected)

    images = torch.cat([decoder.decode(image) for image in (expected / 0.18215).transpose(1, 2).flatten(0, 1).split(1)])
    decoded = ours.autoencoder.decode(expected)
    tell("decoder", decoded, images[None].transpose(1, 2))
    levels = ((images * 0.5 + 0.5).clamp(0, 1) * 255).byte().movedim(1, -1)               # as its tensor2vid rounds
    clip = to_uint8(ours.autoencoder.decode(found), rounding="truncate")[0]
    tell("the whole clip, levels of 255", clip.float(), levels.float())


if __name__ == "__main__":
    main()
