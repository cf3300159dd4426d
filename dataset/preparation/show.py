"""A look into a database: ``python -m dataset.show DB VIDEO -o FILE.png`` draws RGB above flow."""

from pathlib import Path

import cv2
import numpy as np

from dataset.jpeg import decode
from dataset.preparation.flow import color_wheel, decode_flow
from dataset.preparation.verify import pairs
from dataset.store import BrokenVideo, VideoStore
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
        return [decode(jpeg) for jpeg in store.read_frames(position, indices.tolist())]
    except BrokenVideo as error:
        raise UserError(f"cannot show {error}; see 'python -m dataset.verify'") from error
    except ValueError as error:
        raise UserError(f"cannot show {video}: a frame is broken; see 'python -m dataset.verify'") from error


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
    parser.add_argument(
        "--full",
        type=float,
        metavar="PIXELS",
        help="speed of a full colour; that of the fastest hundredth shown if not given",
    )
    args = parser.parse_args(argv)
    databases = pairs(args.db)
    holding = [(rgb, flow) for rgb, flow in databases if args.video in VideoStore(rgb or flow).names]
    rgb, flow = (holding or databases)[0]
    times = np.linspace(0, 1, args.frames)
    rows = []
    said = ""
    if rgb:
        rows.append(read_images(VideoStore(rgb), args.video, times))
    if flow:
        flows = [decode_flow(image, args.bound) for image in read_images(VideoStore(flow), args.video, times)]
        fastest = np.percentile([np.linalg.norm(frame, axis=-1) for frame in flows], 99)
        full = args.full or max(1.0, float(fastest))
        rows.append([color_wheel(frame, full) for frame in flows])
        said = f"; a full colour is {full:.1f} pixels per frame"
    try:
        saved = cv2.imwrite(str(args.output), contact_sheet(rows)[..., ::-1])
    except cv2.error as error:
        raise UserError(f"cannot write {args.output}: a name that ends in .png or .jpg is needed") from error
    if not saved:
        raise UserError(f"cannot write {args.output}; does its folder exist?")
    print(f"{args.output}: {args.frames} frames of {args.video}{said}")
