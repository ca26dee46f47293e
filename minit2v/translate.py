"""Chinese into English, for a model that reads English only.

The translator is a Marian model (Junczys-Dowmunt et al. 2018, arXiv:1804.00344), by default the one that the
University of Helsinki trained on OPUS (Tiedemann & Thottingal 2020), 78 million parameters, CC-BY-4.0. It runs through
transformers, which is not needed for anything else: pip install -e ".[translate]".
"""

import functools
import importlib.util
import os
import re
import warnings
from pathlib import Path

import torch

MODEL = "Helsinki-NLP/opus-mt-zh-en"
CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")    # Han characters
LONGEST = 200                                            # tokens of a translation; CLIP reads the first 75


def has_chinese(text: str) -> bool:
    return CHINESE.search(text) is not None


def to_english(prompts: str | list[str], model: str | os.PathLike = MODEL) -> str | list[str]:
    """Translates the prompts that have Chinese in them and leaves the others as they are.

    prompts: one, or a list; returns as many. model: a folder, or "owner/name" on the Hugging Face Hub (312 MB by
    default, fetched once into its cache). Only safetensors, or pickles that hold nothing but tensors, are read.
    The same text is always translated in the same way: beam search, nothing is drawn.

    Raises ImportError if transformers or sentencepiece is missing, FileNotFoundError for a folder that is, and
    ValueError for a model that cannot be loaded.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    chinese = [text for text in texts if has_chinese(text)]
    if chinese:
        tokenizer, network = _load(str(model))
        batch = tokenizer(chinese, return_tensors="pt", padding=True, truncation=True)         # (N, L)
        with torch.inference_mode():
            tokens = network.generate(**batch, max_new_tokens=LONGEST, do_sample=False)        # (N, L')
        english = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        found = dict(zip(chinese, english))
        texts = [found.get(text, text) for text in texts]
    return texts[0] if isinstance(prompts, str) else texts


@functools.lru_cache(maxsize=1)
def _load(model: str):
    lacking = [name for name in ("transformers", "sentencepiece") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ImportError(f'translation needs {" and ".join(lacking)}: pip install -e ".[translate]" in '
                          "the repository's folder")
    import transformers

    if os.sep in model and not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise FileNotFoundError(f"there is no folder {model!r} with a translator in it; give one, or owner/name on the "
                                f"Hub (default: {MODEL})")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sacremoses.*")           # for punctuation of Latin scripts
            tokenizer = transformers.MarianTokenizer.from_pretrained(model)
        network = transformers.MarianMTModel.from_pretrained(model, weights_only=True)
    except Exception as error:                           # a lacking file, no connection, code in a pickle: all differ
        raise ValueError(f"the translator {model!r} cannot be loaded ({type(error).__name__}: "
                         f"{str(error).strip().partition(chr(10))[0]}). Give the folder of a Marian model, or its "
                         "owner/name on the Hub and a connection") from error
    return tokenizer, network.float().eval()
