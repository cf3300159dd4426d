"""Pictures of results: retrieval gallery (HTML, PNG), R@k curve, confusion matrix, bars of all stages (PNG)."""

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dataset.jpeg import decode
from dataset.splits import class_of
from dataset.store import BrokenVideo, VideoStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG = "#2e8b57", "#c83c3c"
HEIGHT = 96  # of a thumbnail in pixels
MOMENTS = 8  # frames of a moving thumbnail
INCH = 100  # pixels, in PNGs

Where = Mapping[str, Mapping[str, tuple[VideoStore, int]]]
Found = Sequence[tuple[str, Sequence[str]]]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # takes half a second, and pictures alone need it

    return Figure(figsize=(width, height), dpi=INCH, layout="constrained")


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def moments(store: VideoStore, position: int, count: int) -> list[np.ndarray]:
    """``count`` frames, evenly over the video, uint8 [HEIGHT, w, 3]; grey where it cannot be read."""
    try:
        frames = store.num_frames(position)
        indices = [int((i + 0.5) * frames / count) for i in range(count)]
        images = [decode(jpeg) for jpeg in store.read_frames(position, indices)]
    except (BrokenVideo, ValueError):
        return [np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)] * count
    width = max(round(HEIGHT * images[0].shape[1] / images[0].shape[0]), 1)
    return [cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA) for image in images]


def gallery(found: Found, where: Where, still: bool) -> bytes:
    """Each query and its nearest training clips, the right ones framed green, the others red.

    found: (query name, names of its neighbours); where: for "test" and "train", the (store, position) of a name.
    Returns a PNG if ``still``, else a self-contained HTML page whose thumbnails move.
    """
    return _gallery_png(found, where) if still else _gallery_html(found, where).encode()


def _gallery_png(found: Found, where: Where) -> bytes:
    columns = 1 + max(len(neighbours) for _, neighbours in found)
    figure = new_figure(1.6 * columns, 1.5 * len(found) + 0.3)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for axes, (query, neighbours) in zip(grid, found, strict=True):
        for ax in axes[1 + len(neighbours) :]:
            ax.set_axis_off()
        for ax, part, name in zip(
            axes, ["test", *["train"] * len(neighbours)], [query, *neighbours], strict=False
        ):
            colour = "black" if part == "test" else RIGHT if class_of(name) == class_of(query) else WRONG
            ax.imshow(moments(*where[part][name], 1)[0])
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(class_of(name), color=colour, fontsize=8)
            ax.spines[:].set(color=colour, linewidth=3)
    grid[0, 0].set_title("test clip", fontsize=9)
    grid[0, 1].set_title("nearest training clips", fontsize=9, loc="left")
    return png(figure)


