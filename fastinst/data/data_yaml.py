"""YOLO's data.yaml: the part of YAML that such files use, and no more.

Top-level keys with a scalar, a list or a mapping of scalars, in block or flow style. Keys that
nobody asks for are passed over unread, whatever they hold.
Format: https://docs.ultralytics.com/datasets/segment/
"""

import json
import re
from pathlib import Path

from fastinst.errors import InputError

Value = str | None | list[str | None] | dict[str, str | None]

NAME = r"""(?:"[^"\\]*"|'[^']*'|\w[\w.-]*)"""
KEY = re.compile(rf"({NAME})\s*:(?:\s+|$)")
QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')"""
ITEM = rf"""\s*(?:{NAME}\s*:\s+)?(?:{QUOTED}\s*|[^\s,"'][^,]*)?"""
BRACKETS = {"[": "]", "{": "}"}


def read_data_yaml(path: Path, keys: tuple[str, ...]) -> dict[str, Value]:
    """The values of those `keys` that the file has.

    All scalars are text, also 2 and no; null, ~ and nothing are None.
    Raises InputError, naming the file and the line, for what is no such file, and for YAML beyond
    the part described above (anchors, tags, multi-line text, nesting) under one of the keys.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {error}") from error

    blocks: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(map(_without_comment, lines), start=1):
        match = KEY.match(line)
        if match:
            blocks.append((number, _unquote(match[1]), [line[match.end() :]]))
        elif line.startswith(("---", "...", "%")) or not line:
            continue
        elif blocks:
            blocks[-1][2].append(line)
        else:
            raise InputError(f"{path}, line {number}: {line[:80]!r} is no 'key: value'")

    values = {}
    for number, key, block in blocks:
        if key not in keys:
            continue
        if key in values:
            raise InputError(f"{path}, line {number}: a second {key!r}")
        try:
            values[key] = _value(*block)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {key!r} cannot be read: {error}; write plain or quoted "
                "text, [a, b], {0: a, 1: b}, or one item per line"
            ) from error
    return values


def _without_comment(line: str) -> str:
    position = 0
    while mark := re.compile(r"""(?<!\S)#|["']""").search(line, position):
        start, position = mark.start(), mark.end()
        if mark[0] == "#":
            return line[:start].rstrip()
        # Within a word or after one it is an apostrophe.
        opens = re.search(r"(^|[\[{,]|^\s*-\s|:\s)\s*$", line[:start])
        quoted = re.compile(QUOTED).match(line, start) if opens else None
        position = quoted.end() if quoted else position
    return line.rstrip()


def _value(first: str, *rest: str) -> Value:
    """What follows a key: the rest of its line, and the lines below. Raises ValueError."""
    if first.startswith(tuple(BRACKETS)):
        return _flow(" ".join([first, *rest]))
    if first and rest:
        raise ValueError(f"the line {rest[0].strip()[:80]!r} continues it")
    if not rest:
        return _scalar(first)
    if len({len(line) - len(line.lstrip()) for line in rest}) > 1:
        raise ValueError("its lines are not indented alike")
    items = [line.strip() for line in rest]
    if all(item == "-" or item.startswith("- ") for item in items):
        return [_scalar(item[1:]) for item in items]
    return _mapping(items)


def _flow(text: str) -> Value:
    """[a, b] or {0: a, 1: b}. Raises ValueError."""
    opening, inner = text[0], text[1:-1]
    if not text.endswith(BRACKETS[opening]) or len(text) < 2:
        raise ValueError(f"its {opening!r} is not closed at the end")
    if not re.fullmatch(rf"{ITEM}(?:,{ITEM})*", inner):
        raise ValueError("a quotation mark is never closed")
    items = [item.strip() for item in re.findall(rf"({ITEM})(?:,|$)", inner)]
    while items and not items[-1]:  # after a comma at the end
        items.pop()
    if "" in items:
        raise ValueError("nothing between two commas")
    if any(set("[]{}") & set(re.sub(QUOTED, "", item)) for item in items):
        raise ValueError("brackets within its brackets")
    return [_scalar(item) for item in items] if opening == "[" else _mapping(items)


def _mapping(items: list[str]) -> dict[str, str | None]:
    mapping = {}
    for item in items:
        match = KEY.match(item)
        if not match:
            raise ValueError(f"{item[:80]!r} is no 'key: value'")
        key = _unquote(match[1])
        if key in mapping:
            raise ValueError(f"a second {key!r}")
        mapping[key] = _scalar(item[match.end() :])
    return mapping


def _scalar(text: str) -> str | None:
    text = text.strip()
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text[0] in "\"'":
        return _unquote(text)
    if text[0] in "&*!|>%@`[]{}," or re.search(r"^[-?:]\s|:(\s|$)", text):
        raise ValueError(f"{text[:80]!r} is more than plain text")
    return text


def _unquote(text: str) -> str:
    if text[0] == '"':
        try:
            return json.loads(text, strict=False)
        except ValueError:
            raise ValueError(f"{text[:80]} is no text in double quotes as JSON has it") from None
    if text[0] == "'":
        if not re.fullmatch(r"'(?:[^']|'')*'", text):
            raise ValueError(f"{text[:80]} is no text in single quotes")
        return text[1:-1].replace("''", "'")
    return text
