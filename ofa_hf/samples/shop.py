"""A small shop of drawn products with Chinese selling captions, written in MUGE's own file format.

A product is a kind, a colour and a pattern; its images differ in cut, size, place, turn, light and background. Some
combinations are kept out of the training files, so that captions of the validation images cannot be remembered.
Everything follows from seeds: the same seed writes the same files, byte for byte under one version of Pillow.
"""

import base64
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import cycle, islice, repeat
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from ofa_hf.errors import UserError
from ofa_hf.files import read_json, write_json, write_text


RGB = tuple[int, int, int]
Point = tuple[float, float]

PROMPTS = ("图片描述了什么内容?", "图片描述了什么?")  # the official checkpoints', OFA-Chinese's
DRAWING_PROMPT = "画出图片：{text}"
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────
# A cut of a kind is a list of parts, painted in turn: `material shape numbers…` on a square of 100 × 100 units.
#   area   closed curve           half   right half of a symmetric closed curve     twin   an area and its mirror image
#   line   width, open curve      twinline   a line and its mirror image            oval   centre, radii
# Curves are smooth, with corners at points marked `*`. Materials are the keys of `tones`; `hole` cuts out.

DRESS_CUTS = (
    """
    fabric half 50,25 56,24 58.5,9* 64.5,9* 65,22 69,32* 62,45* 73,68 84,88* 68,93 50,93
    trim   half 50,43* 62.3,42.5* 63,48.5* 50,49*
    line   twinline 0.9 55,50 58,70 63,91
    fold   twinline 3 60,52 67,70 76,88
    shine  line 2.5 40,30 39,40
    """,
    """
    fabric half 50,22 56,20 58,10* 66,12 76,18 83,32* 72,37* 66,30* 63,46* 78,58 88,82* 76,88 63,86 50,90
    trim   half 50,44.5* 63,44* 64,49* 50,49.5*
    trim   twinline 2.2 82.5,31.5* 72,36.5*
    line   twinline 0.9 55,50 60,68 63,86
    fold   twinline 3 61,52 71,66 79,83
    """,
)
TSHIRT_CUTS = (
    """
    fabric half 50,20 57,19 61,12* 70,15 94,34* 83,48* 74,40* 75,88* 50,89
    trim   line 3.4 39,12* 43,19 50,21.5 57,19 61,12*
    line   twinline 0.9 74,40 73,28 72,17
    line   half 50,84.5* 75,84* 75,84.6* 50,85.1*
    fold   twinline 3 66,50 70,66 68,80
    """,
    """
    fabric half 50,32* 60,12* 70,14 95,30* 86,47* 73,39* 77,86* 50,87
    trim   line 3 39.5,12* 50,33* 60.5,12*
    line   twinline 0.9 73,39 74,28 71,15
    trim   twinline 2.6 94,31* 86,46*
    fold   twinline 3 65,52 69,66 66,80
    fabric area 58,46* 69,46* 69,56 63.5,59 58,56
    line   line 0.9 58,46* 69,46* 69,56 63.5,59 58,56 58,46*
    """,
)
TROUSERS_CUTS = (
    """
    fabric half 50,10* 69,10* 72,28 73,92* 55,92* 53,58 50,37*
    trim   half 50,9* 69,9* 70,15.5* 50,15.5*
    line   twinline 0.9 60,16 62,24 71,28
    line   line 0.9 50,16* 50,37*
    fold   twinline 2.6 63,34 64,60 64,88
    metal  oval 50 12.3 1.6 1.6
    """,
    """
    fabric half 50,10* 67,10* 72,26 88,90* 59,92* 55,62 50,38*
    trim   half 50,9* 67,9* 68.5,15.5* 50,15.5*
    line   twinline 0.9 59,16 61,24 70,27
    line   line 0.9 50,16* 50,38*
    fold   twinline 3 63,36 69,62 76,88
    trim   twinline 2.6 87,89* 59.5,91*
    """,
)
HAT_CUTS = (
    """
    trim   area 56,60* 78,55 96,64 98,72 86,73 70,69 54,69*
    fabric area 12,66* 11,40 28,20 48,18 68,22 78,42 77,66* 60,71 30,71
    trim   oval 46 20 4 2.4
    line   line 0.9 46,20 60,36 62,69
    line   line 0.9 46,20 30,36 27,70
    line   line 0.9 12,63* 30,68 60,68 77,62*
    shine  line 4 22,44 26,34 34,28
    sole   oval 45 46 6.5 6.5
    trim   oval 45 46 4 4
    """,
    """
    fabric oval 50 66 46 14
    fold   oval 50 64 31 8
    fabric half 50,27 60,20 69,28 73,63* 62,68 50,68
    trim   half 50,60 62,59 72.2,54* 73.3,64* 62,69 50,69
    line   line 0.9 50,28 48,36 49,44
    shine  line 4 35,48 35,38 39,32
    """,
)
SHOE_CUTS = (
    """
    fabric area 10,44 17,36* 30,37 40,40* 48,50 62,55 82,60 94,68 93,78* 9,78* 10,62
    trim   area 10,44 17,36* 23,37* 25,54 23,78* 9,78* 10,62
    trim   area 78,59 94,66 94,78* 75,78* 73,68
    fold   area 16,37* 30,37 40,40* 32,43
    sole   area 7,75* 95,75* 97,81 91,87* 12,87* 6,82
    line   line 0.9 7,80* 96,80*
    sole   line 2.3 43,49* 52,44*
    sole   line 2.3 50,53* 59,48*
    sole   line 2.3 58,57* 67,52*
    """,
    """
    fabric area 19,14* 43,14* 45,36 56,50 80,58 93,67 92,78* 13,78* 15,50
    trim   area 74,57 93,65 93,78* 72,78* 69,68
    trim   area 18.7,14* 43,14* 43.5,20* 18.3,20*
    line   line 0.9 32,20 36,54 46,78
    sole   oval 26 36 6.5 6.5
    trim   oval 26 36 3.6 3.6
    sole   area 10,75* 94,75* 96,81 90,87* 15,87* 9,82
    line   line 0.9 10,80* 95,80*
    sole   line 2.3 38,28* 47,26*
    sole   line 2.3 39,37* 49,34*
    sole   line 2.3 43,46* 53,41*
    sole   line 2.3 50,54* 60,49*
    """,
)
BAG_CUTS = (
    """
    trim   line 4.6 33,44* 34,10 50,6 66,10 67,44*
    fabric half 50,40* 76,40* 88,84 82,91 50,91*
    trim   half 50,40* 76,40* 79,56 64,66 50,66
    line   half 50,66 64,66 79.6,56* 79.8,57 64,67 50,67
    metal  oval 50 64 4.4 4.4
    line   twinline 0.9 79,62 83,84 80,88
    """,
    """
    trim   line 4 35,38* 34,4 66,4 65,38*
    fabric half 50,34* 80,34* 85,84 80,92 50,92*
    fold   half 50,34* 80,34* 80.4,40* 50,40*
    fabric half 50,56* 68,56* 70,80 50,80*
    line   line 0.9 32,56* 68,56* 69,80* 31,80* 32,56*
    metal  twinline 3.4 65.2,41* 65.3,41.4*
    trim   half 50,54* 69,54* 69.3,59* 50,59*
    """,
)
CUP_CUTS = (
    """
    trim   line 6.6 66,38 96,30 92,72 62,72
    fabric area 18,22* 70,22* 69,70 66,86 56,89 32,89 22,86 19,70
    tint   oval 44 22 26 5.4
    brew   oval 44 23 22.6 3.6
    shine  line 4.5 27,38 27,54 29,70
    """,
    """
    trim   line 3 54,20* 60,2* 68,1*
    fabric half 50,24* 73,24* 66,88 62,92 50,92*
    sole   half 50,17* 73,17* 75.5,25* 50,25*
    sole   half 50,12* 66,12* 69,18* 50,18*
    line   half 50,25* 75.5,25* 75.4,25.8* 50,25.8*
    trim   half 50,82* 67.4,82* 66,88* 50,88*
    shine  line 4 35,36 36,52 38,70
    """,
)
UMBRELLA_CUTS = (
    """
    metal  line 2.6 50,46* 50,82*
    trim   line 4.2 50,78* 50,98 64,98 64,88
    metal  line 2.2 50,6* 50,14*
    fabric half 50,11* 76,13 95,36 97,56* 88,46 74,46 66,56* 61,47 55,47 50,56*
    fold   area 50,11* 84,22 97,56* 88,46 74,46 66,56* 64,36
    line   twinline 0.9 50,11* 62,28 66,56*
    line   line 0.9 50,11* 50,56*
    shine  line 4 18,36 24,25 34,18
    """,
    """
    metal  line 2.6 50,46* 50,92*
    trim   line 5 50,82* 50,96*
    metal  line 2.2 50,3* 50,12*
    fabric half 50,9* 66,10 86,26 90,60* 82,51 70,51 62,60* 58,53 54,53 50,60*
    fold   area 50,9* 76,18 90,60* 82,51 70,51 62,60* 62,36
    line   twinline 0.9 50,9* 60,28 62,60*
    line   line 0.9 50,9* 50,60*
    shine  line 4 23,36 28,25 37,17
    """,
)
SOCK_CUTS = (
    """
    fabric area 50,6* 72,6* 72,44 78,56 94,64 97,76 88,83 72,80 54,70 50,54
    trim   area 50,6* 72,6* 72,14* 50,14*
    trim   area 88,61 97,70 95,82 84,82 82,72
    line   line 0.9 49,14* 49,54 54,70 72,80
    line   line 1.8 46,14* 46,52 52,64 68,72 72,84 62,92*
    fabric area 22,14* 46,14* 46,52 52,64 68,72 72,84 62,92 46,89 26,78 22,62
    trim   area 22,14* 46,14* 46,22.5* 22,22.5*
    trim   area 62,69 72,78 70,91 57,91 55,80
    trim   area 22,58 32,62 34,72 28,80 21,72
    fold   line 2.6 42,28 42,50 46,62
    """,
    """
    fabric area 42,26* 64,26* 65,44 76,54 93,58 98,68 90,76 70,74 48,70 42,56
    trim   area 42,24* 64,24* 64,31* 42,31*
    trim   area 86,56 98,62 97,74 84,76 82,66
    line   line 1.8 38.5,36* 39,56 50,66 68,70 74,80 66,89*
    fabric area 14,38* 38,38* 39,56 50,66 68,70 74,80 66,89 44,88 20,84 14,70
    trim   area 13,35* 39,35* 39,43.5* 13,43.5*
    trim   area 60,67 75,74 72,88 58,89 56,79
    trim   area 14,66 23,68 27,77 22,85 13,78
    fold   line 2.6 34,48 35,56 42,66
    """,
)
GLASSES_CUTS = (
    """
    fabric twinline 5.4 93,42* 98,36 90,30*
    fabric oval 27 52 23.5 23.5
    fabric oval 73 52 23.5 23.5
    fabric line 6.6 44,46 50,40 56,46
    hole   oval 27 52 16 16
    hole   oval 73 52 16 16
    lens   oval 27 52 16.4 16.4
    lens   oval 73 52 16.4 16.4
    gleam  line 3 18,56* 30,42*
    gleam  line 3 64,56* 76,42*
    """,
    """
    fabric twinline 5.4 92,40* 99,34 92,28*
    fabric twin 52,36* 80,31 99,30* 97,62 84,73 62,72 54,62
    fabric line 7 44,43 50,40 56,43
    hole   twin 58.5,42* 78,39 91,39* 90,58 80,65.5 66,65 60,58
    lens   twin 58.2,41.7* 78,38.7 91.3,38.7* 90.3,58.3 80,65.8 66,65.3 59.7,58.3
    gleam  line 3 16,60* 26,46*
    gleam  line 3 66,60* 76,46*
    """,
)


