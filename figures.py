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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastinst.data.dataset import Dataset, ImageRecord
from fastinst.data.formats import load_dataset
from fastinst.data.images import find_files, read_image
from fastinst.errors import ArgumentParser, InputError, run
from fastinst.figures.attention_maps import auxiliary_attention, draw_attention
from fastinst.figures.observation import load_observable
from fastinst.figures.query_points import draw_points, observe_queries, on_objects, query_points
from fastinst.figures.sheet import Cell, legend, sheet
from fastinst.files import check_output_file, write_whole
from fastinst.metrics.evaluate import evaluate
from fastinst.metrics.gallery import draw_gallery
from fastinst.predictor import Predictor
from fastinst.results import Instances
from fastinst.visualize import fitted, ground_truth_instances, overlay

JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}
FORMATS = {".png": {"format": "PNG"}, ".jpg": JPEG, ".jpeg": JPEG}
FAILURES = ("twice", "parts", "false", "missed")  # of metrics.mistakes.KINDS


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
        columns = [
            ("without local-maximum-first", predictors[0], args.num_queries or 10, False),
            ("with local-maximum-first", predictors[0], args.num_queries or 10, True),
        ]
    else:
        columns = [
            (title, p, args.num_queries or p.config.num_queries, p.config.local_maximum_first)
            for title, p in zip(told_apart(args.weights, predictors), predictors, strict=True)
        ]
    cells = []
    for shown in find_shown(args, dataset):
        for _, predictor, count, first in columns:
            points = query_points(observe_queries(predictor, shown.image), count, first)
            caption = f"{points.chosen} queries"
            if shown.record:
                on, met = on_objects(points, shown.objects)
                caption = f"{on} of {points.chosen} on {met} of {len(shown.objects)} objects"
            if outside := points.chosen - len(points):
                caption += f", {outside} in padding"
            cells.append(Cell(draw_points(shown.picture, points), caption))
        cells.append(shown.itself(dataset))
    headings = [title for title, *_ in columns] + ["ground truth" if dataset else "image"]
    return sheet(cells, headings, legend("probability of the best class", ("0", "1"), marks=True))


def attention(args: argparse.Namespace, dataset: Dataset | None) -> np.ndarray:
    """Figure III: what auxiliary queries attend to in the last layer, on average or by head."""
    predictor = load_observable(args.weights, args.device)
    known = range(1, predictor.config.num_aux_queries + 1)
    for number in args.queries or ():
        if number not in known:
            raise InputError(f"there is no query {number}: {args.weights} has {len(known)}")
    cells = []
    for shown in find_shown(args, dataset):
        weights, image_part = auxiliary_attention(predictor, shown.image)
        maps = {}
        for number in args.queries or known:
            of_heads = weights[:, number - 1]
            if args.by_head:
                maps |= {f"query {number}, head {i}": x for i, x in enumerate(of_heads, start=1)}
            else:
                maps[f"query {number}"] = of_heads.mean(dim=0)
        cells.append(shown.itself(dataset))
        for x in maps.values():
            picture = draw_attention(shown.picture, x, image_part)
            cells.append(Cell(picture, f"{x.numel() * x.max():.1f} times the mean"))
    headings = ["ground truth" if dataset else "image", *maps]
    return sheet(cells, headings, legend("attention", ("none", "the most in this picture")))


def grid(args: argparse.Namespace, dataset: Dataset) -> np.ndarray:
    """Figures IV and V: ground truth beside prediction."""
    predictor = Predictor(args.weights, args.device, "float32", threshold=args.threshold)
    images = list(find_shown(args, dataset))
    found: dict[int, Instances] = {}
    records = tuple(shown.record for shown in images)
    evaluate(
        predictor,
        dataclasses.replace(dataset, images=records),
        keep=lambda record, instances: found.update({record.id: instances}),
    )
    cells = []
    for shown in images:
        _, instances = fitted(shown.image, found[shown.record.id], args.size)
        picture = overlay(shown.picture, instances, dataset.class_names)
        cells += [shown.itself(dataset), Cell(picture, f"{len(instances)} found")]
    pairs = min(args.pairs, len(images))
    return sheet(cells, ["ground truth", "prediction"] * pairs)


def failures(args: argparse.Namespace, dataset: Dataset) -> np.ndarray:
    """Figure VI: the worst cases of each kind, found by comparing with the ground truth."""
    predictor = Predictor(args.weights, args.device, "float32")
    results = evaluate(predictor, dataset, max_images=args.max_images).results_by_image()
    return draw_gallery(dataset, results, FAILURES, args.threshold)


@dataclass
class Shown:
    """An image of a figure.

    name: of its file
    image: uint8 [H, W, 3] as it was read
    picture: the same at the size at which it is shown
    record: its annotations, and ...
    objects: their masks over the picture; none if there is no record
    """

    name: str
    image: np.ndarray
    picture: np.ndarray
    record: ImageRecord | None
    objects: Instances

    def itself(self, dataset: Dataset | None) -> Cell:
        """The picture with the ground truth, if that is known."""
        if dataset is None:
            return Cell(self.picture, self.name)
        drawn = overlay(self.picture, self.objects, dataset.class_names, show_scores=False)
        return Cell(drawn, f"{self.name}, {len(self.objects)} objects")


def find_shown(args: argparse.Namespace, dataset: Dataset | None) -> Iterator[Shown]:
    """The images that were named, or --count of the data set's, from all over it."""
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
        image = read_image(path, (record.height, record.width) if record else None)
        if record:
            objects = ground_truth_instances(record)
        else:
            nothing = torch.zeros(0, *image.shape[:2], dtype=torch.bool)
            objects = Instances.from_masks(torch.zeros(0), torch.zeros(0), nothing)
        picture, objects = fitted(image, objects, args.size)
        yield Shown(path.name, image, picture, record, objects)


def told_apart(weights: list[str], predictors: list[Predictor]) -> list[str]:
    """Titles: the settings in which models differ, or if they do not, where they are from."""
    settings = [dataclasses.asdict(predictor.config) for predictor in predictors]
    keys = [key for key in settings[0] if any(s[key] != settings[0][key] for s in settings)]
    if not keys:
        return ["/".join(Path(source).parts[-2:]) for source in weights]
    return [", ".join(f"{key}={s[key]}" for key in keys) for s in settings]


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
