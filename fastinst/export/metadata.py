"""What an exported file says of itself: text inside of it that needs no other file."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from fastinst.config import ModelConfig
from fastinst.errors import InputError

FORMAT = "fastinst-artefact/1"
KEY = "fastinst"  # under which the text is stored, in ONNX's metadata and PyTorch's extra files
INPUT = "images: float32 RGB, 0 to 255, padded to the right and bottom with pixel_mean"


@dataclass(frozen=True)
class Metadata:
    """The model, its classes, and what the file takes.

    config: of the model
    class_names, category_ids: by label; None if unknown
    shape: (batch, height, width) of the images; for a dynamic file the batch is None, and height
        and width are the least that it takes
    dtype: "float32", "float16" or "bfloat16", what it computes in
    is_thing: by label; None if all are, or unknown, as in files of earlier versions
    """

    config: ModelConfig
    class_names: tuple[str, ...] | None
    category_ids: tuple[int, ...] | None
    shape: tuple[int | None, int, int]
    dtype: str
    is_thing: tuple[bool, ...] | None = None

    @property
    def dynamic(self) -> bool:
        return self.shape[0] is None

    def to_json(self) -> str:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["config"] = dataclasses.asdict(self.config)
        return json.dumps({"format": FORMAT, "input": INPUT, **fields})

    @classmethod
    def from_json(cls, text: str, source: object) -> "Metadata":
        """Raises InputError, naming `source`, unless `to_json` of this version wrote it."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            fields.pop("input")
            fields = {name: _as_tuple(value) for name, value in fields.items()}
            config = {name: _as_tuple(value) for name, value in fields.pop("config").items()}
            return cls(ModelConfig(**config), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{source}: exported by another version of fastinst, or not by fastinst ({error}); "
                f"export it anew"
            ) from error


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
