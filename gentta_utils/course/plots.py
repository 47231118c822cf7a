"""Figures that read everywhere: one palette, one size, a caption below and alternative text inside the output."""

import base64
import io
import re
import textwrap

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..common.types import Number
from ..evaluation.statistics import Interval

# Okabe and Ito (2008): told apart by colour-blind readers, and in grey by their order
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)
TRUE = GREEN  # the true class, in every figure of the course; a figure that shows it gives no other class this colour
OTHERS = tuple(colour for colour in PALETTE if colour != TRUE)
COLOURS = 80  # of the palette of a figure: the fewest whose error stays below that of 128 by median cut alone
STYLE = {
    "axes.prop_cycle": plt.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.dpi": 80,
    "font.size": 9,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.bbox": "tight",
}


def figure(rows: int = 1, columns: int = 1, width: Number = 8.0, height: Number = 2.6, **kwargs):
    """`plt.subplots` in the course's style; width of the whole in inches (8 is the column), height of one row."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height * rows), layout="constrained", **kwargs)


def show(fig: Figure, alt: str) -> None:
    """Show a figure and close it, with a sentence on what there is to see: as a visible caption below it, and as the
    alternative text of the image, in the file too (its `alt` metadata).

    The caption is an output of its own: beside an image, front ends leave out any text of the same output. Raises
    ValueError for an empty text: a picture that cannot be read aloud is not shown."""
    if not alt.strip():
        raise ValueError("a figure needs alternative text: say in a sentence what it shows")
    buffer, file = io.BytesIO(), io.BytesIO()
    with plt.rc_context(STYLE):
        fig.savefig(buffer, format="png", dpi=STYLE["figure.dpi"])
    plt.close(fig)
    whole = Image.open(buffer).convert("RGB")
    sample = whole.resize((whole.width // 3, whole.height // 3), Image.Resampling.NEAREST)  # k-means over all is slow
    palette = sample.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=1)
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    png = base64.b64encode(file.getvalue()).decode()
    display({"image/png": png, "text/plain": "Figure"}, metadata={"image/png": {"alt": alt}}, raw=True)
    display({"text/markdown": f"*{literal(alt)}*", "text/plain": alt}, raw=True)


def literal(text: str) -> str:
    """Text as Markdown that shows it as it is: "t*" keeps its star."""
    return re.sub(r"([\\`*_\[\]<>$|~])", r"\\\1", text)


def fitted(text: str, inches: float, size: float = STYLE["axes.titlesize"]) -> tuple[str, float]:
    """A title for a panel of this width: its text, broken between words into lines that fit, and the size in points.

    Names of ImageNet are long ("Chesapeake Bay retriever"): where a word alone is wider than the panel, all is smaller,
    down to 5 points, and a word that is longer still is broken. An arrow stays with the word before it. Titles that fit
    stay as they are."""
    glued = text.replace(" →", "\u00a0→")  # no place to break
    fit = lambda points: max(4, int(inches * 72 / (0.6 * points)))  # noqa: E731  (a letter is about .6 as wide as high)
    if max(map(len, glued.split("\n"))) <= fit(size):
        return text, float(size)
    while size > 5 and max(map(len, re.split("[ \n]", glued))) > fit(size):
        size -= 0.5
    broken = [part for line in glued.split("\n") for part in textwrap.wrap(line, fit(size))]
    return "\n".join(broken).replace("\u00a0", " "), float(size)


def _width(ax: Axes) -> float:
    """Inches of its column in the figure or the part of one, whose panels are not laid out yet."""
    spec, inches = ax.get_subplotspec(), ax.figure.bbox.width / ax.figure.dpi  # a part has no `get_figwidth`
    if spec is None:
        return inches
    shares = spec.get_gridspec().get_width_ratios()
    return inches * sum(shares[spec.colspan.start : spec.colspan.stop]) / sum(shares)


def picture(ax: Axes, image: Tensor, title: str = "", frame: str | None = None) -> None:
    """One image (3, H, W) in [0, 1] or a map (H, W) on an axes without ticks; `frame` is the colour of a border."""
    if image.ndim == 3:
        ax.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        ax.imshow(image.numpy(), cmap="viridis")
    text, size = fitted(title, _width(ax))
    ax.set(xticks=[], yticks=[])
    ax.set_title(text, fontsize=size)
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame or "white", linewidth=3)


def gallery(images: list[Tensor], titles: list[str], columns: int = 6, frames: list | None = None, width=8.0) -> Figure:
    """A grid of images (3, H, W) with short titles, row by row; a column of 1.2 inches has 90 pixels."""
    rows, cell = -(-len(images) // columns), width / columns
    lines = max((fitted(title, cell)[0].count("\n") + 1 for title in titles), default=1)
    height = cell * 1.2 + max(0, lines - 2) * 0.17  # room for the titles of more than two lines
    fig, axes = figure(rows, columns, width=width, height=height, squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i < len(images):
            picture(ax, images[i], titles[i], None if frames is None else frames[i])
        else:
            ax.axis("off")
    return fig


def bars(ax: Axes, names: list[str], series: dict[str, list[float | Interval]], unit: str) -> None:
    """Grouped horizontal bars, a group per name and a bar per series, first name on top; intervals are drawn."""
    height = 0.8 / len(series)
    for j, (label, values) in enumerate(series.items()):
        at = [i + (j - (len(series) - 1) / 2) * height for i in range(len(names))]
        ends = [(v.mean, v.low, v.high) if isinstance(v, Interval) else (v, v, v) for v in values]
        known = any(low < high for _, low, high in ends)
        errors = [[m - low for m, low, _ in ends], [high - m for m, _, high in ends]] if known else None
        style = {"color": PALETTE[j % len(PALETTE)], "error_kw": {"elinewidth": 0.8, "ecolor": "0.3"}}
        ax.barh(at, [m for m, _, _ in ends], height=height * 0.9, xerr=errors, label=label, **style)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)  # not invert_yaxis, which would turn shared axes twice
    ax.set_xlabel(unit)


def adaptation(image: Tensor, history: Tensor, losses: list[float], names: list[str], label: int) -> Figure:
    """An image (3, H, W), the probabilities (S + 1, K) of its four likeliest classes over S updates, the true one in
    `TRUE`, and its S losses; of fewer than four classes all."""
    fig, axes = figure(1, 3, height=2.4, width_ratios=[1, 2, 2])
    picture(axes[0], image, names[label])
    others = iter(OTHERS)
    for k in history.max(0).values.topk(min(4, history.shape[1])).indices.tolist():
        style = {"color": TRUE, "lw": 2.5} if k == label else {"color": next(others), "lw": 1.2}
        axes[1].plot(history[:, k], label=names[k], **style)
    axes[1].set(xlabel="update", ylabel="probability", ylim=(0, 1))
    axes[1].legend(fontsize=7)
    axes[2].plot(losses, color=BLACK)
    axes[2].set(xlabel="update", ylabel="diffusion loss")
    return fig
