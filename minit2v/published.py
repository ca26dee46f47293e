"""What has been published of the released model and its neighbours, each figure with how it was measured.

`minit2v evaluate --published` prints this. It is here so that nobody puts a figure of ours beside one of these: they
are not even comparable among themselves.
"""

# How sure we are of a figure.
CERTAINTY = {
    "files": "averaged by us from the result files that the authors published",
    "index": "in an index of papers; claimed by the authors, marked as unverified there",
    "others": "in a leaderboard: measured again by the authors of other papers",
    "second-hand": "from somebody's notes on the report, which we could not read ourselves",
}

MSR_VTT = "MSR-VTT, zero-shot, 256 x 256; the report's protocol, second-hand: 2048 random videos"
FETV = "FETV's prompts, 16 frames, 256 x 256, StyleGAN-V's FVD, 4 seeds"
FETV_CLIP = "FETV, CLIP ViT-B/32, 16 frames, mean of their vectors; 619 prompts"

# (measure, model, figure, how it was measured, how sure we are)
FIGURES = [
    ("FVD", "ModelScopeT2V", "550", MSR_VTT, "index"),
    ("FVD", "ModelScopeT2V", "536", "MSR-VTT, zero-shot; protocol not seen", "others"),
    ("FVD", "ModelScopeT2V", "410", "UCF-101, zero-shot; protocol not seen", "others"),
    ("FVD", "CogVideo (English)", "1294", MSR_VTT, "second-hand"),
    ("FVD", "MagicVideo", "1290", MSR_VTT, "second-hand"),
    *(("FVD", model, figure, f"{FETV}, {count} videos", "files") for model, figures in (
        ("ModelScopeT2V", ("2902 ± 438", "1633 ± 216", "1124 ± 83", "858 ± 51", "674 ± 22")),
        ("ZeroScope", ("3402 ± 561", "1631 ± 189", "1211 ± 220", "1050 ± 120", "902 ± 64")),
        ("Text2Video-Zero", ("2366 ± 178", "1211 ± 53", "842 ± 30", "618 ± 32", "499 ± 15")),
        ("CogVideo", ("1945 ± 135", "1068 ± 47", "756 ± 39", "525 ± 22", "403 ± 7")),
    ) for count, figure in zip((32, 128, 256, 512, 1024), figures)),
    ("FID-vid", "ModelScopeT2V", "11.09", MSR_VTT, "index"),
    ("FID-vid", "Make-A-Video", "13.17", MSR_VTT, "second-hand"),
    ("FID-vid", "CogVideo (English)", "23.59", MSR_VTT, "second-hand"),
    ("CLIPSIM", "ModelScopeT2V", "0.2930", "MSR-VTT, zero-shot; second-hand: all captions of the test set", "index"),
    ("CLIPSIM", "Make-A-Video", "0.3049", "MSR-VTT, as in the report", "second-hand"),
    ("CLIPSIM", "Video LDM", "0.2929", "MSR-VTT, as in the report", "second-hand"),
    ("CLIPSIM", "CogVideo (English)", "0.2631", "MSR-VTT, as in the report", "second-hand"),
    ("CLIPSIM", "ModelScopeT2V", "0.3146", FETV_CLIP, "files"),
    ("CLIPSIM", "real videos", "0.3056", FETV_CLIP.replace("619 prompts", "541 videos"), "files"),
    ("CLIPSIM", "ZeroScope", "0.3047", FETV_CLIP, "files"),
    ("CLIPSIM", "Text2Video-Zero", "0.3045", FETV_CLIP, "files"),
    ("CLIPSIM", "CogVideo", "0.2853", FETV_CLIP, "files"),
]

WHY = [
    "The number of videos decides more than the model. FETV's ModelScopeT2V has an FVD of 2902 on 32 videos and of 674 "
    "on 1024: the same model, the same prompts, the same code. Two samples of one and the same Gaussian with FVD's "
    "400 features are 159 apart at 512 samples. An FVD without its number of videos says nothing.",
    "The data decide what is real. 550 is of MSR-VTT and 410 of UCF-101: other clips to compare with, other prompts.",
    "FVD's networks differ (TF-Hub's I3D and its port, the I3D of the paper, VideoMAE), and so do the frames' number, "
    "rate, size, filter and compression; each moves the figure by as much as a better model does.",
    "FVD looks at frames more than at motion: FETV's ranks Text2Video-Zero, which draws one frame after the other "
    "with an image model, above ModelScopeT2V at every number of videos.",
    "CLIPSIM looks at single frames, and its scale is not what it seems: with FETV's protocol ModelScopeT2V (0.3146) "
    "is above the real videos (0.3056). Compare with real clips under the same protocol, or not at all.",
    "Of the report (arXiv:2308.06571) we could read the abstract only; that 550 is of 2048 videos is second-hand.",
    "The course Frechet distance and the course's text-video similarity are on no scale that appears here.",
]


def table() -> str:
    """The figures as a Markdown table, how sure they are, and why they cannot be compared."""
    lines = ["| measure | model | figure | how it was measured | sure? |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in FIGURES]
    lines += ["", *(f"{mark}: {meaning}." for mark, meaning in CERTAINTY.items()),
              "", "Why these cannot be compared, with each other or with yours:", *(f"- {reason}" for reason in WHY)]
    return "\n".join(lines)