# ── The catalogue ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kind:
    """What all products of a kind share. `root` is the character that names the kind and no other."""

    root: str
    measure: str
    benefits: tuple[str, ...]
    occasions: tuple[str, ...]
    cuts: tuple[str, ...]
    grain: float = 1.0  # size of a pattern; small on narrow things


KINDS = {
    "连衣裙": Kind("裙", "一条", ("收腰显瘦", "优雅大方", "飘逸有型"), ("约会", "度假"), DRESS_CUTS),
    "T恤": Kind("恤", "一件", ("宽松百搭", "透气亲肤", "休闲减龄"), ("夏日", "运动"), TSHIRT_CUTS),
    "裤子": Kind("裤", "一条", ("修身显高", "垂感十足", "耐磨有型"), ("通勤", "日常"), TROUSERS_CUTS),
    "帽子": Kind("帽", "一顶", ("遮阳防晒", "修饰脸型", "百搭时尚"), ("出游", "户外"), HAT_CUTS, 0.85),
    "鞋子": Kind("鞋", "一双", ("轻便防滑", "软底舒适", "久走不累"), ("运动", "日常"), SHOE_CUTS, 0.8),
    "包包": Kind("包", "一只", ("能装又轻便", "精致耐看", "大容量好背"), ("通勤", "约会"), BAG_CUTS),
    "杯子": Kind("杯", "一只", ("耐热防烫", "喝水好心情", "手感温润"), ("办公室", "居家"), CUP_CUTS),
    "雨伞": Kind("伞", "一把", ("晴雨两用", "抗风结实", "收放自如"), ("出门", "雨天"), UMBRELLA_CUTS),
    "袜子": Kind("袜", "一双", ("吸汗不臭脚", "柔软保暖", "弹力不勒"), ("居家", "秋冬"), SOCK_CUTS, 0.75),
    "眼镜": Kind("镜", "一副", ("大框显脸小", "轻巧不压鼻", "斯文有气质"), ("街拍", "度假"), GLASSES_CUTS, 0.6),
}
COLOURS: dict[str, RGB] = {
    "红色": (214, 40, 40),
    "黄色": (250, 200, 30),
    "绿色": (44, 150, 75),
    "蓝色": (38, 105, 215),
    "紫色": (125, 62, 180),
    "粉色": (250, 150, 185),
    "黑色": (44, 44, 48),
    "白色": (250, 250, 248),
}
PATTERNS = ("纯色", "条纹", "圆点", "格子")

