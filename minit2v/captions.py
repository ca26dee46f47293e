"""What people say of a scene: captions in English and in Chinese, in several wordings each.

A caption names colour, shape and motion, unless it is told to leave out one of them; size, speed and ground about half
of the time. Each entry of the tables lists wordings, and a wording is a list of words: so Chinese, which is written
without spaces, has known words too, and the tokenizer can learn them (`recipe.learn_vocabulary`).
"""

import random
import re
import unicodedata
import warnings

from .world import COLOURS, GROUNDS, HEADINGS, TEXTURES, Scene, Thing


def _w(*wordings: str) -> list[list[str]]:
    return [wording.split() for wording in wordings]


ENGLISH = {
    "shape": {"circle": _w("circle", "disc"), "square": _w("square"), "triangle": _w("triangle"), "star": _w("star")},
    "size": {"small": _w("small", "little"), "big": _w("big", "large")},
    "speed": {"slow": _w("slowly"), "fast": _w("quickly", "fast")},
    "ground": {g: _w(f"on a {g} background", f"on {g}", f"in front of a {g} background") for g in GROUNDS},
    "texture": {k: _w(f"on a {k} background", f"in front of a {k} background") for k in TEXTURES[1:]},
    "camera": {"pans left": _w("the camera pans left"),
               "pans right": _w("the camera pans right"), "zooms in": _w("the camera zooms in"),
               "zooms out": _w("the camera zooms out")},
    "motion": {d: _w(f"moves {d}", f"goes {d}", f"is moving {d}") + (
                   _w(f"moves to the {d}", f"goes to the {d}") if d in ("right", "left") else _w(f"moves {d}wards")
                   if d in ("up", "down") else _w(f"moves diagonally {d}", f"goes {d.replace(' ', ' and ')}"))
               for d in HEADINGS} | {
               "grow": _w("grows", "is growing", "gets bigger"),
               "shrink": _w("shrinks", "is shrinking", "gets smaller"),
               "spin": _w("spins", "rotates", "is spinning"),
               "bounce": _w("bounces", "is bouncing", "bounces off the wall"),
               "orbit": _w("moves in a circle", "circles around", "goes round in a circle"),
               "stay": _w("stays still", "does not move", "stands still")},
}
CHINESE_COLOURS = {"red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "cyan": "青色", "blue": "蓝色",
                   "purple": "紫色", "pink": "粉色"}
_ZH_HEADINGS = {"right": "右", "left": "左", "up": "上", "down": "下", "up right": "右上", "up left": "左上",
                "down right": "右下", "down left": "左下"}
_ZH_GROUNDS = {"black": "黑色", "grey": "灰色", "white": "白色"}
_ZH_TEXTURES = {"striped": "条纹", "checkered": "格子", "dotted": "圆点"}
CHINESE = {
    "shape": {"circle": _w("圆", "圆形"), "square": _w("方块", "正方形"), "triangle": _w("三角形"),
              "star": _w("星星", "五角星")},
    "size": {"small": _w("小"), "big": _w("大")},
    "speed": {"slow": _w("慢慢", "缓慢"), "fast": _w("快速", "飞快")},
    "ground": {g: _w(f"在 {w} 背景 上", f"{w} 背景 上") for g, w in _ZH_GROUNDS.items()},
    "texture": {k: _w(f"在 {w} 背景 上", f"{w} 背景 上") for k, w in _ZH_TEXTURES.items()},
    "camera": {"pans left": _w("镜头 向 左 平移"), "pans right": _w("镜头 向 右 平移"),
               "zooms in": _w("镜头 拉近"), "zooms out": _w("镜头 拉远")},
    "motion": {d: _w(f"向 {w} 移动", f"往 {w} 移动", f"向 {w} 运动") for d, w in _ZH_HEADINGS.items()} | {
               "grow": _w("变大", "长大"), "shrink": _w("变小", "缩小"), "spin": _w("旋转", "自转"),
               "bounce": _w("弹跳", "来回 反弹"), "orbit": _w("绕圈", "转圈 移动"), "stay": _w("不动", "静止 不动")},
}


