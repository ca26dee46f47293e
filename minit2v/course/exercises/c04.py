"""Chapter 04, diffusion: the schedule, noising, the velocity, the loss."""

import torch

from minit2v.course import figures
from minit2v.course import sketches_01_06 as sketches
from minit2v.course.exercise import Exercise, Mistake
from minit2v.course.oracles import random_tensors

# 04.schedule

def _schedule_oracle(beta_start, beta_end, steps):
    products, product = [1.0], 1.0
    for i in range(steps):
        share = i / (steps - 1)
        product *= 1 - (beta_start ** 0.5 * (1 - share) + beta_end ** 0.5 * share) ** 2
        products.append(product)
    return torch.tensor(products, dtype=torch.float64)


def _schedule_straight(beta_start, beta_end, steps):
    betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])


def _schedule_roots(beta_start, beta_end, steps):
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])


def _schedule_short(beta_start, beta_end, steps):
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def _schedule_sum(beta_start, beta_end, steps):
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps, dtype=torch.float64) ** 2
    return torch.cat([torch.ones(1, dtype=torch.float64), 1 - betas.cumsum(0)])


def _schedule_single(beta_start, beta_end, steps):
    betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, steps) ** 2
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


def _draw_schedule(function=_schedule_oracle):
    return figures.plot({"alpha-bar": function(0.00085, 0.012, 1000)}, x=torch.arange(1001), xlabel="t",
                        alt="A curve that falls smoothly from 1 at t = 0 to nearly 0 at t = 1000, steepest before 500.")


SCHEDULE = Exercise(
    name="04.schedule", target="schedule", kind="build", title="The schedule", minutes=15, level=2,
    cases=lambda seed: [(0.00085, 0.012, 1000), (0.01, 0.3, 12)], oracle=_schedule_oracle, celebrate=_draw_schedule,
    tolerance=1e-10,
    mistakes=(
        Mistake("linear in beta", _schedule_straight, "Your betas rise in a straight line. In the original their roots "
                "do (\"scaled linear\"): there is less noise early on. (Chapter 04, the section on schedules.)"),
        Mistake("roots for betas", _schedule_roots, "Your betas are far too large: these are still their roots."),
        Mistake("no clean start", _schedule_short, "One entry is missing. At t = 0 nothing has been added yet, and the "
                "product of no factors is a number, too."),
        Mistake("in float32", _schedule_single, "Nearly right, but in float32. The task asks for float64: a thousand "
                "factors are multiplied, and each rounds."),
        Mistake("a sum", _schedule_sum, "You add up the betas. But each step keeps a share of what the last one left, "
                "and shares of shares multiply."),
    ),
    hints=(_draw_schedule, "Three steps: numbers between the two roots, then betas, then a running product of what is "
           "kept.", "What is kept in one step is 1 - beta. The result has one entry more than there are steps."),
)


# 04.add_noise

def _noise_cases(seed):
    x0, eps = random_tensors(seed, (3, 4, 5), (3, 4, 5))
    return [(x0, 0.7, eps), (x0, 0.02, eps), (x0, 1.0, eps)]


def _add_noise_oracle(x0, alpha_bar, eps):
    angle = torch.acos(torch.tensor(alpha_bar, dtype=torch.float64).sqrt()).item()
    return (torch.complex(x0, eps) * torch.polar(torch.tensor(1.0, dtype=x0.dtype),
                                                 torch.tensor(-angle, dtype=x0.dtype))).real


def _add_noise_variance(x0, alpha_bar, eps):
    return alpha_bar * x0 + (1 - alpha_bar) * eps


def _add_noise_half(x0, alpha_bar, eps):
    return alpha_bar ** 0.5 * x0 + (1 - alpha_bar) * eps


def _add_noise_other_half(x0, alpha_bar, eps):
    return alpha_bar ** 0.5 * x0 + (1 - alpha_bar ** 0.5) * eps


def _add_noise_swapped(x0, alpha_bar, eps):
    return (1 - alpha_bar) ** 0.5 * x0 + alpha_bar ** 0.5 * eps