LEADS = ("2026新款", "秋季新款", "人气热卖", "店长推荐")
STYLES = ("复古风", "文艺风", "简约风", "ins风")
TEMPLATES = (
    "{lead}{colour}{pattern}{kind}",
    "{colour}{pattern}{kind}{benefit}",
    "{benefit}的{colour}{kind}",
    "{benefit}{pattern}{kind}{colour}款",
    "{style}{colour}{kind}，{benefit}",
    "{measure}{colour}{pattern}{kind}，{benefit}",
    "{occasion}必备的{colour}{pattern}{kind}",
    "{occasion}{colour}{kind}{benefit}",
    "{style}{pattern}{kind}，{colour}更好看",
    "{lead}{kind}，{colour}{benefit}",
    "{lead}{colour}{kind}{pattern}设计",
    "{style}的{colour}{pattern}{kind}",
)


@dataclass(frozen=True)
class Product:
    """One entry of the catalogue, by its names in `KINDS`, `COLOURS` and `PATTERNS`."""

    kind: str
    colour: str
    pattern: str


# ── Drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────

CANVAS = 400  # pixels a side on which a product is painted, about three times what is shown of it
UNIT = CANVAS / 100
SHADOW: RGB = (60, 52, 60)
WALLS: tuple[RGB, ...] = ((235, 224, 208), (212, 222, 231), (228, 219, 229), (215, 225, 211), (238, 221, 213))
STRENGTHS = {"line": 0.55, "fold": 0.13, "shine": 0.4, "gleam": 0.55}  # how much these cover what is under them
LENS_ALPHA = 150


