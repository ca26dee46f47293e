"""Processes for tests: several that train together, and single ones that get killed.

They are forked from one process that has imported everything already (multiprocessing's forkserver), so that one
more costs next to nothing. What they run stands here, as they find it by name.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

try:
    import resource
except ImportError:                                      # Windows
    resource = None

import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # noqa: F401 - here and below: slow imports, made once
import torch.distributed.fsdp  # noqa: F401
from matplotlib.figure import Figure  # noqa: F401
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minit2v import beforeafter, cli, data, distributed, examples, recipe, training
from minit2v.autoencoder import Autoencoder
from minit2v.config import ModelConfig, UNetConfig
from minit2v.training import Plan, fit, generators
from minit2v.unet import UNet

TINY = UNetConfig(channels=8, multipliers=(1, 2), res_blocks=1, attention=(False, True), head_dim=8, input_heads=1,
                  context_dim=16, norm_groups=4, dropout=0.1)
PLAN = Plan(steps=4, batch=2, lr=2e-3, warmup=2, weight_decay=0.1, ema=0.9, save_every=2, log_every=1, accumulate=6)
AVAILABLE = dist.is_available() and dist.is_gloo_available() and sys.platform != "win32"


def unet(dtype=torch.float64, checkpointing=False) -> UNet:
    """A UNet all of whose parts do something, always with the same first weights."""
    model, generator = UNet(TINY).to(dtype), torch.Generator().manual_seed(1)
    model.gradient_checkpointing = checkpointing
    with torch.no_grad():
        for p in model.parameters():
            if not (p.ndim == 1 and p.any() and (p == 1).all()):                          # the ones of norms stay
                p.copy_(torch.randn(p.shape, generator=generator) * 0.15)
    return model


def objective(model, generator, rng):
    """Find a clip's noise; in half of the micro-batches single frames, for which the temporal parts stay out."""
    still = rng.random() < 0.5
    clip, noise = (torch.randn(2, 4, 1 if still else 3, 8, 8, generator=generator) for _ in range(2))
    context = torch.randn(2, 5, 16, generator=generator)
    dtype = model.conv_out.weight.dtype
    found = model((clip + noise).to(dtype), torch.tensor([100, 700]), context.to(dtype), temporal=not still)
    loss = (found - noise).square().mean()
    return loss, {"still" if still else "moving": loss.detach()}


def train(folder, plan=PLAN, shard=False, learns="", autocast=None, dtype=torch.float64, checkpointing=False,
          steps=None, adamw=False, **options):
    """Trains the UNet; all of it, or what has `learns` in its name. steps: dies of an error after so many.

    adamw: without Muon, as sharded runs do.
    """
    if adamw:
        training.split = lambda model, parameters: ([], parameters)
    calls = []

    def dying(*args):
        calls.append(None)
        if steps is not None and len(calls) > steps * plan.accumulate // distributed.world():
            raise KeyboardInterrupt
        return objective(*args)

    return fit(unet(dtype, checkpointing), dying, plan, folder, learns=lambda name: learns in name, autocast=autocast,
               progress=False, shard=shard, **options)


def train_and_keep(folder, **options):
    """`train`; writes what it returns, by process, and on which steps on_save was called."""
    seen = []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    average = train(folder, on_save=lambda average, step: seen.append(step), **options)
    torch.save((average, seen), folder / f"returned-{distributed.rank()}.pt")


def train_for_ever(folder, shard=False, victim=0):
    """Trains on and on; process `victim` writes its number into `folder` when the first checkpoint is there."""
    def on_step(model, generator, rng):
        saved = (Path(folder) / "checkpoint.pt").exists() or any(Path(folder).glob("checkpoint-*"))
        if saved and distributed.rank() == victim:
            (Path(folder) / "ready").write_text(str(os.getpid()))
        return objective(model, generator, rng)

    fit(unet(), on_step, Plan(steps=10 ** 6, batch=2, lr=1e-3, save_every=2, accumulate=2), folder, progress=False,
        shard=shard)


def die_saving(folder, victim, moment, name, times=1):
    """`train_and_keep` with shards and a save at each step. Process `victim` dies without a word before it does
    `moment` (an audit event of Python: "open", "os.rename") to what has `name` in its path, for the `times`th time.
    """
    seen = []

    def hook(event, args):
        if event == moment and name in str(args[0]):
            seen.append(event)
            if len(seen) == times:
                os.kill(os.getpid(), signal.SIGKILL)

    if distributed.rank() == victim:
        sys.addaudithook(hook)
    train_and_keep(folder, plan=replace(PLAN, save_every=1), shard=True)


def command(folder, rank, port, argv, late):
    """The command in one of two processes, which wait six seconds for each other and no longer. Whenever the first
    encodes films or looks at clips, it comes `late` seconds later; or dies, if that is None. folder: where they meet.
    """
    (folder / f"here-{rank}").touch()
    while not (folder / f"here-{1 - rank}").exists():
        time.sleep(0.01)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.PATIENCE = timedelta(seconds=6)

    def delayed(genuine):
        def call(*given, **more):
            if rank == 0 and late is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 0:
                time.sleep(late)
            return genuine(*given, **more)
        return call

    examples.of_films, beforeafter.look = delayed(examples.of_films), delayed(beforeafter.look)
    with contextlib.redirect_stdout(sys.stderr):
        sys.exit(cli.main(argv))


