"""Example images for the page: products of the embedded shop, drawn when they are needed."""

from pathlib import Path

from ofa_hf.samples.shop import Product, draw


PIXELS = 320
PRODUCTS = (
    Product("连衣裙", "红色", "圆点"),
    Product("杯子", "蓝色", "条纹"),
    Product("雨伞", "黄色", "格子"),
    Product("包包", "黑色", "纯色"),
    Product("T恤", "绿色", "条纹"),
    Product("眼镜", "紫色", "纯色"),
)


def draw_examples(folder: Path) -> list[Path]:
    """Draw `example_1.jpg`, `example_2.jpg`, … into a folder, which is made; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"example_{number}.jpg" for number in range(1, len(PRODUCTS) + 1)]
    for seed, (path, product) in enumerate(zip(paths, PRODUCTS)):
        draw(product, seed, PIXELS).save(path, quality=90)
    return paths
