"""The part of YAML that data.yaml uses."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastinst.data.data_yaml import read_data_yaml
from fastinst.errors import InputError

on_disk = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
plain = st.from_regex(r"[A-Za-z0-9_./][A-Za-z0-9_./ '()+-]{0,9}[A-Za-z0-9]", fullmatch=True)
plain = plain.filter(lambda text: text.lower() != "null")


@st.composite
def scalars(draw):
    """(how it is written, what it means)"""
    style = draw(st.sampled_from(["plain", "single", "double", "none"]))
    if style == "none":
        return draw(st.sampled_from(["null", "~"])), None
    value = draw(plain if style == "plain" else texts)
    if style == "single":
        return "'" + value.replace("'", "''") + "'", value
    return (
        json.dumps(value, ensure_ascii=draw(st.booleans())) if style == "double" else value
    ), value


@st.composite
def documents(draw):
    """(text, the value of names)"""
    items = draw(st.lists(scalars(), min_size=1, max_size=5))
    comment = draw(st.sampled_from(["", " # [a], 'b", "  #"]))
    style = draw(st.sampled_from(["scalar", "flow", "block"]))
    if style == "scalar":
        text, value = f" {items[0][0]}{comment}\n", items[0][1]
    elif draw(st.booleans()):
        value = [meaning for _, meaning in items]
        indent = draw(st.sampled_from(["", "  "]))
        if style == "block":
            lines = [f"{indent}- {text}{comment}\n\n" for text, _ in items]
            text = f"{comment}\n" + "".join(lines)
        else:
            glue = draw(st.sampled_from([",", ", ", f",{comment}\n    "]))
            text = f" [{glue.join(text for text, _ in items)}]{comment}\n"
    else:
        value = {str(number): meaning for number, (_, meaning) in enumerate(items)}
        pairs = [f"{number}: {text}" for number, (text, _) in enumerate(items)]
        if style == "block":
            text = f"{comment}\n" + "".join(f"  {pair}{comment}\n" for pair in pairs)
        else:
            text = " {" + ", ".join(pairs) + "}" + f"{comment}\n"
    before = draw(st.sampled_from(["", "# names: x\n", "---\n", "nc: 2\n", "a: |\n  names: b\n"]))
    after = draw(st.sampled_from(["", "more:\n  - {deep: [1]}\n", "download: |\n  x = 'it\n"]))
    return f"{before}names:{text}{after}", value


@on_disk
@given(documents())
def test_yaml_is_what_was_written(tmp_path, document):
    text, value = document
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    assert read_data_yaml(tmp_path / "data.yaml", ("names",)) == {"names": value}


@on_disk
@given(st.text() | st.text("names:[]{}'\", \n-#0a\\|").map("names: {}".format))
def test_any_yaml_is_read_or_refused_in_one_line(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        values = read_data_yaml(path, ("names", "path"))
    except InputError as error:
        assert str(error).startswith(f"{path}, line ") and "\n" not in str(error)
    else:
        assert set(values) <= {"names", "path"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names:\n  - [a]", "line 1: 'names' .* more than plain text"),
        ("\nnames: [a, [b]]", "line 2: 'names' .* brackets within"),
        ("names: &anchor [a]", "more than plain text"),
        ("names: *anchor", "more than plain text"),
        ("names: !!seq [a]", "more than plain text"),
        ("names: |\n  a", "continues it"),
        ("names: >-", "more than plain text"),
        ("names: [a, b", "not closed"),
        ("names: ['a, b]", "never closed"),
        ("names: [a,, b]", "between two commas"),
        ("names: {a}", "no 'key: value'"),
        ("names: {0: a, 0: b}", "a second '0'"),
        ("names: [a]\nnames: [b]", "line 2: a second 'names'"),
        ("names:\n  0: a\n  1:\n    - b", "not indented alike"),
        ("names:\n  0: a\n  - b", "no 'key: value'"),
        ("names: a: b", "more than plain text"),
        ('names: "\\x"', "no text in double quotes"),
        ("names: 'a' b", "no text in single quotes"),
        ("- a", "line 1: '- a' is no 'key: value'"),
        ("names", "is no 'key: value'"),
    ],
)
def test_yaml_beyond_the_subset_is_refused(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"data\.yaml, .*{message}"):
        read_data_yaml(tmp_path / "data.yaml", ("names",))


def test_yaml_that_is_no_text(tmp_path):
    (tmp_path / "data.yaml").write_bytes(b"\xff\xfe\xff")
    for name in ("data.yaml", "none.yaml"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as YAML"):
            read_data_yaml(tmp_path / name, ("names",))
