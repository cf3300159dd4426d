"""A look into a database: ``python -m dataset.show DB VIDEO -o FILE.png`` draws RGB above flow."""

from pathlib import Path

import cv2
import numpy as np

from dataset.preparation.flow import color_wheel, decode_flow
from dataset.preparation.verify import find_databases
from dataset.source import BrokenVideo
from dataset.store import VideoStore
from utils.errors import UserError, one_line_errors
from utils.options import Parser, positive_int

GAP = 4  # white pixels around the frames


def read_images(store: VideoStore, video: str, times: np.ndarray) -> list[np.ndarray]:
    """Frames of a video, RGB uint8 [H, W, 3], at ``times`` in [0, 1]; UserError if unknown or broken."""
    if video not in store.names:
        near = [name for name in store.names if video.lower() in name.lower()][:3] or store.names[:3]
        raise UserError(f"{store.path} has no video {video!r}; there are {', '.join(near)}, ...")
    position = store.names.index(video)
    try:
        indices = np.rint(times * (store.num_frames(position) - 1)).astype(int)
        return list(store.frames(position, indices.tolist()))
    except BrokenVideo as error:
        raise UserError(f"cannot show {error}; see 'python -m dataset.verify'") from error


def contact_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """One image, uint8 [H, W, 3], of rows of equally many; each padded to the largest, white between."""
    height, width = (max(image.shape[axis] for row in rows for image in row) + GAP for axis in (0, 1))
    sheet = np.full((height * len(rows) + GAP, width * len(rows[0]) + GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * height + GAP, j * width + GAP
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Draw a contact sheet of a video: RGB frames, below them flow (hue: direction, saturation: speed).",
        "DB VIDEO -o FILE.png",
    )
    parser.add_argument("db", metavar="DB", type=Path, help="a database, or a folder made by dataset.prepare")
    parser.add_argument("video", metavar="VIDEO", help="name, class/video")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument("--frames", type=positive_int, default=8, help="columns, evenly over the video")
    parser.add_argument("--bound", type=float, default=20.0, help="--bound that the flow was prepared with")
    args = parser.parse_args(argv)
    found = find_databases(args.db)
    holding = [paths for paths in found if args.video in VideoStore(next(iter(paths.values()))).names]
    stores = {stream: VideoStore(path) for stream, path in (holding or found)[0].items()}
    times = np.linspace(0, 1, args.frames)
    rows = {stream: read_images(store, args.video, times) for stream, store in stores.items()}
    said = ""
    if "flow" in rows:
        flows = [decode_flow(image, args.bound) for image in rows["flow"]]
        fastest = np.percentile([np.linalg.norm(flow, axis=-1) for flow in flows], 99)
        full = max(1.0, float(fastest))
        rows["flow"] = [color_wheel(flow, full) for flow in flows]
        said = f"; a full colour is {full:.1f} pixels per frame"
    try:
        saved = cv2.imwrite(str(args.output), contact_sheet(list(rows.values()))[..., ::-1])
    except cv2.error:  # it knows no such format
        saved = False
    if not saved:
        raise UserError(f"cannot write {args.output}: is there such a folder? does the name end in .png?")
    print(f"{args.output}: {args.frames} frames of {args.video}{said}")
