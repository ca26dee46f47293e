"""Tokenizer and text encoder against open_clip itself and transformers, merges against a hand-made example."""

import gzip
import json
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer

from minit2v import checkpoints as rules
from minit2v.config import TextConfig, modelscope_1_7b
from minit2v.text import ContrastiveText, HubTokenizer, TextEncoder, Tokenizer, learn_merges, write_merges

NAMES = json.loads(gzip.decompress((Path(__file__).parent / "data" / "vae_text_names.json.gz").read_bytes()))
SMALL = [
    TextConfig(width=32, heads=2, layers=3, context_length=12, vocab_size=600),
    TextConfig(width=48, heads=3, layers=5, context_length=77, vocab_size=900),
]
PROMPTS = [
    "", "a red circle moves right", "A Red  Circle,\tmoves right!", "It's 2 squares: don't blink...",
    "一个红色的小圆快速向右移动", "红色 circle 移动", "Ünïcödé façade naïve", "emoji 🎈 flies up",
    "<b>html &amp; entities</b>", "“curly quotes” and ﬁ ligature", "supercalifragilisticexpialidocious",
    "a_b-c/d\\e", "１２３ ＡＢＣ",
]
LONG = "a small red circle moves quickly to the right and a big blue square moves slowly up " * 6


def random_weights(module, seed=0):
    """Every parameter random, norms and biases included, so that a swapped or unused one is seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim > 1 and "embedding" not in name:
                noise = 1.5 * noise / parameter.shape[-1] ** 0.5
            elif parameter.ndim == 1:
                noise = 0.3 * noise + ("ln_" in name and "weight" in name)
            parameter.copy_(noise)
    return module.eval()


def some_tokens(config, n=3, seed=1):
    """Start of text, words, end of text, zeros: rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(n, config.context_length, dtype=torch.long)
    for i, row in enumerate(tokens):
        end = min(3 + 4 * i, config.context_length - 1)
        row[1:end] = torch.randint(1, config.vocab_size - 2, (end - 1,), generator=generator)
        row[0], row[end] = config.vocab_size - 2, config.vocab_size - 1
    return tokens


# ---- text encoder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_equals_open_clip_before_its_last_block(config, dtype, tolerance):
    tower = random_weights(TextTransformer(config.context_length, config.vocab_size, config.width, config.heads,
                                           config.layers, output_dim=16)).to(dtype)
    encoder = TextEncoder(config).to(dtype).eval()
    weights = tower.state_dict()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()}, strict=True)
    caught = []
    tower.transformer.resblocks[-2].register_forward_hook(lambda module, args, output: caught.append(output))
    tokens = some_tokens(config)
    with torch.no_grad():
        tower(tokens)
        expected = F.layer_norm(caught[0], (config.width,), weights["ln_final.weight"], weights["ln_final.bias"], 1e-5)
        context = encoder(tokens)
    assert context.shape == (3, config.context_length, config.width) and expected.std() > 0.3
    assert (context - expected).abs().max() <= tolerance


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_equals_transformers(config, dtype, tolerance):
    transformers = pytest.importorskip("transformers")
    encoder = random_weights(TextEncoder(config)).to(dtype)
    peer = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=4 * config.width,
        num_hidden_layers=config.layers - 1, num_attention_heads=config.heads,
        max_position_embeddings=config.context_length, hidden_act="gelu", bos_token_id=config.vocab_size - 2,
        eos_token_id=config.vocab_size - 1, pad_token_id=0)).to(dtype).eval()
    prefixed = any(name.startswith("text_model.") for name in peer.state_dict())          # before transformers 5
    weights = {}
    for name, tensor in encoder.state_dict().items():
        released = rules.released_names(name, rules.TEXT_HF_2023 if prefixed else rules.TEXT_HF)
        weights.update(zip(released, tensor.chunk(len(released))))
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing)
    tokens = some_tokens(config)
    with torch.no_grad():
        expected = peer(input_ids=tokens).last_hidden_state
        context = encoder(tokens)
    assert expected.std() > 0.3 and (context - expected).abs().max() <= tolerance


def test_released_size():
    with torch.device("meta"):
        encoder = TextEncoder(modelscope_1_7b().text)
    assert sum(p.numel() for p in encoder.parameters()) == 340_387_840
    assert not list(encoder.buffers())                    # nothing is left on the meta device once weights are assigned
    assert list(encoder.state_dict()) == [name for name, _ in encoder.named_parameters()]


