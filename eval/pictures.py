"""Pictures of results, drawn with OpenCV: retrieval gallery (HTML, PNG), R@k curve, confusion matrix (PNG)."""
import base64
import html
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from dataset.crop import decode
from dataset.splits import class_of
from dataset.store import BrokenVideo, VideoStore

RIGHT, WRONG, INK, PALE = (46, 139, 87), (200, 60, 60), (30, 30, 30), (225, 225, 225)  # RGB
COLOURS = ((31, 119, 180), (214, 96, 30), (46, 139, 87), (148, 80, 170))
HEIGHT = 96  # of a thumbnail in pixels
MOMENTS = 8  # frames of a moving thumbnail
FONT = cv2.FONT_HERSHEY_SIMPLEX

Where = Mapping[str, Mapping[str, tuple[VideoStore, int]]]
Found = Sequence[tuple[str, Sequence[str]]]


def png(image: np.ndarray) -> bytes:
    """PNG of an RGB image uint8 [H, W, 3]."""
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def write(image: np.ndarray, text: str, x: int, y: int, scale: float = 0.42,
          colour: tuple[int, int, int] = INK) -> None:
    """Write ASCII ``text`` with its baseline's start at (x, y), in place."""
    cv2.putText(image, text.encode("ascii", "replace").decode(), (x, y), FONT, scale, colour, 1, cv2.LINE_AA)


