"""Draw what a model looks at and what it gets wrong, as the figures of the paper's supplement.

python figures.py queries runs/a/best.pt --data my_data --output queries.png
python figures.py queries runs/a/best.pt runs/b/best.pt --images street.jpg --output both.png
python figures.py attention runs/a/best.pt --images street.jpg "my photos" --output attention.png
python figures.py grid runs/a/best.pt --data my_data --count 8 --output grid.jpg
python figures.py failures runs/a/best.pt --data my_data --output failures.jpg
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fastinst.data.dataset import Dataset
from fastinst.data.formats import load_dataset
from fastinst.data.images import find_files
from fastinst.errors import ArgumentParser, InputError, run
from fastinst.figures.observation import load_observable
from fastinst.figures.shown import Shown
from fastinst.figures.supplement import (
    Choice,
    attention_figure,
    failure_figure,
    prediction_figure,
    query_figure,
)
from fastinst.files import check_output_file, write_whole
from fastinst.predictor import Predictor

JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}
FORMATS = {".png": {"format": "PNG"}, ".jpg": JPEG, ".jpeg": JPEG}


def main() -> None:
    args = parse_arguments()
    check_output_file(args.output)
    dataset = load_dataset(args.data, args.split, args.image_folder) if args.data else None
    picture = args.figure(args, dataset)
    with write_whole(args.output) as file:
        Image.fromarray(picture).save(file, **FORMATS[args.output.suffix.lower()])
    print(f"wrote {args.output}, {picture.shape[1]} x {picture.shape[0]} pixels")


def queries(args: argparse.Namespace, dataset: Dataset | None) -> np.ndarray:
    """Figures I and II: a checkpoint with both ways of choosing queries, or several checkpoints."""
    predictors = [load_observable(weights, args.device) for weights in args.weights]
    if len(predictors) == 1:
        choices = [
            Choice("without local-maximum-first", *predictors, args.num_queries or 10, False),
            Choice("with local-maximum-first", *predictors, args.num_queries or 10, True),
        ]
    else:
        choices = [
            Choice(title, p, args.num_queries or p.config.num_queries, p.config.local_maximum_first)
            for title, p in zip(told_apart(args.weights, predictors), predictors, strict=True)
        ]
    return query_figure(choices, find_shown(args, dataset))


def attention(args: argparse.Namespace, dataset: Dataset | None) -> np.ndarray:
    """Figure III: what auxiliary queries attend to in the last layer, on average or by head."""
    predictor = load_observable(args.weights, args.device)
    return attention_figure(predictor, find_shown(args, dataset), args.queries, args.by_head)


def grid(args: argparse.Namespace, dataset: Dataset) -> np.ndarray:
    """Figures IV and V: ground truth beside prediction."""
    predictor = Predictor(args.weights, args.device, "float32", threshold=args.threshold)
    return prediction_figure(predictor, dataset, list(find_shown(args, dataset)), args.pairs)


def failures(args: argparse.Namespace, dataset: Dataset) -> np.ndarray:
    """Figure VI: the worst cases of each kind, found by comparing with the ground truth."""
    predictor = Predictor(args.weights, args.device, "float32")
    return failure_figure(predictor, dataset, args.threshold, args.max_images)


def find_shown(args: argparse.Namespace, dataset: Dataset | None) -> Iterator[Shown]:
    """The images that were named, or --count of the data set's, from all over it."""
    class_names = dataset.class_names if dataset else ()
    if args.images:
        records = {record.path.resolve(): record for record in dataset.images} if dataset else {}
        chosen = [(path, records.get(path.resolve())) for path in find_files(args.images)]
    else:
        count = min(args.count, len(dataset))
        places = np.linspace(0, len(dataset), count, endpoint=False).astype(int)
        chosen = [(dataset.images[i].path, dataset.images[i]) for i in places]
    for path, record in chosen:
        if dataset and record is None:
            raise InputError(f"{path} is none of the images of {dataset.source}; leave --data out")
        yield Shown.read(path, args.size, record, class_names)


def told_apart(weights: list[str], predictors: list[Predictor]) -> list[str]:
    """Titles: the settings in which models differ, or if they do not, where they are from."""
    settings = [dataclasses.asdict(predictor.config) for predictor in predictors]
    keys = [key for key in settings[0] if any(s[key] != settings[0][key] for s in settings)]
    if not keys:
        return ["/".join(Path(source).parts[-2:]) for source in weights]
    # 0 and 1000.0 are both settings of a float.
    texts = [[f"{key}={s[key]}".removesuffix(".0") for key in keys] for s in settings]
    return [", ".join(text) for text in texts]


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(required=True, metavar="FIGURE")

    def add_figure(function: Callable, weights: str | None = None) -> ArgumentParser:
        about = function.__doc__
        figure = figures.add_parser(function.__name__, help=about, description=about)
        figure.set_defaults(figure=function)
        add = figure.add_argument
        add("weights", nargs=weights, help="a checkpoint or a released model's name")
        add("--output", type=Path, required=True, help="the picture, a .png or .jpg")
        add("--data", help="a data set, for its ground truth")
        add("--split", choices=("train", "val"), default="val", help="of the data [val]")
        add("--image-folder", help="of a COCO JSON's images, if they are elsewhere")
        add("--device", help="cpu, cuda, cuda:1 or mps [a GPU where there is one]")
        return figure

    def add_images(figure: ArgumentParser) -> None:
        add = figure.add_argument
        add("--images", nargs="+", type=Path, help="what is shown: images, folders of them")
        add("--count", type=int, default=4, help="without --images, so many of --data [4]")
        add("--size", type=int, default=360, help="longer edge of a picture in pixels [360]")

    figure = add_figure(queries, "+")
    add_images(figure)
    figure.add_argument("--num-queries", type=int, help="[10; of several checkpoints their own]")
    figure = add_figure(attention)
    add_images(figure)
    figure.add_argument("--queries", nargs="+", type=int, help="which, numbered from 1 [all]")
    figure.add_argument("--by-head", action="store_true", help="each head, not their mean")
    figure = add_figure(grid)
    add_images(figure)
    figure.add_argument("--pairs", type=int, default=2, help="of pictures in a row [2]")
    figure.add_argument("--threshold", type=float, default=0.5, help="lowest score [0.5]")
    figure = add_figure(failures)
    figure.add_argument("--max-images", type=int, help="look at only the first so many images")
    figure.add_argument("--threshold", type=float, default=0.5, help="lowest score [0.5]")

    args = parser.parse_args()
    needs_truth = args.figure in (grid, failures)
    if args.data is None and (needs_truth or args.images is None):
        parser.error("name a data set with --data" + ("" if needs_truth else ", or --images"))
    if args.output.suffix.lower() not in FORMATS:
        parser.error(f"--output is a picture, {' or '.join(FORMATS)}, got {args.output}")
    if not 0 <= getattr(args, "threshold", 0) <= 1:
        parser.error("--threshold must be from 0 to 1")
    for name in ("count", "size", "num_queries", "pairs", "max_images"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return args


if __name__ == "__main__":
    run(main)