def test_released_names_and_shapes():
    with torch.device("meta"):
        ours = TextEncoder(TextConfig()).state_dict()
    for layout, table, unread in [
            ("text_hf", rules.TEXT_HF, set()),
            ("text_hf_2023", rules.TEXT_HF_2023, {"text_model.embeddings.position_ids"}),
            ("text_open_clip", rules.TEXT_OPEN_CLIP, {"text_projection", "logit_scale"})]:
        theirs = {}
        for name, tensor in ours.items():
            released = rules.released_names(name, table)
            theirs.update({part: [len(tensor) // len(released), *tensor.shape[1:]] for part in released})
        expected = {name: shape for name, shape in NAMES[layout].items()
                    if name not in unread and not name.startswith("transformer.resblocks.23.")}
        assert theirs == expected, layout


def test_the_mask_is_causal():
    """A later word changes what follows it and nothing before."""
    config = SMALL[0]
    encoder = random_weights(TextEncoder(config)).double()
    tokens = some_tokens(config, n=1)
    changed = tokens.clone()
    changed[0, 7] = 5
    with torch.no_grad():
        moved = (encoder(tokens) - encoder(changed)).abs().amax(dim=-1)[0]    # (L,)
    assert (moved[:7] <= 1e-12).all() and (moved[7:] > 1e-6).all()


def test_shorter_rows_and_too_long_ones():
    config = SMALL[0]
    encoder = random_weights(TextEncoder(config)).double()
    tokens = some_tokens(config)
    with torch.no_grad():
        assert (encoder(tokens)[:, :5] - encoder(tokens[:, :5])).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="at most 12"):
        encoder(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(texts, length\)"):
        encoder(torch.zeros(12, dtype=torch.long))


# ---- tokenizer -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_tokenizer():
    return Tokenizer(TextConfig())


def test_ids_equal_open_clip(clip_tokenizer):
    ids = clip_tokenizer(PROMPTS)
    assert ids.dtype == torch.long and ids.shape == (len(PROMPTS), 77)
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-H-14")(PROMPTS))
    assert ids[0].tolist() == [49406, 49407] + [0] * 75                       # the empty prompt; padding is 0
    assert ids[1, :7].tolist() == [49406, 320, 736, 7117, 6880, 1155, 49407]  # frozen


def test_truncation_keeps_the_end_and_says_what_was_cut(clip_tokenizer):
    with pytest.warns(UserWarning, match="this was cut off") as caught:
        ids = clip_tokenizer([LONG])
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-H-14")([LONG]))
    assert ids[0, -1] == 49407 and (ids[0, :-1] != 49407).all()
    kept, cut = clip_tokenizer.decode(ids[0]), str(caught[0].message).split('"')[1]
    assert f"{kept} {cut}" == LONG.strip()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_tokenizer("word " * 75)                      # exactly as many as fit: no warning


def test_decode(clip_tokenizer):
    assert clip_tokenizer.decode(clip_tokenizer("A red circle moves")[0]) == "a red circle moves"
    assert clip_tokenizer.decode(clip_tokenizer("一个红色的圆")[0]) == "一个红色的圆"
    assert clip_tokenizer.decode([320, 736]) == "a red"


HUB_FILES = {                                             # as released, but for notes that nobody reads
    "special_tokens_map.json": {
        **{name: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
           for name, content in (("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>"),
                                 ("unk_token", "<|endoftext|>"))}, "pad_token": "!"},
    "tokenizer_config.json": {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        **{name: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False,
                  "single_word": False} for name, content in (("bos_token", "<|startoftext|>"),
                                                              ("eos_token", "<|endoftext|>"),
                                                              ("unk_token", "<|endoftext|>"))},
        "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}}
ONLY_HERE_DIFFERENT = [                                   # prompts that the two tokenizers read differently
    "Wow!", "stop!!! now", "! a red circle", "hi!there", "a<|endoftext|>b", "<|startoftext|>", "x <|ENDOFTEXT|> y",
    "<end_of_text>", "ΟΔΟΣ İ", "<b>html &amp; entities</b>", "&lt;p&gt;", "“curly quotes” and ﬁ ligature",
    "１２３ ＡＢＣ", "dog’s life",
]
ALIKE = ["", "a red circle moves right", "it's 2 squares: don't blink...", "一个红色的圆", "cafe\u0301 NAÏVE",
         "((<start_of_text>))", "a_b-c/d\\e", "  tabs\tand\nlines ", "x² + ½ = Ⅷ", "emoji 🎈🏳️‍🌈 flies",
         "I'LL we've 'tis o'clock ''", "हिन्दी", "$%^&*()[]{}", "mp4 1080p", "word " * 90]


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    """The tokenizer's folder on the Hub, written from open_clip's own table."""
    folder, bpe = tmp_path_factory.mktemp("tokenizer"), open_clip.tokenizer.SimpleTokenizer()
    vocabulary = {token: i for i, token in enumerate([*list(bpe.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"])}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in bpe.bpe_ranks)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    for name, values in HUB_FILES.items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_hub_tokenizer_is_that_of_transformers(hub_files, clip_tokenizer):
    transformers = pytest.importorskip("transformers")
    peer = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer).from_pretrained(hub_files)
    prompts = [*ONLY_HERE_DIFFERENT, *ALIKE, *PROMPTS, LONG]
    expected = peer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    found = HubTokenizer(TextConfig())(prompts)
    wrong = [prompt for prompt, a, b in zip(prompts, found, expected) if not torch.equal(a, b)]
    assert not wrong and found.dtype == torch.long
    original = clip_tokenizer(prompts)
    assert torch.equal(original, open_clip.get_tokenizer("ViT-H-14")(prompts))
    alike = [prompt for prompt, a, b in zip(prompts, found, original) if torch.equal(a, b)]
    assert not set(alike) & set(ONLY_HERE_DIFFERENT) and set(alike) >= set(ALIKE)


def test_an_exclamation_mark_is_padding_on_the_hub():
    """Frozen: what open_clip calls 256, "!" at the end of a word, is the padding token 0 there."""
    ours, hub = Tokenizer(TextConfig())("red!")[0], HubTokenizer(TextConfig())("red!")[0]
    assert ours[:4].tolist() == [49406, 736, 256, 49407] and hub[:4].tolist() == [49406, 736, 0, 49407]
    assert not ours[4:].any() and not hub[4:].any()


def test_hub_tokenizer_is_for_clips_vocabulary(tmp_path):
    with pytest.raises(ValueError, match='vocabulary of its own.*tokenizer="open_clip"'):
        HubTokenizer(tiny_tokenizer(tmp_path).config)


# ---- merges ----------------------------------------------------------------------------------------------------


def test_merges_of_the_textbook_example():
    """The words of Sennrich et al. 2016, algorithm 1. By hand: es 9, est 9, lo 7, then newest's rest 6, then low 5."""
    words = {("low", True): 5, ("lower", True): 2, ("newest", True): 6, ("widest", True): 3}
    assert learn_merges(words, 514 + 7) == [("e", "s"), ("es", "t</w>"), ("l", "o"), ("e", "w"), ("ew", "est</w>"),
                                            ("n", "ewest</w>"), ("lo", "w</w>")]


def test_overlapping_pairs_join_from_the_left():
    assert learn_merges({("aaaab", False): 1}, 514 + 2) == [("a", "a"), ("aa", "aa")]
    assert learn_merges({("aaab", False): 1}, 514 + 3) == [("a", "a"), ("a", "b"), ("aa", "ab")]


def test_merges_stay_inside_pieces():
    """Two pieces of one Chinese run: their bytes are joined inside each, never across; only the last one is final."""
    merges = learn_merges({("红色", False): 3, ("圆", True): 2}, 514 + 5 + 2)
    joined = {a + b for a, b in merges}
    letters = {byte: letter for letter, byte in open_clip.tokenizer.SimpleTokenizer().byte_decoder.items()}
    red, circle = (["".join(letters[b] for b in text.encode())] for text in ("红色", "圆"))
    assert red[0] in joined and circle[0] + "</w>" in joined and red[0] + circle[0] + "</w>" not in joined


@pytest.mark.parametrize("size, words", [(513, ["513", "at least 514"]),
                                         (600, ["600", "no more than 2 merges", "516"])])
def test_impossible_sizes_are_explained(size, words):
    with pytest.raises(ValueError) as error:
        learn_merges({("red", True): 1}, size)
    assert all(word in str(error.value) for word in words)


def tiny_tokenizer(folder, context_length=10):
    corpus = {("circle", True): 9, ("red", True): 8, ("moves", True): 7,
              ("红色", False): 6, ("的", False): 5, ("圆", True): 4}
    size = 514 + 5 + 2 + 4 + 5 + 2 + 2
    path = folder / "merges.txt.gz"
    write_merges(path, learn_merges(corpus, size))
    return Tokenizer(TextConfig(context_length=context_length, vocab_size=size, merges=str(path)))


def test_merges_file_round_trip(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    size = tokenizer.config.vocab_size
    assert tokenizer.bpe.vocab_size == size == len(tokenizer.bpe.encoder)
    assert (tokenizer.sot, tokenizer.eot) == (size - 2, size - 1)
    ids = tokenizer(["Red circle moves", "红色的圆", "xyz"])
    assert (ids[0] != 0).sum() == 5 and (ids[1] != 0).sum() == 5              # each word or piece is one token
    assert [tokenizer.decode(row) for row in ids] == ["red circle moves", "红色的圆", "xyz"]
    again = tmp_path / "again.txt.gz"
    lines = gzip.decompress(Path(tokenizer.config.merges).read_bytes()).decode().split("\n")
    write_merges(again, [tuple(line.split()) for line in lines[1:]])
    assert again.read_bytes() == Path(tokenizer.config.merges).read_bytes()
    assert again.read_bytes()[4:8] == bytes(4)            # gzip's time stamp: none, so the same bytes on any day


def test_cut_in_the_middle_of_a_character(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, context_length=4)
    with pytest.warns(UserWarning, match='3 tokens, but only 2 fit.*"$'):
        ids = tokenizer("蓝")                             # three bytes that were never joined
    assert ids[0, 0] == tokenizer.sot and ids[0, -1] == tokenizer.eot


def test_wrong_vocabularies_are_explained(tmp_path):
    path = tiny_tokenizer(tmp_path).config.merges
    with pytest.raises(ValueError, match="set vocab_size=534"):
        Tokenizer(TextConfig(vocab_size=1024, merges=path))
    with pytest.raises(ValueError, match="no such file"):
        Tokenizer(TextConfig(vocab_size=1024, merges=str(tmp_path / "none.gz")))


# ---- contrastive training --------------------------------------------------------------------------------------


def some_latents(n, size=8, seed=2):
    return torch.rand(n, 4, 16, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_info_nce_is_its_formula():
    config = SMALL[0]
    model = random_weights(ContrastiveText(config))
    with torch.no_grad():
        model.logit_scale.fill_(1.2)
        loss, parts = model.loss(some_tokens(config, 3), some_latents(3))
        text, video = model.embed_text(some_tokens(config, 3)), model.embed_video(some_latents(3))
        logits = (torch.tensor(1.2).exp() * text @ video.T).double()
        model.logit_scale.fill_(10.0)
        assert model.loss(some_tokens(config, 3), some_latents(3))[1]["scale"].item() == pytest.approx(100.0)
    rows, columns = logits.exp() / logits.exp().sum(1, keepdim=True), logits.exp() / logits.exp().sum(0)
    expected = -(rows.diagonal().log().mean() + columns.diagonal().log().mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["accuracy"].item() == pytest.approx(sum(int(logits[i].argmax() == i) for i in range(3)) / 3)
    assert torch.allclose(text.norm(dim=1), torch.ones(3)) and torch.allclose(video.norm(dim=1), torch.ones(3))


def test_text_is_pooled_at_its_end():
    config = SMALL[0]
    model = random_weights(ContrastiveText(config))
    tokens = some_tokens(config)
    hidden = []
    model.text.ln_final.register_forward_hook(lambda module, args, output: hidden.append(output))
    with torch.no_grad():
        pooled = model.embed_text(tokens)
        ends = [row.tolist().index(config.vocab_size - 1) for row in tokens]
        expected = torch.stack([hidden[0][i, end] for i, end in enumerate(ends)]) @ model.text.text_projection
    assert len(set(ends)) == 3
    assert (pooled - expected / expected.norm(dim=1, keepdim=True)).abs().max() <= 1e-6


def test_text_encoder_is_the_trained_tower_before_its_last_block():
    config = SMALL[1]
    model = random_weights(ContrastiveText(config))
    encoder, tokens, caught = model.text_encoder().eval(), some_tokens(config), []
    model.text.transformer.resblocks[-2].register_forward_hook(lambda module, args, output: caught.append(output))
    with torch.no_grad():
        model.embed_text(tokens)
        assert (encoder(tokens) - model.text.ln_final(caught[0])).abs().max() <= 1e-5
        before = encoder(tokens)
        model.text.token_embedding.weight.zero_()         # a copy: training on does not move it
        assert torch.equal(encoder(tokens), before)


def test_video_tower_sees_the_order_of_frames():
    model, latents = random_weights(ContrastiveText(SMALL[0])), some_latents(2)
    with torch.no_grad():
        assert (model.embed_video(latents) - model.embed_video(latents.flip(2))).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"must be \(clips, 4, 16"):
        model.embed_video(latents[:, :, :8])


def test_captions_learn_to_find_their_clips():
    config = SMALL[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ContrastiveText(config)
    tokens, clips = some_tokens(config, 3), some_latents(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        loss, parts = model.loss(tokens, clips)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert parts["accuracy"] == 1 and loss < 0.3