def width_of(text: str, scale: float = 0.42) -> int:
    return cv2.getTextSize(text, FONT, scale, 1)[0][0]


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
    rows = [[(name, *moments(*where[part][name], 1)) for part, name in
             [("test", query), *(("train", name) for name in neighbours)]] for query, neighbours in found]
    cell_width = max(image.shape[1] for row in rows for _, image in row) + 16
    cell_height = HEIGHT + 36
    canvas = np.full((len(rows) * cell_height + 28, max(map(len, rows)) * cell_width + 24, 3), 255, np.uint8)
    write(canvas, "query", 12, 18)
    write(canvas, "nearest training clips", cell_width + 36, 18)
    for i, row in enumerate(rows):
        for j, (name, image) in enumerate(row):
            x, y = 12 + j * cell_width + (24 if j else 0), 32 + i * cell_height
            x = min(x, canvas.shape[1] - image.shape[1] - 4)
            colour = INK if j == 0 else RIGHT if class_of(name) == class_of(row[0][0]) else WRONG
            canvas[y:y + HEIGHT, x:x + image.shape[1]] = image
            cv2.rectangle(canvas, (x - 3, y - 3), (x + image.shape[1] + 2, y + HEIGHT + 2), colour, 3)
            write(canvas, class_of(name)[:(cell_width - 12) // 7], x, y + HEIGHT + 18, 0.4, colour)
    return png(canvas)


def _gallery_html(found: Found, where: Where) -> str:
    def cell(part: str, name: str, kind: str) -> str:
        strip = np.concatenate(moments(*where[part][name], MOMENTS), axis=1)
        jpeg = cv2.imencode(".jpg", strip[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
        width = strip.shape[1] // MOMENTS
        return (f'<figure class="{kind}"><div role="img" aria-label="{html.escape(name)}" style="width:{width}px;'
                f"--shift:-{strip.shape[1]}px;background-image:url(data:image/jpeg;base64,"
                f'{base64.b64encode(jpeg).decode()})"></div><figcaption title="{html.escape(name)}">'
                f"{html.escape(class_of(name))}</figcaption></figure>")

    rows, right, total = [], 0, 0
    for query, neighbours in found:
        same = [class_of(name) == class_of(query) for name in neighbours]
        right, total = right + sum(same), total + len(same)
        rows.append("<section>" + cell("test", query, "query") + "".join(
            cell("train", name, "right" if ok else "wrong") for name, ok in zip(neighbours, same, strict=True))
            + "</section>")
    green, red = (f"rgb{colour}" for colour in (RIGHT, WRONG))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieval</title><style>
body {{ font: 14px sans-serif; margin: 2em; color: #222 }}
section {{ display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 14px }}
figure {{ margin: 0; border: 4px solid #444; border-radius: 4px }}
figure.query {{ margin-right: 24px }}
figure.right {{ border-color: {green} }} figure.wrong {{ border-color: {red} }}
figure div {{ height: {HEIGHT}px; animation: play 1.6s steps({MOMENTS}) infinite }}
figcaption {{ padding: 2px 6px; font-size: 12px }}
@keyframes play {{ to {{ background-position-x: var(--shift) }} }}
</style></head><body><h1>Nearest training clips</h1>
<p>Left: test clip. Right of it: its nearest training clips, nearest first.
<span style="color:{green}">Green</span>: the same class ({right} of {total});
<span style="color:{red}">red</span>: another.</p>
{chr(10).join(rows)}
</body></html>
"""


def recall_curve(curves: Mapping[str, Sequence[float]]) -> bytes:
    """PNG of R@k in percent over k = 1, 2, ..., a curve per name."""
    left, top, width, height = 56, 32, 560, 340
    canvas = np.full((top + height + 52, left + width + 24, 3), 255, np.uint8)
    longest = max(map(len, curves.values()))
    for percent in range(0, 101, 20):
        y = top + round(height * (1 - percent / 100))
        cv2.line(canvas, (left, y), (left + width, y), PALE, 1)
        write(canvas, str(percent), left - 10 - width_of(str(percent)), y + 4)

    def x_of(k: int) -> int:
        return left + round(width * (k - 1) / max(longest - 1, 1))

    for k in [k for k in (1, 5, 10, 20, 30, 40, 50) if k <= longest]:
        cv2.line(canvas, (x_of(k), top + height), (x_of(k), top + height + 5), INK, 1)
        write(canvas, str(k), x_of(k) - width_of(str(k)) // 2, top + height + 20)
    write(canvas, "k", left + width // 2, top + height + 42)
    write(canvas, "R@k (%)", 4, 14)
    cv2.rectangle(canvas, (left, top), (left + width, top + height), INK, 1)
    for number, ((name, values), colour) in enumerate(zip(curves.items(), COLOURS * len(curves), strict=False)):
        points = [(x_of(k), top + round(height * (1 - value / 100))) for k, value in enumerate(values, 1)]
        cv2.polylines(canvas, [np.array(points, np.int32)], False, colour, 2, cv2.LINE_AA)
        write(canvas, f"{name}: R@1 {values[0]:.1f}", left + width - 220, top + height - 20 - 20 * number, 0.45, colour)
    return png(canvas)


def confusion_matrix(truth: Sequence[int], predicted: Sequence[int], classes: int) -> np.ndarray:
    """Counts [classes, classes]: rows are true classes, columns predicted ones."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(truth, np.int64), np.asarray(predicted, np.int64)), 1)
    return counts


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> bytes:
    """PNG of a confusion matrix, each row as shares of its class; numbers are written where there is room."""
    n = len(classes)
    cell = max(min(64, 1200 // n), 9)
    scale = 0.42 if cell >= 14 else 0.28
    margin = max(width_of(name, scale) for name in classes) + 16
    side = n * cell
    canvas = np.full((side + margin + 28, side + margin + 28, 3), 255, np.uint8)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    fade = np.array([(255, 255, 255), (20, 60, 130)])
    for i in range(n):
        for j in range(n):
            x, y = margin + j * cell, 24 + i * cell
            colour = fade[0] + shares[i, j] * (fade[1] - fade[0])
            canvas[y:y + cell, x:x + cell] = colour
            if cell >= 28 and counts[i, j]:
                text = str(counts[i, j])
                ink = (255, 255, 255) if shares[i, j] > 0.5 else INK
                write(canvas, text, x + (cell - width_of(text, 0.45)) // 2, y + cell // 2 + 5, 0.45, ink)
    cv2.rectangle(canvas, (margin, 24), (margin + side, 24 + side), INK, 1)
    names = np.full((side, margin, 3), 255, np.uint8)
    for i, name in enumerate(classes):
        write(names, name, margin - 8 - width_of(name, scale), round((i + 0.5) * cell) + 4, scale)
    canvas[24:24 + side, :margin] = names
    canvas[25 + side:25 + side + margin, margin:margin + side] = cv2.rotate(names, cv2.ROTATE_90_COUNTERCLOCKWISE)
    write(canvas, f"rows: true class, columns: predicted; {np.trace(counts)} of {counts.sum()} right", 8, 16)
    return png(canvas)

