"""minit2v and diffusers side by side: the same random weights, threads and number type; time, memory, exactness.

    python tests/benchmark_vs_diffusers.py --folder DIR [--small] [--threads 2] [--rounds 3] [--tasks unet,vae,...]

Run by hand. The first run writes a checkpoint of the released size and layout (7.4 GB) into DIR; `--small` takes
another, tiny one, to see that the program works. Each system runs in a process of its own. Where time is measured they
take turns, and the best of all rounds counts; ours keeps freed memory between the calls, as its pipeline does
(`offload.recycled`). Memory is the largest resident set of a process that did nothing else
(Linux's VmHWM: mapped weights that were looked at count). The table goes to the standard output.

    unet        one forward: 16 frames, 32 x 32 latents, guidance batch of two; float32 and bfloat16
    vae         the decoder on 16 frames of 256 x 256; time, and memory in fresh processes
    clip        4 steps of DDIM with guidance 9, prompt to frames, from the same start noise
    load        opening the checkpoint in a fresh process, up to the first answer of the UNet (one frame, 8 x 8);
                float32 as on disk, and bfloat16 converted
    text        the text encoder, exactness alone
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

PROMPT, STEPS, GUIDANCE = "a panda eats bamboo on a rock", 4, 9.0
TASKS = ("text", "load", "unet", "vae", "clip")
ROOT = Path(__file__).resolve().parent.parent
SIZES = {"small": dict(channels=32, head_dim=8, width=64, heads=1, layers=3, vae=32, frames=3, latent=8),
         "full": dict(channels=320, head_dim=64, width=1024, heads=16, layers=24, vae=128, frames=16, latent=32)}


# ------------------------------------------------------------------------------------------------------ the weights

def make_checkpoint(folder: Path, size: dict) -> None:
    """Writes the released layout by the peers' own classes, every parameter random (zero-initialised ones, too)."""
    import diffusers
    import torch
    import transformers

    from minit2v.config import AutoencoderConfig, ModelConfig, TextConfig, UNetConfig
    from minit2v.configfiles import diffusers_files
    from minit2v.convert import write_tokenizer

    config = ModelConfig(autoencoder=AutoencoderConfig(channels=size["vae"]),
                         text=TextConfig(width=size["width"], heads=size["heads"], layers=size["layers"]),
                         unet=UNetConfig(channels=size["channels"], head_dim=size["head_dim"],
                                         context_dim=size["width"]))
    files = diffusers_files(config)
    makers = {"unet": lambda values: diffusers.UNet3DConditionModel.from_config(values),
              "vae": lambda values: diffusers.AutoencoderKL.from_config(values),
              "text_encoder": lambda values: transformers.CLIPTextModel(transformers.CLIPTextConfig(**values))}
    for seed, (part, make) in enumerate(makers.items()):
        with torch.device("meta"):
            net = make(files[f"{part}/config.json"])
        net = net.to_empty(device="cpu") if part != "text_encoder" else make(files[f"{part}/config.json"])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if p.ndim > 1:
                    p.normal_(0, 1 / p[0].numel() ** 0.5, generator=generator)
                else:
                    p.normal_(0, 0.2, generator=generator).add_(_is_norm(name))
        net.save_pretrained(folder / part, safe_serialization=True)
        del net
    write_tokenizer(folder / "tokenizer", config)
    (folder / "scheduler").mkdir()
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        (folder / name).write_text(json.dumps(files[name], indent=2))


def _is_norm(name: str) -> bool:
    first_of_temporal_conv = "temp_convs" in name and name.endswith(".0.weight")       # its norms stand in a Sequential
    return name.endswith(".weight") and ("norm" in name or first_of_temporal_conv)


# ------------------------------------------------------------------------------------------------------ one system

