"""Pictures of results: retrieval gallery (HTML), R@k curve, confusion matrix, bars by stage (PNG)."""

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from dataset.registry import Videos
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


def clips_of(videos: Videos) -> dict[str, Clip]:
    """The clips of videos of one stream by their names, which are their captions."""
    ((stream, source),) = videos.stores.items()
    rows = zip(videos.names, videos.positions[stream].tolist(), videos.frames.tolist(), strict=True)
    return {name: Clip(source, position, frames, name) for name, position, frames in rows}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # takes half a second, and pictures alone need it

    return Figure(figsize=(width, height), dpi=INCH, layout="constrained")


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def moments(clip: Clip) -> list[np.ndarray]:
    """Thumbnails evenly over the video, uint8 [HEIGHT, w, 3]; grey where it cannot be read."""
    wanted = [int((i + 0.5) * clip.frames / MOMENTS) for i in range(MOMENTS)]
    indices = sorted(set(wanted))
    thumbnails = {}
    try:
        for index, image in zip(indices, clip.source.frames(clip.position, indices), strict=True):
            width = max(round(HEIGHT * image.shape[1] / image.shape[0]), 1)
            thumbnails[index] = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    except BrokenVideo:
        return [np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)] * MOMENTS
    return [thumbnails[index] for index in wanted]


def gallery(rows: Sequence[Sequence[Clip]]) -> str:
    """A self-contained HTML page of rows of clips that move: a query and its neighbours.

    Borders say whether neighbours are right, where that is known.
    """
    sections = [f"<section>{''.join(map(_cell, row))}</section>" for row in rows]
    borders = [clip.border for row in rows for clip in row]
    right, wrong = borders.count("right"), borders.count("wrong")
    styles = " ".join(f"figure.{border} {{ border-color: {colour} }}" for border, colour in BORDERS.items())
    known = right + wrong
    legend = f"Green: the same class ({right} of {known}); red: another." if known else ""
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
{"".join(sections)}
</body></html>
"""


def _cell(clip: Clip) -> str:
    strip = np.concatenate(moments(clip), axis=1)
    width = strip.shape[1]
    jpeg = cv2.imencode(".jpg", strip[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    name = html.escape(clip.source.names[clip.position])
    return (
        f'<figure class="{clip.border}" style="width:{width // MOMENTS}px">'
        f'<div role="img" aria-label="{name}" style="--shift:-{width}px;background-image:url({url})"></div>'
        f'<figcaption title="{name}">{html.escape(clip.caption)}</figcaption></figure>'
    )


def recall_curve(name: str, values: Sequence[float]) -> bytes:
    """PNG of R@k in percent over k = 1, 2, ..."""
    figure = new_figure(6.4, 4.2)
    ax = figure.subplots()
    ax.plot(range(1, len(values) + 1), values, linewidth=2, label=f"{name}: R@1 {values[0]:.1f}")
    ticks = [k for k in (1, 5, 10, 20, 30, 40, 50) if k <= len(values)]
    ax.set(xlabel="k", ylabel="R@k (%)", ylim=(0, 101), xlim=(1, max(len(values), 2)), xticks=ticks)
    ax.grid(alpha=0.4)
    ax.legend(loc="lower right")
    return png(figure)


def confusion_matrix(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """Counts [classes, classes]: rows are true classes, columns predicted ones."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    return counts


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
    for i, j in np.argwhere(counts) if n <= 20 else ():
        colour = "white" if shares[i, j] > 0.5 else "black"
        ax.text(j, i, counts[i, j], ha="center", va="center", color=colour)
    return png(figure)


def stage_chart(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[float], float | None]]]], ylabel: str
) -> bytes:
    """PNG of bars: panels[title][stage][stream] are (values of several seeds, standard error of their mean).

    Bars are means, whiskers standard errors, dots single values; one panel below the other.
    """
    figure = new_figure(max(1.5 * max(map(len, panels.values())) + 1.5, 5), 3.6 * len(panels))
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, (title, stages) in zip(axes, panels.items(), strict=True):
        colours: dict[str, str] = {}  # by stream
        for number, bars in enumerate(stages.values()):
            for offset, (stream, (values, error)) in enumerate(bars.items()):
                x = number + 0.26 * (offset - (len(bars) - 1) / 2)
                label = None if stream in colours else stream
                colour = colours.setdefault(stream, f"C{len(colours)}")
                mean = statistics.fmean(values)
                bar = ax.bar(x, mean, 0.24, yerr=error, capsize=4, color=colour, label=label)
                ax.bar_label(bar, fmt="%.1f", padding=3, fontsize=8)
                if len(values) > 1:
                    ax.scatter([x] * len(values), values, s=9, color="black", alpha=0.5, zorder=3)
        ax.set_xticks(range(len(stages)), stages)
        ax.set(title=title, ylabel=ylabel)
        ax.margins(y=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="upper left", ncols=len(colours))
    return png(figure)