@dataclass(frozen=True)
class Cut:
    """A cut ready for painting: masks by material in painting order, its outline and its light."""

    layers: tuple[tuple[str, Image.Image], ...]
    alpha: Image.Image
    light: Image.Image


def draw(product: Product, seed: int, size: int = 160) -> Image.Image:
    """Draw a product on a light background.

    Args:
        seed: of cut, size, place, turn, light, pattern and background.
        size: side of the image in pixels.

    Returns:
        RGB, `size` × `size`.
    """
    rng = Random(f"image {seed} {product}")
    sprite = paint(product, rng)
    if rng.random() < 0.5:
        sprite = ImageOps.mirror(sprite)
    sprite = sprite.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR, expand=True)
    sprite = sprite.crop(sprite.getbbox())
    sprite = ImageOps.contain(sprite, (round(size * rng.uniform(0.72, 0.9)),) * 2, Image.Resampling.BICUBIC)
    scene = draw_background(size, rng)
    margin = size // 25
    corner = tuple(rng.randint(margin, max(margin, size - side - margin)) for side in sprite.size)
    cast_shadow(scene, sprite, corner, rng)
    scene.paste(sprite, corner, sprite)
    return scene


def paint(product: Product, rng: Random) -> Image.Image:
    """Paint a product in one of its cuts, upright, on a transparent canvas of `CANVAS` pixels a side."""
    kind = KINDS[product.kind]
    cut = prepare_cut(rng.choice(kind.cuts))
    tones = make_tones(COLOURS[product.colour], rng)
    fabric = Image.new("RGB", (CANVAS, CANVAS), tones["fabric"])
    weave(fabric, tones["ink"], product.pattern, kind.grain, rng)
    canvas = Image.new("RGB", (CANVAS, CANVAS), tones["line"])
    for material, mask in cut.layers:
        canvas.paste(fabric if material == "fabric" else tones[material], (0, 0), mask)
    canvas = ImageChops.multiply(canvas, cut.light)
    canvas.putalpha(cut.alpha)
    return canvas


