"""Common names of columns in English and Chinese, and how to find a column by them."""

import unicodedata
from collections.abc import Iterable, Sequence


# In order of preference. Compared without case, blanks, dashes and underscores.
IMAGE_NAMES = (
    "image images image_path image_file image_file_name image_name file file_name file_path path filepath img "
    "img_path img_name photo picture pic "
    "图片 图像 照片 图片路径 图像路径 图片名 图片名称 图片文件 图片文件名 图像名称 "
    "文件 文件名 文件名称 文件路径 路径 主图 商品图片 商品主图 图 圖片 圖像 檔案 檔名 檔案名稱 路徑 "
    "image_id img_id imageid image_url img_url url link 图片链接 图片地址 图片网址 链接 網址 图片url"
).split()
TARGET_NAMES = (
    "caption captions text texts target targets title description desc sentence sentences label answer summary "
    "标题 描述 文案 文本 说明 商品标题 商品描述 商品文案 图片描述 图像描述 图片说明 "
    "卖点 内容 句子 答案 标签 摘要 标注 標題 說明 文字 内容描述"
).split()
ID_NAMES = "image_id imageid img_id id sku sku_id 编号 商品编号 图片编号 图片id 商品id 序号 編號".split()
FIELD_NAMES = {  # common names of task fields
    "article": ("article", "document", "text", "content", "文章", "原文", "正文", "文本"),
    "question": ("question", "query", "prompt", "问题", "提问", "問題"),
    "text": ("text", "document", "article", "sentence", "文本", "原文", "正文", "描述"),
}


def plain_name(name: str) -> str:
    """A column's name, normalized in width, case, spaces, dashes and underscores."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(char for char in text if char not in " _-\u3000.")


def _plain(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(plain_name, names)))


IMAGES, TARGETS, IDS = _plain(IMAGE_NAMES), _plain(TARGET_NAMES), _plain(ID_NAMES)
FIELDS = {field: _plain(names) for field, names in FIELD_NAMES.items()}
USUAL = frozenset((*IMAGES, *TARGETS, *IDS, *(name for names in FIELDS.values() for name in names)))


def is_usual_name(name: str) -> bool:
    """Whether a text is a common name of a column."""
    return plain_name(name) in USUAL


def matches(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns with one of these plain names, in the names' order."""
    found = {plain_name(column): column for column in reversed(list(columns))}
    return [found[name] for name in names if name in found]