def caption_words(scene: Scene, rng: random.Random, language: str = "en", unsaid: tuple[str, ...] = ()) -> list[str]:
    """A caption as words, punctuation included. Size, speed and ground are named about half of the time.

    unsaid: what it leaves out of all things, "colour" or "motion" (and with it the speed).
    """
    if language not in ("en", "zh"):
        raise ValueError(f'language is "en" or "zh", not {language!r}')
    one = _english if language == "en" else _chinese
    words: list[str] = []
    for i, thing in enumerate(scene.things):
        words += ([] if i == 0 else ["and"] if language == "en" else ["，"]) + one(thing, rng, unsaid)
    table = ENGLISH if language == "en" else CHINESE
    extra = []
    if scene.texture != "plain":
        extra = rng.choice(table["texture"][scene.texture])
    elif rng.random() < 0.4:
        extra = rng.choice(table["ground"][scene.ground])
    if extra:
        words = words + extra if language == "en" else extra + ["，"] * (extra[0] != "在") + words
    if scene.camera != "still":
        words = words + [",", *rng.choice(table["camera"][scene.camera])] if language == "en" else (
            words + ["，", *rng.choice(table["camera"][scene.camera])])
    return words


def _english(thing: Thing, rng: random.Random, unsaid: tuple[str, ...]) -> list[str]:
    size = rng.choice(ENGLISH["size"][thing.size]) if rng.random() < 0.5 else []
    style = ["outlined"] if thing.outlined else []
    motion = rng.choice(ENGLISH["motion"][thing.motion])
    speed = rng.choice(ENGLISH["speed"][thing.speed]) if rng.random() < 0.5 and thing.motion != "stay" else []
    last = rng.random() < 0.6 or motion[0] in ("is", "gets", "does")        # "moves up slowly" or "moves slowly up"
    verb = motion + speed if last else motion[:1] + speed + motion[1:]
    noun = [*size, *style, *([] if "colour" in unsaid else [thing.colour]), *rng.choice(ENGLISH["shape"][thing.shape])]
    return ["an" if noun[0][0] in "aeiou" else "a", *noun, *([] if "motion" in unsaid else verb)]


def _chinese(thing: Thing, rng: random.Random, unsaid: tuple[str, ...]) -> list[str]:
    size = rng.choice(CHINESE["size"][thing.size]) if rng.random() < 0.5 else []
    style = ["空心"] if thing.outlined else []
    shape = rng.choice(CHINESE["shape"][thing.shape])
    speed = rng.choice(CHINESE["speed"][thing.speed]) if rng.random() < 0.5 and thing.motion != "stay" else []
    number = ["一个"] if rng.random() < 0.8 else []
    particle = ["的"] if rng.random() < 0.6 or size else []
    motion = rng.choice(CHINESE["motion"][thing.motion])
    return [*number, *([] if "colour" in unsaid else [CHINESE_COLOURS[thing.colour], *particle]), *size, *style, *shape,
            *([] if "motion" in unsaid else [*speed, *motion])]


def join(words: list[str], language: str) -> str:
    """Words as a sentence: spaces in English, none in Chinese."""
    return "".join(words) if language == "zh" else " ".join(words).replace(" ,", ",")


def caption(scene: Scene, rng: random.Random, language: str = "en", unsaid: tuple[str, ...] = ()) -> str:
    """A caption of `scene` in English ("en") or Chinese ("zh"), in one of several wordings. unsaid: see above."""
    return join(caption_words(scene, rng, language, unsaid), language)


def _words_of(table: dict) -> set[str]:
    return {word for kind in table.values() for wordings in kind.values() for wording in wordings for word in wording}


VOCABULARY = {"en": sorted(_words_of(ENGLISH) | set(COLOURS) | {"a", "an", "and", "the", "outlined"}),
              "zh": sorted(_words_of(CHINESE) | set(CHINESE_COLOURS.values()) | {"一个", "的", "空心", "，"})}


def unknown_words(prompt: str) -> list[str]:
    """The words and signs of `prompt` that no caption contains, each once; punctuation if there is nothing else."""
    unknown = [w for w in re.findall(r"[^\W\d_\u4e00-\u9fff]+|\d+", prompt.lower()) if w not in VOCABULARY["en"]]
    longest_first = sorted(VOCABULARY["zh"], key=len, reverse=True)
    for run in re.findall(r"[\u4e00-\u9fff]+", prompt):
        unknown += re.findall("[\u4e00-\u9fff]+", re.sub("|".join(longest_first), " ", run))
    kinds = "S" if re.search(r"[^\W_]", prompt) else "SP"                # of Unicode: symbols (🔴), punctuation
    unknown += [sign for sign in prompt if unicodedata.category(sign)[0] in kinds]
    return list(dict.fromkeys(unknown))


def warn_of_unknown_words(prompts: list[str]) -> None:
    """One warning for all words that no caption contains; the line it points at is the caller's caller's."""
    if unknown := [word for prompt in prompts for word in unknown_words(prompt)]:
        known = "; ".join(", ".join(words) for words in VOCABULARY.values())
        warnings.warn(f"the mini model never saw {', '.join(map(repr, dict.fromkeys(unknown)))} and can only "
                      f"guess. The words it knows: {known}", stacklevel=3)