def _gallery_html(found: Found, where: Where) -> str:
    def cell(part: str, name: str, kind: str) -> str:
        strip = np.concatenate(moments(*where[part][name], MOMENTS), axis=1)
        jpeg = cv2.imencode(".jpg", strip[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
        width = strip.shape[1] // MOMENTS
        return (
            f'<figure class="{kind}" style="width:{width}px"><div role="img" aria-label="{html.escape(name)}" '
            f'style="--shift:-{strip.shape[1]}px;background-image:url(data:image/jpeg;base64,'
            f'{base64.b64encode(jpeg).decode()})"></div><figcaption title="{html.escape(name)}">'
            f"{html.escape(class_of(name))}</figcaption></figure>"
        )

    rows, right, total = [], 0, 0
    for query, neighbours in found:
        same = [class_of(name) == class_of(query) for name in neighbours]
        right, total = right + sum(same), total + len(same)
        rows.append(
            "<section>"
            + cell("test", query, "query")
            + "".join(
                cell("train", name, "right" if ok else "wrong")
                for name, ok in zip(neighbours, same, strict=True)
            )
            + "</section>"
        )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieval</title><style>
body {{ font: 14px sans-serif; margin: 2em; color: #222 }}
section {{ display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 14px }}
figure {{ margin: 0; border: 4px solid #444; border-radius: 4px }}
figure.query {{ margin-right: 24px }}
figure.right {{ border-color: {RIGHT} }} figure.wrong {{ border-color: {WRONG} }}
figure div {{ height: {HEIGHT}px; animation: play 1.6s steps({MOMENTS}) infinite }}
figcaption {{ padding: 2px 6px; font-size: 12px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }}
@keyframes play {{ to {{ background-position-x: var(--shift) }} }}
</style></head><body><h1>Nearest training clips</h1>
<p>Left: test clip. Right of it: its nearest training clips, nearest first.
<span style="color:{RIGHT}">Green</span>: the same class ({right} of {total});
<span style="color:{WRONG}">red</span>: another.</p>
{chr(10).join(rows)}
</body></html>
"""


def recall_curve(curves: Mapping[str, Sequence[float]]) -> bytes:
    """PNG of R@k in percent over k = 1, 2, ..., a curve per name."""
    figure = new_figure(6.4, 4.2)
    ax = figure.subplots()
    for name, values in curves.items():
        ax.plot(range(1, len(values) + 1), values, linewidth=2, label=f"{name}: R@1 {values[0]:.1f}")
    longest = max(map(len, curves.values()))
    ax.set(
        xlabel="k",
        ylabel="R@k (%)",
        ylim=(0, 101),
        xlim=(1, max(longest, 2)),
        xticks=[k for k in (1, 5, 10, 20, 30, 40, 50) if k <= longest],
    )
    ax.grid(alpha=0.4)
    ax.legend(loc="lower right")
    return png(figure)


def confusion_matrix(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """Counts [classes, classes]: rows are true classes, columns predicted ones."""
    cells = np.asarray(truth) * classes + np.asarray(predicted)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> bytes:
    """PNG of a confusion matrix, each row as shares of its class; numbers are written where there is room."""
    n = len(classes)
    cell = max(0.55 if n <= 20 else 12 / n, 0.08)  # inches
    figure = new_figure(n * cell + 2.5, n * cell + 2.2)
    ax = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(n), classes, rotation=90, fontsize=min(60 * cell, 9))
    ax.set_yticks(range(n), classes, fontsize=min(60 * cell, 9))
    ax.set(xlabel="predicted class", ylabel="true class", title=f"{np.trace(counts)} of {counts.sum()} right")
    for i, j in zip(*counts.nonzero(), strict=True) if n <= 20 else ():
        ax.text(
            j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black"
        )
    return png(figure)


def stage_chart(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], ylabel: str) -> bytes:
    """PNG of bars: panels[title][stage][stream] are the values (of several seeds) whose mean is a bar.

    Whiskers are standard deviations, dots single values; one panel below the other.
    """
    figure = new_figure(max(1.5 * max(map(len, panels.values())) + 1.5, 5), 3.6 * len(panels))
    for ax, (title, stages) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        streams = list(dict.fromkeys(stream for bars in stages.values() for stream in bars))
        for number, bars in enumerate(stages.values()):
            for offset, (stream, values) in enumerate(bars.items()):
                x, mean = number + 0.26 * (offset - (len(bars) - 1) / 2), statistics.fmean(values)
                spread = statistics.stdev(values) if len(values) > 1 else None
                bar = ax.bar(
                    x, mean, 0.24, yerr=spread, capsize=4, color=f"C{streams.index(stream)}", label=stream
                )
                ax.bar_label(bar, fmt="%.1f", padding=3, fontsize=8)
                if len(values) > 1:
                    ax.scatter([x] * len(values), values, s=9, color="black", alpha=0.5, zorder=3)
        ax.set_xticks(range(len(stages)), stages)
        ax.set(title=title, ylabel=ylabel)
        ax.margins(y=0.12)
        ax.spines[["top", "right"]].set_visible(False)
        legend = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))  # each stream once
        ax.legend(legend.values(), legend, loc="upper left")
    return png(figure)
