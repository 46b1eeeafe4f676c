"""From images to what is in them: the one path that all programs take."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastinst.data.any_image import AnyImage, is_image, rgb_pixels
from fastinst.data.augment import resize_shortest_edge
from fastinst.errors import InputError
from fastinst.memory import LargestBatch, is_out_of_memory
from fastinst.networks import load_network
from fastinst.preprocess import preprocess
from fastinst.read_outs import THRESHOLDS, Found, make_read_out
from fastinst.streaming import batches, in_order, read_ahead
from fastinst.targets import padded_size
from fastinst.transfers import Transfers, Upload

# Waits for what has been begun, and returns the results with their places.
End = Callable[[], list[tuple[int, Found | InputError]]]
# Decoding and resizing leave Python's lock, so that they run beside the network.
READERS = 4
# Batches are picked from this many times as many images, to find some that are padded alike.
WINDOW = 4


class Predictor:
    """Finds instances in images, by what is fastest on a device; or divides them into segments.

        predictor = Predictor("runs/nuclei/best.pt")
        found = predictor("photo.jpg")
        Predictor("runs/city/best.pt", task="panoptic")("street.jpg").segments

    Images are resized as the model's configuration says and padded only as far as each of them
    alone would be: a batch joins images that are padded to one size, so that batches change
    results by rounding alone. Threads may share a Predictor. Several GPUs take one process each;
    under torchrun the default device is the process's own.

    Where memory runs out the batch is halved, from then on, with a warning.

    Args:
        model: a `FastInst`, which stays as it is; the path of a checkpoint; the name of a released
            model; a file that export.py has written (.onnx, .pt2); or another network, which maps
            batches of `preprocess` to what `FastInst.forward` returns and has `config`, `device`
            and `dtype`
        device: such as "cpu", "cuda" or "cuda:1"; by default CUDA where there is one, else the
            CPU, which is also an exported file's. On "mps", which nobody has tried yet, all
            operators run as their definitions
        dtype: "float32", "float16" or "bfloat16"; by default the fastest that the device
            multiplies in, see `choose_dtype`
        max_instances: of each image at most
        threshold: instances with lower scores are left out, by default none; for the panoptic
            task segments with lower or equal scores, by default 0.8; not for the semantic one
        task: "instance", whose results are `Instances`, or what the model was trained for:
            "panoptic" and "semantic" give a `SegmentMap` in their place, with a segment for each
            object and each class of stuff, or for each class
        engine: False runs the model without any preparation, by default in its own dtype and on
            its own device

    Attributes: config, name, class_names and category_ids (by label; None if unknown), is_thing
    (by label; None if all are things), task, threshold, device, dtype, network.

    Raises:
        InputError: a model, device or dtype that cannot be had, a number out of range, or an
            unknown task.
    """

    def __init__(
        self,
        model: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_instances: int = 100,
        threshold: float | None = None,
        *,
        task: str = "instance",
        engine: bool = True,
    ):
        if max_instances < 1:
            raise InputError(f"max_instances must be at least 1, got {max_instances}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold must be from 0 to 1, got {threshold}")
        self.network, info = load_network(model, device, dtype, engine)
        self.config = self.network.config
        self.device, self.dtype = self.network.device, self.network.dtype
        self.name, self.class_names, self.category_ids, self.is_thing = info
        self.task, self.max_instances = task, max_instances
        self._read_out = make_read_out(task, self.class_names, self.is_thing, max_instances)
        self.threshold = THRESHOLDS[task] if threshold is None else threshold
        self._input_size = getattr(self.network, "input_size", None)
        self._transfers = Transfers(self.device)
        self._memory = LargestBatch(str(self.device))
        self._asynchronous = self.device.type == "cuda"

    def __call__(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int | None = None
    ) -> Found | list[Found]:
        """What is found in one image, or a list of that for each of several; on the host.

        Args:
            images: one or several, of any sizes, each as `rgb_pixels` takes it: a path, a PIL
                image, or uint8 RGB as an array [H, W, 3] or a tensor [3, H, W]
            batch_size: how many go through the network at once, by default one; a GPU reaches its
                full throughput with more

        Raises:
            InputError: an image that cannot be read, by its path or place from 0, or that needs
                more memory than there is.
        """
        if not is_image(images):
            return list(self.stream(images, 1 if batch_size is None else batch_size))
        image = self._read((0, images))
        if image.error:
            raise image.error
        ((_, found),) = self._begin([image])()
        return found

    def stream(
        self,
        images: Iterable[AnyImage],
        batch_size: int = 1,
        yield_errors: bool = False,
        readers: int = READERS,
    ) -> Iterator[Found | InputError]:
        """What is found in each image as soon as it is, in the order of the images.

        The next images are read and resized in threads meanwhile; a GPU's transfers overlap its
        computing, and its results come when the next batch is under way. If `images` is a
        generator, it runs in one of the threads. However a stream ends, by Ctrl-C or because
        nobody goes on with it, its threads do too.

        Args:
            images: any number, as in a call; or functions that return one, which are called in
                the reading threads
            batch_size: as in a call
            yield_errors: an image that cannot be read, or that there is too little memory for,
                yields its InputError, in its place, where otherwise it is raised and the stream
                is over
            readers: threads that read and resize images

        Raises:
            InputError: as in a call; what is given is not several images, or batch_size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if is_image(images) or not isinstance(images, Iterable):
            raise InputError(f"expected images in a list or the like, got {type(images).__name__}")
        return self._stream(images, batch_size, yield_errors, readers)

    def resize(self, image: np.ndarray) -> Tensor:
        """A uint8 [H, W, 3] image to a uint8 [3, h, w] tensor of the size the model is made for."""
        short, longest = self.config.test_short_edge, self.config.test_max_edge
        if self._input_size is not None:
            # What fits into a file that was exported for one size; it pads what is smaller.
            upright = image.shape[0] > image.shape[1]
            height, width = self._input_size
            short = min(short, width if upright else height)
            longest = min(longest, height if upright else width)
        return torch.from_numpy(resize_shortest_edge(image, short, longest)).permute(2, 0, 1)

    @torch.inference_mode()
    def infer(
        self, resized: list[Tensor], sizes: list[tuple[int, int]], threshold: float = 0.0
    ) -> list[Found]:
        """What is found in images that are resized already, on the device; of instances without a
        threshold nothing waits for a GPU.

        Args:
            resized: of `resize`, on the host or the device
            sizes: (height, width) of the originals, which the masks will have

        Raises:
            InputError: an image that needs more memory than there is.
        """
        by_padding = batches(range(len(resized)), lambda i: _padded(resized[i]), len(resized))
        results: dict[int, Found] = {}
        for places in by_padding:
            images = [(resized[i], sizes[i], threshold) for i in places]
            results.update(zip(places, self._memory.compute(self._compute, images), strict=True))
        return [results[i] for i in range(len(resized))]

    def _compute(self, images: list[tuple[Tensor, tuple[int, int], float]]) -> list[Found]:
        """Of (resized, size, threshold) each, all padded to one size and with one threshold."""
        resized, sizes, (threshold, *_) = map(list, zip(*images, strict=True))
        try:
            batch, image_sizes = preprocess(resized, self.config, self.device, self.dtype)
            return self._read_out(self.network(batch), image_sizes, sizes, threshold)
        except (RuntimeError, MemoryError) as error:
            if len(images) > 1 or not is_out_of_memory(error):
                raise
            (height, width), (h, w) = sizes[0], resized[0].shape[1:]
            raise InputError(
                f"an image of {width} x {height} pixels, resized to {w} x {h}, needs more memory "
                f"than {self.device} has free; try a smaller model or fewer max_instances"
            ) from error

    def _stream(self, images, batch_size, yield_errors, readers):
        window = batch_size if batch_size == 1 else WINDOW * batch_size
        with closing(read_ahead(enumerate(images), self._read, window + readers, readers)) as read:
            results = self._results(batches(read, lambda image: image.padded, batch_size, window))
            for found in in_order(results):
                if isinstance(found, InputError) and not yield_errors:
                    raise found
                yield found
                del found  # its masks may be large: not kept while the next are made

    def _results(self, groups: "Iterable[list[_Image]]") -> Iterator[tuple[int, Any]]:
        """Numbered, in the order of the groups."""
        begun = deque()
        for images in groups:
            if images[0].error:
                yield from ((image.place, image.error) for image in images)
                continue
            begun.extend(self._begin_all(images))
            # A GPU would idle if its results were waited for before the next batch is begun.
            while len(begun) > (1 if self._asynchronous else 0):
                yield from begun.popleft()()
        while begun:
            yield from begun.popleft()()

    def _read(self, numbered: tuple[int, AnyImage]) -> "_Image":
        place, image = numbered
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {place}"
        try:
            pixels = rgb_pixels(image, name)
        except InputError as error:
            return _Image(place, name, error=error)
        resized = self.resize(pixels)
        upload = self._transfers.upload(resized)
        return _Image(place, name, pixels.shape[:2], upload, _padded(resized))

    def _begin_all(self, images: "list[_Image]") -> list[End]:
        """At once, or if one of them is too large for the memory each alone."""
        try:
            return [self._begin(images)]
        except InputError as error:
            image, problem = images[0], InputError(f"{images[0].name}: {error}")
        if len(images) == 1:
            return [lambda: [(image.place, problem)]]
        return [end for image in images for end in self._begin_all([image])]

    def _begin(self, images: "list[_Image]") -> End:
        """Of images padded alike. Raises InputError if one needs more memory than there is."""
        # A GPU reads out all masks sooner than the host would learn how many are wanted.
        late = self._asynchronous and self.task == "instance" and self.threshold > 0
        threshold = 0.0 if late else self.threshold
        found = self.infer(
            [image.upload.wait() for image in images], [image.size for image in images], threshold
        )
        downloads = [self._transfers.download(of_image) for of_image in found]

        def end() -> list[tuple[int, Found]]:
            arrived = (download.wait() for download in downloads)
            if late:
                arrived = (here[here.scores >= self.threshold] for here in arrived)
            return [(image.place, here) for image, here in zip(images, arrived, strict=True)]

        return end


class _Image(NamedTuple):
    """One image of many, resized and on its way to the device; or why it cannot be."""

    place: int
    name: str
    size: tuple[int, int] = (0, 0)
    upload: Upload | None = None
    padded: tuple[int, int] | None = None
    error: InputError | None = None


def _padded(resized: Tensor) -> tuple[int, int]:
    return padded_size(resized.shape[1], resized.shape[2])