ADD_NOISE = Exercise(
    name="04.add_noise", target="add_noise", kind="repair", title="Too little of everything", minutes=10, level=1,
    cases=_noise_cases, oracle=_add_noise_oracle, gradients=True,
    mistakes=(
        Mistake("shares of size", _add_noise_variance, "The sizes still shrink half-way. alpha-bar and 1 - alpha-bar "
                "are shares of the *variance*; the numbers themselves are multiplied by something else."),
        Mistake("one of two mended", _add_noise_half, "The clip is right now. The noise has the same illness."),
        Mistake("one minus the root", _add_noise_other_half, "Roots and differences do not change places: the noise's "
                "variance, not its size, is what is missing to 1."),
        Mistake("swapped", _add_noise_swapped, "At alpha-bar = 1 the clip should be clean; yours is pure noise."),
    ),
    hints=(sketches.add_noise,
           "Half-way, at alpha-bar = 0.5, the broken version's x_t has a variance of 0.5. What should it be, if x_0 "
           "and the noise both have 1?", "The variance of a sum of independent things: squares of the factors add up."),
)


# 04.split

def _split_cases(seed):
    v, x = random_tensors(seed, (2, 4, 3), (2, 4, 3))
    return [(v, x, 0.8, 0.6), (v, x, 5 / 13, 12 / 13)]


def _split_oracle(v, x, alpha, sigma):
    matrix = torch.tensor([[alpha, sigma], [-sigma, alpha]], dtype=v.dtype)
    solved = torch.linalg.solve(matrix, torch.stack([x.flatten(), v.flatten()]))
    return solved[0].view_as(x), solved[1].view_as(x)


def _split_sign(v, x, alpha, sigma):
    return alpha * x + sigma * v, sigma * x - alpha * v


def _split_order(v, x, alpha, sigma):
    return sigma * x + alpha * v, alpha * x - sigma * v


def _split_noise(v, x, alpha, sigma):
    return (x - sigma * v) / alpha, v


def _split_plus(v, x, alpha, sigma):
    return alpha * x - sigma * v, alpha * v - sigma * x


SPLIT = Exercise(
    name="04.split", target="split", kind="build", title="Back from the velocity", minutes=15, level=2,
    cases=_split_cases, oracle=_split_oracle, gradients=True, forbidden=("Process",),
    mistakes=(
        Mistake("turned the wrong way", _split_sign, "You turn the wrong way: your clip moves towards the velocity "
                "where it should move away. Put x and v of a clean clip (alpha = 1, sigma = 0), then of pure noise, "
                "in."),
        Mistake("noise first", _split_order, "Both parts are right, in the wrong order: first the clip, then the "
                "noise."),
        Mistake("taken for noise", _split_noise, "You read the answer as noise. It is the velocity, and a mixture of "
                "both."),
        Mistake("noise with a minus", _split_plus, "Your clip is right. Of the noise, x holds a positive share."),
    ),
    hints=(sketches.split,
           "Two equations, two unknowns: x = alpha x_0 + sigma eps and v = alpha eps - sigma x_0.",
           "Multiply the first by alpha and the second by sigma, and subtract. Remember alpha^2 + sigma^2 = 1."),
)


# 04.loss

def _loss_cases(seed):
    x0, eps = random_tensors(seed, (3, 4, 5), (3, 4, 5))
    return [(x0, torch.tensor([1, 4, 10]), eps), (x0, torch.tensor([2, 2, 7]), eps)]


_BARS = torch.linspace(1, 0.02, 11, dtype=torch.float64)


def _asked(x, timesteps):
    """A network to judge the loss with: its answer depends on both of its inputs."""
    return 0.5 * x + 0.1 * timesteps.to(x.dtype)[:, None, None] - 0.2


def _call_loss(hand_in, x0, t, eps):
    return hand_in(_asked, x0, t, eps, _BARS.to(x0.dtype))


def _loss_oracle(x0, t, eps):
    total = 0.0
    bars = _BARS.to(x0.dtype)
    for row in range(len(x0)):
        x = torch.einsum("k,kij->ij", torch.stack([bars[t[row]].sqrt(), (1 - bars[t[row]]).sqrt()]),
                         torch.stack([x0[row], eps[row]]))
        total = total + torch.dist(_asked(x[None], t[row:row + 1] - 1)[0], eps[row]) ** 2
    return total / x0.numel()


