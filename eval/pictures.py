"""Pictures of results: retrieval gallery (HTML, PNG), R@k curve, confusion matrix, bars by stage (PNG)."""

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from dataset.source import BrokenVideo, FrameSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BORDERS = {"query": "#444444", "right": "#2e8b57", "wrong": "#c83c3c", "unknown": "#999999"}
HEIGHT = 96  # of a thumbnail in pixels
MOMENTS = 8  # frames of a moving thumbnail
INCH = 100  # pixels, in PNGs


class Clip(NamedTuple):
    """A video to be shown: where its frames are, what is written below, and its border, of ``BORDERS``."""

    source: FrameSource
    position: int
    frames: int
    caption: str
    border: str = "unknown"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # takes half a second, and pictures alone need it

    return Figure(figsize=(width, height), dpi=INCH, layout="constrained")


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def moments(clip: Clip, count: int) -> list[np.ndarray]:
    """``count`` frames, evenly over the video, uint8 [HEIGHT, w, 3]; grey where it cannot be read."""
    wanted = [int((i + 0.5) * clip.frames / count) for i in range(count)]
    indices = sorted(set(wanted))
    thumbnails = {}
    try:
        for index, image in zip(indices, clip.source.frames(clip.position, indices), strict=True):
            width = max(round(HEIGHT * image.shape[1] / image.shape[0]), 1)
            thumbnails[index] = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    except BrokenVideo:
        return [np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)] * count
    return [thumbnails[index] for index in wanted]


def gallery(rows: Sequence[Sequence[Clip]], still: bool) -> bytes:
    """Rows of clips: a query and its neighbours, whose borders say whether they are right, where known.

    Returns a PNG if ``still``, else a self-contained HTML page whose thumbnails move.
    """
    return _gallery_png(rows) if still else _gallery_html(rows).encode()


def _gallery_png(rows: Sequence[Sequence[Clip]]) -> bytes:
    columns = max(map(len, rows))
    figure = new_figure(1.6 * columns, 1.5 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for ax in axes[len(row) :]:
            ax.set_axis_off()
        for ax, clip in zip(axes, row, strict=False):
            ax.imshow(moments(clip, 1)[0])
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(clip.caption, color=BORDERS[clip.border], fontsize=8)
            ax.spines[:].set(color=BORDERS[clip.border], linewidth=3)
    grid[0, 0].set_title("query", fontsize=9)
    grid[0, 1].set_title("nearest clips", fontsize=9, loc="left")
    return png(figure)


def _gallery_html(rows: Sequence[Sequence[Clip]]) -> str:
    sections = []
    for row in rows:
        cells = "".join(_html_cell(clip) for clip in row)
        sections.append(f"<section>{cells}</section>")
    borders = [clip.border for row in rows for clip in row]
    right, wrong = borders.count("right"), borders.count("wrong")
    styles = " ".join(f"figure.{border} {{ border-color: {colour} }}" for border, colour in BORDERS.items())
    legend = ""
    if right + wrong:
        legend = (
            f'<span style="color:{BORDERS["right"]}">Green</span>: '
            f"the same class ({right} of {right + wrong}); "
            f'<span style="color:{BORDERS["wrong"]}">red</span>: another.'
        )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieval</title><style>
body {{ font: 14px sans-serif; margin: 2em; color: #222 }}
section {{ display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 14px }}
figure {{ margin: 0; border: 4px solid; border-radius: 4px }}
figure.query {{ margin-right: 24px }}
{styles}
figure div {{ height: {HEIGHT}px; animation: play 1.6s steps({MOMENTS}) infinite }}
figcaption {{ padding: 2px 6px; font-size: 12px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap }}
@keyframes play {{ to {{ background-position-x: var(--shift) }} }}
</style></head><body><h1>Nearest clips</h1>
<p>Left: the query. Right of it: its nearest clips, nearest first. {legend}</p>
{chr(10).join(sections)}
</body></html>
"""


def _html_cell(clip: Clip) -> str:
    strip = np.concatenate(moments(clip, MOMENTS), axis=1)
    width = strip.shape[1]
    jpeg = cv2.imencode(".jpg", strip[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    name = html.escape(clip.source.names[clip.position])
    return (
        f'<figure class="{clip.border}" style="width:{width // MOMENTS}px">'
        f'<div role="img" aria-label="{name}" style="--shift:-{width}px;background-image:url({url})"></div>'
        f'<figcaption title="{name}">{html.escape(clip.caption)}</figcaption></figure>'
    )


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


def stage_chart(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[float], float | None]]]], ylabel: str
) -> bytes:
    """PNG of bars: panels[title][stage][stream] are (values of several seeds, standard error of their mean).

    Bars are means, whiskers standard errors, dots single values; one panel below the other.
    """
    figure = new_figure(max(1.5 * max(map(len, panels.values())) + 1.5, 5), 3.6 * len(panels))
    for ax, (title, stages) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        streams = list(dict.fromkeys(stream for bars in stages.values() for stream in bars))
        for number, bars in enumerate(stages.values()):
            for offset, (stream, (values, error)) in enumerate(bars.items()):
                x, mean = number + 0.26 * (offset - (len(bars) - 1) / 2), statistics.fmean(values)
                bar = ax.bar(
                    x, mean, 0.24, yerr=error, capsize=4, color=f"C{streams.index(stream)}", label=stream
                )
                ax.bar_label(bar, fmt="%.1f", padding=3, fontsize=8)
                if len(values) > 1:
                    ax.scatter([x] * len(values), values, s=9, color="black", alpha=0.5, zorder=3)
        ax.set_xticks(range(len(stages)), stages)
        ax.set(title=title, ylabel=ylabel)
        ax.margins(y=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        legend = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))  # each stream once
        ax.legend(legend.values(), legend, loc="upper left", ncols=len(legend))
    return png(figure)