def gradients(folder):
    """Gradients averaged by us and by DistributedDataParallel, from the same micro-batch; written to `folder`."""
    model = unet()
    model.eval()
    loss, _ = objective(model, *generators(3, 1, distributed.rank()))
    loss.backward()
    had = {name for name, p in model.named_parameters() if p.grad is not None}
    distributed.average_gradients(list(model.parameters()))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    wrapped = DistributedDataParallel(unet().eval(), find_unused_parameters=True)
    wrapped.conv_out = wrapped.module.conv_out                        # where `objective` looks for the number type
    loss, _ = objective(wrapped, *generators(3, 1, distributed.rank()))
    loss.backward()
    theirs = {name: p.grad for name, p in wrapped.module.named_parameters() if p.grad is not None}
    torch.save((had, ours, theirs), Path(folder) / f"gradients-{distributed.rank()}.pt")


def fail_alone(folder):
    """One process's data is broken; the others must not wait for it."""
    def broken(model, generator, rng):
        if distributed.rank() == 1 and generator.initial_seed() % 10_000_019 > 2:
            raise ValueError("this video is unreadable")
        return objective(model, generator, rng)

    fit(unet(), broken, PLAN, folder, progress=False)


def fill_up(folder, shard=False, limit=50_000):
    """From step 3 on one process can write no file larger than `limit` bytes, as on a full disk: the first, or the
    last, where all write."""
    def full(model, generator, rng):
        victim = distributed.world() - 1 if shard else 0
        if generator.initial_seed() % 0x9E3779B1 >= 2 and distributed.rank() == victim:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return objective(model, generator, rng)

    plan = Plan(steps=4, batch=2, lr=1e-3, save_every=2, accumulate=max(1, distributed.world()))
    fit(unet(), full, plan, folder, progress=False, shard=shard)


def shard_a_net(folder):
    fit(Net(), roll, FAST, folder, progress=False, shard=True)


def encode_clips(folder):
    """Clips of the toy world as `train` gets them, five shards of four; writes them, and how many were encoded here."""
    data.SHARD, recipe.SHARDS, here = 4, {1: 3, 2: 2}, []
    encode = Autoencoder.encode
    Autoencoder.encode = lambda self, clips: here.append(len(clips)) or encode(self, clips)
    clips = recipe._clips(ModelConfig.from_json((folder / "config.json").read_text()), folder, (1, 2), progress=False)
    torch.save((clips.latents, sum(here)), folder / f"clips-{distributed.rank()}.pt")


# --- one process that trains fast, saves all the time, and dies ---

FAST = Plan(steps=36, batch=8, lr=0.01, warmup=4, weight_decay=0.1, ema=0.9, save_every=3, log_every=2)


class Net(nn.Module):
    """Two layers and a long vector, so that saving takes a while; always with the same first weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 20), nn.Linear(20, 16)
        self.ballast = nn.Parameter(torch.zeros(1_000_000))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in (*self.first.parameters(), *self.last.parameters()):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) + self.ballast[:16]


def roll(model, generator, rng):
    x = torch.randn(8, 16, generator=generator)
    return (model(x) - x.roll(1, dims=1)).square().mean() * (1 + rng.random()), {}


def train_fast(folder, dies_after=None, dies_saving=None):
    """Trains the net. dies_after: seconds of processor time until a signal ends the process, wherever it is.

    dies_saving: (which save of this process, seconds into it). The signal's default is death without a word, as
    SIGKILL's is; but the kernel sends it by processor time, so that a busy machine changes nothing.
    """
    saves = []

    def on_save(average, step):
        if dies_saving and len(saves) == dies_saving[0]:
            signal.setitimer(signal.ITIMER_PROF, dies_saving[1])
        saves.append(step)

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if dies_after:
        signal.setitimer(signal.ITIMER_PROF, dies_after)
    fit(Net(), roll, FAST, folder, progress=False, on_save=on_save)


# --- the machinery ---

def _member(function, rank, world, meeting, arguments, options):
    torch.set_num_threads(1)
    sys.stderr = open(f"{meeting}.errors-{rank}", "w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    if world:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world,
                                timeout=timedelta(minutes=10))
    function(*arguments, **options)
    if world:
        dist.barrier()
        dist.destroy_process_group()


def start(function, world: int, meeting: Path, *arguments, **options) -> list[multiprocessing.Process]:
    """Starts `world` processes that run `function` together; 0: one that is alone. `meeting`: a path of their own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crew"])
    meeting.parent.mkdir(parents=True, exist_ok=True)
    members = [context.Process(target=_member, daemon=True,
                               args=(function, rank, world, str(meeting), arguments, options))
               for rank in range(max(1, world))]
    for member in members:
        member.start()
    return members


def wait(members, seconds: float = 300) -> list[int | None]:
    """Exit codes, in order; None for those that still run after so many seconds, and that are then killed."""
    end = time.monotonic() + seconds
    for member in members:
        member.join(max(0, end - time.monotonic()))
    codes = [member.exitcode for member in members]
    for member in members:
        member.kill()
    return codes


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def errors(meeting: Path, rank: int) -> str:
    return Path(f"{meeting}.errors-{rank}").read_text()


def together(function, world: int, meeting: Path, *arguments, **options) -> None:
    """Runs `function` in `world` processes to its end; fails with their errors if one does."""
    members = start(function, world, meeting, *arguments, **options)
    codes = wait(members)
    assert codes == [0] * len(members), "\n".join(errors(meeting, rank) for rank in range(len(members)))


if __name__ == "__main__":                               # by torchrun
    with distributed.processes():
        train_for_ever(Path(sys.argv[1]))