@cache
def prepare_cut(drawing: str) -> Cut:
    """Turn the text of a cut into masks; the same for every colour, so done once."""
    layers, alpha = [], Image.new("L", (CANVAS, CANVAS))
    for part in drawing.strip().splitlines():
        material, shape, *numbers = part.split()
        mask = draw_part(shape, numbers)
        if material in STRENGTHS:
            strength = STRENGTHS[material]
            layers.append((material, mask.point(lambda value, strength=strength: round(value * strength))))
            continue
        alpha.paste({"hole": 0, "lens": LENS_ALPHA}.get(material, 255), (0, 0), mask)
        if material != "hole":
            layers.append((material, mask))
    return Cut(tuple(layers), alpha.filter(ImageFilter.MaxFilter(5)), round_off(alpha))


def round_off(alpha: Image.Image) -> Image.Image:
    """The light on a shape: less towards its edges and to the lower right, as on something round."""
    inside = alpha.filter(ImageFilter.GaussianBlur(4 * UNIT)).point(lambda value: 216 + round(39 * value / 255))
    across = Image.linear_gradient("L").rotate(35).resize(alpha.size).point(lambda value: 255 - value // 8)
    return ImageChops.multiply(inside, across).convert("RGB")


def draw_part(shape: str, numbers: list[str]) -> Image.Image:
    """The mask of one part; shapes are listed at the head of this file."""
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    if shape == "oval":
        x, y, across, down = (float(number) * UNIT for number in numbers)
        pen.ellipse((x - across, y - down, x + across, y + down), fill=255)
    elif shape in ("line", "twinline"):
        stroke(pen, smooth(read_points(numbers[1:]), closed=False), float(numbers[0]) * UNIT)
    else:
        points = read_points(numbers)
        if shape == "half":
            points += [(100 - x, y, corner) for x, y, corner in reversed(points)]
        pen.polygon([(x * UNIT, y * UNIT) for x, y in smooth(points, closed=True)], fill=255)
    return ImageChops.lighter(mask, ImageOps.mirror(mask)) if shape.startswith("twin") else mask


def read_points(words: list[str]) -> list[tuple[float, float, bool]]:
    """`"12,30*"` → `(12.0, 30.0, True)`: x, y and whether the curve has a corner there."""
    split = [(word.rstrip("*").split(","), word.endswith("*")) for word in words]
    return [(float(x), float(y), corner) for (x, y), corner in split]


def smooth(points: list[tuple[float, float, bool]], closed: bool, rounds: int = 4) -> list[Point]:
    """Cut corners again and again (Chaikin), which tends to a smooth curve; a point given three times stays."""
    if not closed:
        points = [(*points[0][:2], True), *points[1:-1], (*points[-1][:2], True)]
    curve = [(x, y) for x, y, corner in points for _ in range(3 if corner else 1)]
    for _ in range(rounds):
        following = curve[1:] + curve[:1] if closed else curve[1:]
        pairs = list(zip(curve, following))
        cut = [
            (near * a + (1 - near) * c, near * b + (1 - near) * d) for (a, b), (c, d) in pairs for near in (0.75, 0.25)
        ]
        curve = cut if closed else [curve[0], *cut, curve[-1]]
    return curve


def stroke(pen: ImageDraw.ImageDraw, curve: list[Point], width: float) -> None:
    """Draw an open curve with round ends."""
    places = [(x * UNIT, y * UNIT) for x, y in curve]
    pen.line(places, fill=255, width=round(width), joint="curve")
    for x, y in places:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def make_tones(colour: RGB, rng: Random) -> dict[str, RGB]:
    """The colours of all materials for a product of one colour, a little different in every image."""
    brightness = rng.uniform(0.95, 1.06)
    base = tuple(min(255, round(channel * brightness)) for channel in colour)
    is_black, is_white = max(base) < 80, min(base) > 220
    deep = mix(base, (255, 255, 255), 0.3) if is_black else mix(base, (30, 25, 45), 0.45 if is_white else 0.5)
    return {
        "fabric": base,
        "trim": mix(base, (255, 255, 255), 0.12) if is_black else mix(base, (30, 25, 45), 0.13 if is_white else 0.25),
        "tint": mix(base, (255, 255, 255), 0.35),
        "ink": mix(base, (90, 90, 96), 0.65) if is_white else mix(base, (255, 255, 255), 0.82),
        "line": deep,
        "lens": mix(base, (255, 255, 255), 0.15),
        "sole": (244, 240, 232),
        "metal": (196, 192, 184),
        "brew": (98, 68, 52),
        "fold": (20, 15, 35),
        "shine": (255, 255, 255),
        "gleam": (255, 255, 255),
    }


def mix(one: RGB, other: RGB, share: float) -> RGB:
    """The colour that has `share` of the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def weave(fabric: Image.Image, ink: RGB, pattern: str, grain: float, rng: Random) -> None:
    """Print a pattern on plain fabric, anywhere on it."""
    if pattern == "纯色":
        return
    weft = pattern_mask(pattern, round(grain * rng.choice((11, 13)) * UNIT), rng.random() < 0.5)
    left, top = rng.randrange(weft.width - CANVAS), rng.randrange(weft.height - CANVAS)
    fabric.paste(ink, (0, 0), weft.crop((left, top, left + CANVAS, top + CANVAS)))


@cache
def pattern_mask(pattern: str, period: int, is_upright: bool) -> Image.Image:
    """A pattern of bands or dots every `period` pixels, larger than the canvas so that it can begin anywhere."""
    side = CANVAS + 2 * period  # rows of dots repeat after two
    mask = Image.new("L", (side, side))
    if pattern == "圆点":
        print_dots(mask, period)
    else:
        print_bands(mask, period, 255 if pattern == "条纹" else 130)
    if pattern == "格子":
        mask = ImageChops.add(mask, mask.transpose(Image.Transpose.TRANSPOSE))
    return mask.transpose(Image.Transpose.TRANSPOSE) if is_upright else mask


def print_bands(mask: Image.Image, period: int, strength: int) -> None:
    pen = ImageDraw.Draw(mask)
    for top in range(0, mask.height, period):
        pen.rectangle((0, top, mask.width, top + round(0.36 * period)), fill=strength)


def print_dots(mask: Image.Image, period: int) -> None:
    pen, radius = ImageDraw.Draw(mask), 0.27 * period
    for row, y in enumerate(range(0, mask.height, period)):
        for x in range(period // 2 * (row % 2), mask.width, period):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def draw_background(size: int, rng: Random) -> Image.Image:
    """A quiet wall, as behind products in a shop: plain, with a floor, a disc or an arch."""
    side = 3 * size
    wall = mix(rng.choice(WALLS), (255, 255, 255), rng.uniform(0, 0.2))
    scene = Image.new("RGB", (side, side), wall)
    pen, accent = ImageDraw.Draw(scene), mix(wall, *rng.choice((((255, 255, 255), 0.35), ((120, 104, 100), 0.14))))
    x, y, radius = side * rng.uniform(0.35, 0.65), side * rng.uniform(0.35, 0.6), side * rng.uniform(0.28, 0.42)
    setting = rng.choice(("plain", "floor", "disc", "arch"))
    if setting == "floor":
        pen.rectangle((0, side * rng.uniform(0.62, 0.8), side, side), fill=accent)
    elif setting == "disc":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=accent)
    elif setting == "arch":
        pen.rounded_rectangle((x - radius, y - radius, x + radius, side + radius), radius, fill=accent)
    return scene.reduce(3)


def cast_shadow(scene: Image.Image, sprite: Image.Image, corner: tuple[int, int], rng: Random) -> None:
    """Darken the background softly below and next to a product."""
    shadow = Image.new("L", scene.size)
    distance = scene.width * rng.uniform(0.015, 0.04)
    place = (corner[0] + round(distance * rng.uniform(-1, 1)), corner[1] + round(distance))
    shadow.paste(sprite.getchannel("A").point(lambda value: round(0.42 * value)), place)
    scene.paste(SHADOW, (0, 0), shadow.filter(ImageFilter.GaussianBlur(scene.width / 50)))


# ── Captions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def captions(product: Product, seed: int, count: int = 10) -> list[str]:
    """Write different selling captions of 8 to 18 characters; each names kind and colour, many the pattern.

    Raises:
        ValueError: the templates do not give that many.
    """
    rng = Random(f"captions {seed} {product}")
    templates = rng.sample(TEMPLATES, len(TEMPLATES))
    found: dict[str, None] = {}
    for template in islice(cycle(templates), 20 * count):
        found[fill(template, product, rng)] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"{count} different captions were asked for, {len(found)} were found. Ask for fewer.")


def fill(template: str, product: Product, rng: Random) -> str:
    kind = KINDS[product.kind]
    return template.format(
        kind=product.kind,
        colour=product.colour,
        pattern=product.pattern,
        measure=kind.measure,
        benefit=rng.choice(kind.benefits),
        occasion=rng.choice(kind.occasions),
        lead=rng.choice(LEADS),
        style=rng.choice(STYLES),
    )


def is_right(caption: str, product: Product) -> bool:
    """Whether a caption names the product's kind and colour in full and no other kind or colour, not even by half."""
    text = "".join(caption.lower().split())
    other_words = {kind.root for name, kind in KINDS.items() if name != product.kind}
    other_words |= {name.removesuffix("色") for name in COLOURS if name != product.colour}
    is_named = product.kind.lower() in text and product.colour in text
    return is_named and not any(word in text for word in other_words)


def caption_accuracy(captions: Sequence[str], products: Sequence[Product]) -> float:
    """The share of captions, 0 to 1, that name kind and colour of their products rightly.

    Raises:
        ValueError: there are none, or not as many captions as products.
    """
    if not captions or len(captions) != len(products):
        raise ValueError(f"Got {len(captions)} captions for {len(products)} products; one for each is needed.")
    return sum(map(is_right, captions, products)) / len(captions)


def vocabulary() -> list[str]:
    """BERT word pieces that spell every possible caption and the prompts, in BERT's order: specials, then the rest.

    Latin letters and digits come as words and as `##` pieces, so that any word can be spelled; those that the shop
    uses as words are pieces of their own. `<` is there for the tokenizer, see `build_tokenizer`.
    """
    words = [*LEADS, *STYLES, *TEMPLATES, *COLOURS, *PATTERNS, *PROMPTS, DRAWING_PROMPT, *KINDS]
    words += [word for kind in KINDS.values() for word in (kind.measure, *kind.benefits, *kind.occasions)]
    text = re.sub(r"{\w+}", "", " ".join(words)).lower()
    letters = [*"0123456789abcdefghijklmnopqrstuvwxyz"]
    runs = sorted(run for run in set(re.findall(r"[a-z0-9]+", text)) if len(run) > 1)
    others = sorted(set(text) - {" ", *letters})
    return [*BERT_SPECIALS, "<", *letters, *(f"##{letter}" for letter in letters), *runs, *others]


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ShopFiles:
    """Where a shop was written. Captions and images are MUGE's files; labels say what each image shows."""

    train_caption_file: Path
    train_image_file: Path
    valid_caption_file: Path
    valid_image_file: Path
    label_file: Path
    vocab_file: Path


def split_products(seed: int, new_pairs: bool = False) -> tuple[list[Product], list[Product]]:
    """Deal out all combinations: those of the training images, and those kept for validation.

    Of every kind in every colour, one pattern is kept for validation. With `new_pairs` also one colour of each kind in
    all its patterns, so that training never shows this kind in this colour: a much harder test, since every training
    image teaches that such a thing does not exist.
    """
    rng = Random(f"split {seed}")
    colours = rng.sample(list(COLOURS), len(COLOURS)) if new_pairs else [None]
    new_colours = dict(zip(KINDS, cycle(colours)))
    train, valid = [], []
    for kind, new_colour in new_colours.items():
        for colour in COLOURS:
            new_pattern = rng.choice(PATTERNS)
            for pattern in PATTERNS:
                is_new = colour == new_colour or pattern == new_pattern
                (valid if is_new else train).append(Product(kind, colour, pattern))
    return train, valid


def write_shop(
    folder: str | os.PathLike,
    *,
    num_train: int = 1000,
    num_valid: int = 80,
    seed: int = 0,
    size: int = 160,
    new_pairs: bool = False,
) -> ShopFiles:
    """Draw a shop and write it as MUGE's files `IC_train.*` and `IC_valid.*`, with `shop.json` and `vocab.txt`.

    `shop.json` maps an image id to `{"kind", "colour", "pattern", "split", "is_new_pair"}`; the last says that
    training never shows this kind in this colour. Products come round in turn, so 80 validation images show each of
    the 80 combinations once (110 with `new_pairs`). Files of these names are overwritten.

    Args:
        num_train, num_valid: images.
        size: side of an image in pixels.
        new_pairs: see `split_products`.

    Raises:
        UserError: there would be nothing to train or to validate on, or images too small to show anything.
    """
    if min(num_train, num_valid) < 1 or size < 32:
        raise UserError(
            f"Such a shop cannot be drawn: {num_train} training and {num_valid} validation images of {size} pixels. "
            f"Accepted: at least 1 of each, at least 32 pixels a side. Choose larger numbers."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, valid = split_products(seed, new_pairs)
    files = ShopFiles(
        *(folder / name for name in ("IC_train.jsonl", "IC_train.tsv", "IC_valid.jsonl", "IC_valid.tsv")),
        label_file=folder / "shop.json",
        vocab_file=folder / "vocab.txt",
    )
    seen_pairs = {(product.kind, product.colour) for product in train}
    labels = {}
    for split, products, count, first in (("train", train, num_train, 10**6), ("valid", valid, num_valid, 9 * 10**6)):
        entries = dict(enumerate(take(products, count, seed), first))
        write_split(folder / f"IC_{split}", entries, seed, size)
        for number, product in entries.items():
            is_new_pair = (product.kind, product.colour) not in seen_pairs
            labels[str(number)] = {**asdict(product), "split": split, "is_new_pair": is_new_pair}
    write_json(files.label_file, labels)
    write_text(files.vocab_file, "\n".join(vocabulary()) + "\n")
    return files


def read_products(label_file: str | os.PathLike) -> dict[str, Product]:
    """Read `shop.json`: image id → what the image shows."""
    labels = read_json(label_file)
    return {number: Product(label["kind"], label["colour"], label["pattern"]) for number, label in labels.items()}


def take(products: Sequence[Product], count: int, seed: int) -> Iterator[Product]:
    """`count` products, each again only after all others, in mixed order."""
    shuffled = Random(f"order {seed}").sample(products, len(products))
    return islice(cycle(shuffled), count)


def write_split(stem: Path, entries: dict[int, Product], seed: int, size: int) -> None:
    """Draw and describe products by image id into `stem`.tsv and `stem`.jsonl. The id also varies the seed."""
    with (
        open(f"{stem}.tsv", "w", encoding="ascii", newline="\n") as images,
        open(f"{stem}.jsonl", "w", encoding="utf-8", newline="\n") as texts,
    ):
        seeds = [seed * 10**8 + number for number in entries]
        with ThreadPoolExecutor() as pool:  # Pillow draws outside Python's lock
            drawn = pool.map(draw_encoded, entries.values(), seeds, repeat(size))
            for (number, product), own_seed, image in zip(entries.items(), seeds, drawn):
                images.write(f"{number}\t{image}\n")
                row = {"image_id": str(number), "text": captions(product, own_seed)}
                texts.write(json.dumps(row, ensure_ascii=False) + "\n")


def draw_encoded(product: Product, seed: int, size: int) -> str:
    return encode_image(draw(product, seed, size))


def encode_image(image: Image.Image) -> str:
    """An image as MUGE keeps it: JPEG in url-safe base64."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return base64.urlsafe_b64encode(buffer.getvalue()).decode("ascii")