def inputs(size: dict):
    """Start noise (1, 4, F, h, w), the guidance batch of two (2, ..), a time and two texts (2, 77, D), float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, size["frames"], size["latent"], size["latent"], generator=generator)
    texts = torch.randn(2, 77, size["width"], generator=generator)
    return noise, torch.cat([noise, noise]), torch.tensor([981, 981]), texts


class Ours:
    def __init__(self, folder, dtype, part=None):
        """part: load this network alone, for a measurement in which nothing else shall be in memory."""
        from minit2v import layouts, pipeline

        if part is None:
            self.pipe = pipeline.load(folder, dtype=dtype)
            self.unet, self.vae, self.text = self.pipe.unet, self.pipe.autoencoder, self.pipe.text_encoder
            return
        stored = layouts.open_model(folder)
        name = {"unet": "unet", "vae": "autoencoder"}[part]
        stored.networks[name].load_state_dict(stored.part(name).tensors(dtype), strict=True, assign=True)
        setattr(self, part, stored.networks[name].eval())

    def forward(self, latents, times, texts):
        return self.unet(latents, times, texts)

    def decode(self, latents):
        return self.vae.decode(latents)

    def encode(self, prompts):
        return self.pipe.encode_text(prompts)

    def generate(self, noise):
        return self.pipe(PROMPT, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, progress=False)


class Diffusers:
    def __init__(self, folder, dtype, part=None):
        import diffusers

        if part is None:
            self.pipe = diffusers.TextToVideoSDPipeline.from_pretrained(folder, torch_dtype=dtype)
            self.pipe.set_progress_bar_config(disable=True)
            self.unet, self.vae, self.text = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        else:
            kind = {"unet": diffusers.UNet3DConditionModel, "vae": diffusers.AutoencoderKL}[part]
            setattr(self, part, kind.from_pretrained(folder / part, torch_dtype=dtype).eval())

    def forward(self, latents, times, texts):
        return self.unet(latents, times[0], texts).sample

    def decode(self, latents):
        """As its pipeline does it: all frames at once."""
        images = (latents / 0.18215).transpose(1, 2).flatten(0, 1)
        return self.vae.decode(images).sample.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def encode(self, prompts):
        tokens = self.pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.text(tokens.input_ids)[0]

    def generate(self, noise):
        import torch

        video = self.pipe(PROMPT, latents=noise.clone(), num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                          height=noise.shape[3] * 8, width=noise.shape[4] * 8, num_frames=noise.shape[2],
                          output_type="np").frames[0]
        return torch.from_numpy(video * 255).round().byte()


def work(system: str, task: str, dtype: str, folder: Path, size: dict, threads: int) -> None:
    """A worker process: loads what the task needs, then does it once for each line it is sent, and says how long."""
    import torch

    torch.set_num_threads(threads)
    kind, dtype = {"minit2v": Ours, "diffusers": Diffusers}[system], getattr(torch, dtype)
    noise, latents, times, texts = inputs(size)
    if system == "diffusers":
        import diffusers
        import transformers
        diffusers.AutoencoderKL, diffusers.TextToVideoSDPipeline, transformers.CLIPTextModel       # imported for good
        diffusers.logging.set_verbosity_error()
    else:
        import minit2v.pipeline

    idle, kept = resident(), minit2v.offload.recycled() if system == "minit2v" else nullcontext()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    peer = kind(folder, dtype, {"unet": "unet", "vae": "vae"}.get(task))
    answers = {"unet": lambda: peer.forward(latents.to(dtype), times, texts.to(dtype)),
               "vae": lambda: peer.decode(noise.to(dtype)),
               "clip": lambda: peer.generate(noise),
               "text": lambda: peer.encode([PROMPT, ""]),
               "load": lambda: peer.forward(latents[:, :, :1, :8, :8].to(dtype), times, texts.to(dtype))}
    with torch.inference_mode(), kept if task in ("unet", "vae") else nullcontext():
        if task == "load":
            answer = answers[task]()
            print(json.dumps({"seconds": time.perf_counter() - begin, "cpu": time.process_time() - begin_cpu,
                              "peak": resident() - idle}), flush=True)
        for line in sys.stdin:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            answer = answers[task]()
            result = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - begin_cpu,
                      "peak": resident() - idle}
            torch.save(answer.float(), line.strip())
            print(json.dumps(result), flush=True)


def resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------------------------ side by side

class Worker:
    def __init__(self, system: str, task: str, dtype: str, args):
        self.answer = args.folder / f"answer-{system}-{task}-{dtype}.pt"
        command = [sys.executable, __file__, "--folder", str(args.folder), "--threads", str(args.threads),
                   *(["--small"] if args.small else []),
                   *(["--frames", str(args.frames)] if args.frames else []), "--worker", system, task, dtype]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(args.threads),
                       "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment)

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.answer.stem} died, see above")
        return json.loads(line)

    def run(self) -> dict:
        self.process.stdin.write(f"{self.answer}\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


def compare(task: str, dtype: str, args) -> dict:
    """Both systems at one task: the best seconds and the peak of each, by turns, and how far their answers differ."""
    import torch

    systems, best = ("minit2v", "diffusers"), {}

    def note(system, result):
        old = best.setdefault(system, result)
        best[system] = {key: min(old[key], result[key]) for key in result}
        print(f"# {task} {dtype} {system}: {result['seconds']:.2f} s, {result['cpu']:.2f} s of processor time, "
              f"{result['peak'] / 2**30:.2f} GB", file=sys.stderr, flush=True)

    if task in ("text", "load", "clip"):                  # one at a time: each needs the whole memory, or a new process
        for turn in range({"text": 1, "load": args.rounds, "clip": args.clips}[task]):
            for system in systems if turn % 2 == 0 else systems[::-1]:
                with Worker(system, task, dtype, args) as worker:
                    note(system, worker.read() if task == "load" else worker.run())
                    if task == "load" and turn == 0:
                        worker.run()
    else:
        with Worker(systems[0], task, dtype, args) as one, Worker(systems[1], task, dtype, args) as two:
            for turn in range(args.rounds):
                for system, worker in ((systems[0], one), (systems[1], two))[::1 if turn % 2 == 0 else -1]:
                    note(system, worker.run())
    ours, theirs = (torch.load(args.folder / f"answer-{system}-{task}-{dtype}.pt", weights_only=True)
                    for system in systems)
    return {"task": task, "dtype": dtype, **{system: best[system] for system in systems},
            "difference": (ours - theirs).abs().max().item(), "largest": theirs.abs().max().item(),
            "std": theirs.std().item()}


def matmul_peak(dtype: str, threads: int) -> float:
    """Floating-point operations a second of the fastest square product of matrices, best of several."""
    import torch

    torch.set_num_threads(threads)
    n = 2048
    a, b = torch.randn(2, n, n).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * n ** 3 / best


def flops(task: str, size: dict) -> float:
    """What a task takes, in multiplications and additions of the plain network (torch's own count, on no numbers)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from minit2v.autoencoder import Autoencoder
    from minit2v.config import AutoencoderConfig, UNetConfig
    from minit2v.unet import UNet

    noise, latents, times, texts = (x.to("meta") for x in inputs(size))
    with torch.device("meta"):
        unet = UNet(UNetConfig(channels=size["channels"], head_dim=size["head_dim"], context_dim=size["width"]))
        vae = Autoencoder(AutoencoderConfig(channels=size["vae"]))
    with FlopCounterMode(display=False) as counter:
        unet(latents, times, texts) if task == "unet" else vae.decode(noise)
    return counter.get_total_flops()


def row(result: dict, args, size: dict) -> list[str]:
    """The lines of the table for one comparison."""
    ours, theirs, what = result["minit2v"], result["diffusers"], f"{result['task']}, {result['dtype']}"
    lines = [f"| {what}: time | {ours['seconds']:.2f} s | {theirs['seconds']:.2f} s "
             f"| **{ours['seconds'] / theirs['seconds']:.2f}** |",
             f"| {what}: processor time | {ours['cpu']:.2f} s | {theirs['cpu']:.2f} s "
             f"| **{ours['cpu'] / theirs['cpu']:.2f}** |"] if result["task"] != "text" else []
    if result["task"] in ("vae", "clip", "load", "unet"):
        lines.append(f"| {what}: peak memory | {ours['peak'] / 2**30:.2f} GB | {theirs['peak'] / 2**30:.2f} GB "
                     f"| **{ours['peak'] / theirs['peak']:.2f}** |")
    unit = "levels of 255" if result["task"] == "clip" else f"of {result['largest']:.3g}"
    lines.append(f"| {what}: largest difference | {result['difference']:.2g} {unit} | | |")
    if result["task"] in ("unet", "vae"):
        peak, count = matmul_peak(result["dtype"], args.threads), flops(result["task"], size)
        lines.append(f"| {what}: share of the matmul peak, {peak / 1e9:.0f} GFLOP/s "
                     f"| {count / ours['seconds'] / peak:.0%} | {count / theirs['seconds'] / peak:.0%} | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is, or shall be written")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the program")
    parser.add_argument("--frames", type=int, help="fewer than 16, for a quicker look")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system (default: 3)")
    parser.add_argument("--clips", type=int, default=1, help="turns for whole clips (default: 1)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, by commas (default: all)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the load, unet and vae tasks")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = SIZES["small" if args.small else "full"]
    size["frames"] = args.frames or size["frames"]
    checkpoint = args.folder / ("small" if args.small else "full")
    if args.worker:
        return work(*args.worker, checkpoint, size, args.threads)
    sys.path.insert(0, str(ROOT))
    if not (checkpoint / "model_index.json").exists():
        make_checkpoint(checkpoint, size)
    print("| task | minit2v | diffusers | ratio |\n|---|---|---|---|")
    for task in args.tasks.split(","):
        for dtype in args.dtypes.split(",") if task in ("load", "unet", "vae") else ["float32"]:
            print("\n".join(row(compare(task, dtype, args), args, size)), flush=True)


if __name__ == "__main__":
    main()
