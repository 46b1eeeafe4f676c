"""What is wrong with a data set, where, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastinst.data.dataset import Annotation, ImageRecord


@dataclass(frozen=True)
class Finding:
    """One kind of trouble and all its places.

    severity: "fatal" if nothing can be learnt or measured so; "warning" if a run would work, but
        hardly as meant; "note" for what is as it may be and good to know
    what: a sentence without its full stop
    places: images and annotations by name and id; empty if the whole set is meant
    fix: what to do, a sentence or a command; empty for what needs nothing
    """

    severity: Literal["fatal", "warning", "note"]
    what: str
    places: tuple[str, ...] = ()
    fix: str = ""

    def lines(self, most_places: int = 3) -> Iterator[str]:
        """The finding as it is printed, of its places the first `most_places`."""
        yield f"{self.severity:8}{self.what}"
        for place in self.places[:most_places]:
            yield f"          {place}"
        if len(self.places) > most_places:
            yield f"          and {len(self.places) - most_places:,} more"
        if self.fix:
            yield f"        > {self.fix}"


def place(record: ImageRecord, *annotations: Annotation) -> str:
    """An image, or annotations of it, as the user can look them up."""
    image = f"image {record.id} ({record.path.name})"
    if not annotations:
        return image
    ids = " and ".join(str(annotation.id) for annotation in annotations)
    return f"annotation{'s' if len(annotations) > 1 else ''} {ids} of {image}"


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number and its noun: "1 image", "2,000 images"."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
