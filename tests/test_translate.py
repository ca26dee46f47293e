"""Chinese prompts into English: a tiny Marian model, made and taught here, through the real transformers."""

import json
import os
import shutil
import sys
import warnings

import pytest
import torch
from test_pipeline import make_pipe

from minit2v import cli, translate
from minit2v.translate import has_chinese, to_english

transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

PAIRS = {"一个红色的圆": "a red circle", "蓝色的方块向左移动": "a blue square moves left", "小星星": "a small star"}


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A Marian checkpoint as on the Hub: sentencepiece models, a vocabulary, a network that knows PAIRS by heart."""
    folder = tmp_path_factory.mktemp("marian")
    pieces = {}
    for name, texts in (("source", PAIRS.keys()), ("target", PAIRS.values())):
        corpus = folder / f"{name}.txt"
        corpus.write_text("\n".join(texts), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / name), vocab_size=40,
                                                 hard_vocab_limit=False, character_coverage=1.0, minloglevel=2)
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces |= dict.fromkeys(model.id_to_piece(i) for i in range(model.get_piece_size()))
    words = ["</s>", "<unk>", *(piece for piece in pieces if piece not in ("</s>", "<unk>", "<s>")), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "zh", "target_lang": "en"}))
    padding = len(words) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.MarianMTModel(transformers.MarianConfig(
            vocab_size=len(words), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0,
            pad_token_id=padding, eos_token_id=0, forced_eos_token_id=0, decoder_start_token_id=padding, num_beams=2,
            bos_token_id=None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    batch = tokenizer(list(PAIRS), text_target=list(PAIRS.values()), return_tensors="pt", padding=True)
    batch["labels"][batch["labels"] == padding] = -100
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = network(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    network.save_pretrained(folder)
    return folder


def test_chinese_becomes_english_and_the_rest_stays(translator):
    prompts = [*PAIRS, "a dog, running ", ""]
    assert to_english(prompts, translator) == [*PAIRS.values(), "a dog, running ", ""]
    assert to_english("小星星", translator) == "a small star"         # alone as in a batch of longer ones
    assert to_english([], translator) == []


def test_no_network_is_loaded_for_english(tmp_path):
    assert to_english(["a red circle", "naïve café"], tmp_path / "nowhere") == ["a red circle", "naïve café"]


@pytest.mark.parametrize("text, answer", [("一", True), ("a red 圆", True), ("㐀", True), ("𠀀", True),
                                          ("circle", False), ("かな", False), ("“！”，。", False), ("", False)])
def test_what_is_chinese(text, answer):
    assert has_chinese(text) is answer


def test_it_is_quiet(translator, recwarn):
    translate._load.cache_clear()
    to_english("小星星", translator)
    assert not [w for w in recwarn if "sacremoses" in str(w.message)]


@pytest.mark.parametrize("absent", ["transformers", "sentencepiece"])
def test_missing_packages_are_named(translator, monkeypatch, absent):
    translate._load.cache_clear()
    monkeypatch.setitem(sys.modules, absent, None)                    # Python's own sign that there is none
    with pytest.raises(ImportError, match=rf"needs {absent}.*\.\[translate\]"):
        to_english("圆", translator)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere.*Helsinki"):
        to_english("圆", str(tmp_path / "deep" / "nowhere"))
    with pytest.raises(ValueError, match="the translator .* cannot be loaded .*Give the folder of a Marian model"):
        to_english("圆", tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_runs_nothing(translator, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(translator, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil(str(tmp_path / "owned"))}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        to_english("圆", folder)
    assert not (tmp_path / "owned").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)      # it would have
    assert (tmp_path / "owned").exists()


def test_generate_translates_first(translator, tmp_path, capsys):
    weights = str(make_pipe(tmp_path).save(tmp_path / "saved"))
    command = ["generate", "一个红色的圆", "--negative-prompt", "小星星", "--weights", weights, "--num-inference-steps",
               "2", "-o", str(tmp_path / "clip.gif"), "--translate", "--translator", str(translator)]
    assert cli.main(command) == 0
    assert "'一个红色的圆' in English:\n'a red circle': 3 frames" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["prompt"] == "a red circle" and settings["translated_from"] == "一个红色的圆"
    assert settings["negative_prompt"] == "a small star"


def test_the_default_is_one_name():
    assert cli.TRANSLATOR == translate.MODEL