def _loss(network, x0, t, eps, alphas_cumprod, shown=-1, bar=0, target="eps", total=torch.mean, power=0.5,
          parts=lambda x0, eps: (x0, eps)):
    share, (first, second) = alphas_cumprod[t + bar][:, None, None], parts(x0, eps)
    answer = network(share ** power * first + (1 - share) ** power * second, t + shown)
    return total((answer - (eps if target == "eps" else x0)) ** 2)


def _loss_unshifted(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, shown=0)


def _loss_bar(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, bar=-1)


def _loss_clip(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, target="x0")


def _loss_sum(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, total=torch.sum)


def _loss_rootless(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, power=1.0)


def _loss_swapped(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t, eps, alphas_cumprod, parts=lambda x0, eps: (eps, x0))


def _loss_one(network, x0, t, eps, alphas_cumprod):
    return _loss(network, x0, t[:1].expand(len(t)), eps, alphas_cumprod)


LOSS = Exercise(
    name="04.loss", target="noise_loss", kind="build", title="The loss", minutes=20, points=3, level=2,
    cases=_loss_cases, call=_call_loss, oracle=_loss_oracle, gradients=True, forbidden=("denoising_loss", "Process"),
    mistakes=(
        Mistake("off by one, network", _loss_unshifted, "The network is shown the wrong time. Ours run from 1 to T, "
                "and it counts its noise levels from 0: the classic off-by-one. (Chapter 04, the section on time.)"),
        Mistake("off by one, schedule", _loss_bar, "The clip is noised for the wrong time: `alphas_cumprod[0]` belongs "
                "to t = 0, so no shift is needed there. Only the network counts differently."),
        Mistake("compared with the clip", _loss_clip, "You compare the answer with the clip. This network predicts the "
                "noise."),
        Mistake("amounts for sizes", _loss_rootless, "You mix clip and noise by alpha-bar and the rest of it. These "
                "are shares of the *variance*; x_t gets too small half-way, as in 04.add_noise."),
        Mistake("swapped", _loss_swapped, "The clip and the noise have changed places in x_t: at t = 1 it is nearly "
                "all noise. alpha-bar is what is left of the clip."),
        Mistake("one time for all", _loss_one, "All clips get the time of the first one. Each has its own `t`."),
        Mistake("a sum", _loss_sum, "You add up all squared errors. The loss is their mean; else the step size depends "
                "on the size of the batch."),
    ),
    hints=(sketches.noise_loss,
           "Noise the clips, each for its own time; ask; compare. Each row of the batch has its own alpha-bar: give "
           "it the axes that are missing.", "alphas_cumprod[t] has the shape (B,), and x0 has (B, C, N)."),
)


# 04.half

def _half_oracle(snr):
    bars = _schedule_oracle(0.00085, 0.012, 1000)
    return int((bars / (1 - bars) < snr).nonzero()[0])


HALF = Exercise(
    name="04.half", target="answer_half", kind="explore", title="Where the noise wins", minutes=10, points=1,
    options=lambda rng: {"snr": rng.choice((1.0, 0.5, 0.25, 0.1))}, oracle=_half_oracle, tolerance=0,
    mistakes=(
        Mistake("as the network counts", lambda snr: _half_oracle(snr) - 1, "That is the number the network is shown. "
                "Our t is one higher."),
        Mistake("the last before", lambda snr: _half_oracle(snr) - 2, "Nearly: the first time at which it is *below*."),
        Mistake("sizes", lambda snr: _half_oracle(snr ** 2 if snr != 1 else 0.4142 ** 2), "You compare sizes, "
                "alpha / sigma. The ratio is one of squares."),
    ),
    hints=(sketches.half,
           "SNR(t) = alpha-bar / (1 - alpha-bar), and you have built alpha-bar in the first exercise."),
)

EXERCISES = [SCHEDULE, ADD_NOISE, SPLIT, LOSS, HALF]
