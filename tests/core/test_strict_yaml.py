"""YAML that means one thing."""

import time

import pytest
import yaml

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.strict_yaml import DEEPEST, dump, load

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
REFUSED = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", "a: is given twice, in lines 1 and 3, and only the last would count"),
    "a key twice below": ("a:\n  b: {c: 1, c: 2}\n", "a.b.c: is given twice"),
    "a key twice in a list": ("a: [{b: 1, b: 2}]", "a.0.b: is given twice"),
    "a key twice, once in quotes": ("a: 1\n'a': 2\n", "a: is given twice"),
    "a key twice behind an anchor": ("a: &a {b: 1, b: 2}\nc: *a\n", "a.b: is given twice"),
    "octal": ("seeds: [010, 011]", "line 1: seeds.0: 010 can be read as octal, decimal or a text"),
    "octal that is none": ("seeds:\n- 1\n- 08\n", "line 3: seeds.1: 08 can be read as octal"),
    "yes": ("a: yes", "a: yes can be read as a truth value or a text; write true or false, or quote a text"),
    "Off": ("a: {b: Off}", "a.b: Off can be read as a truth value"),
    "a key that is a truth value": ("no: 1", "no can be read as a truth value"),
    "base 60": ("a: 1:30", "a: 1:30 can be read as a number to base 60"),
    "a date": ("a: 2026-01-31", "a: 2026-01-31 can be read as a date"),
    "a number as a key": ("1: a", "the key 1 is no text; put it in quotes"),
    "nothing as a key": ("~: a", "the key ~ is no text"),
    "a list as a key": ("? [a]\n: 1", "the key a list or mapping is no text"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "a tab": ("a:\n\tb: 1\n", "cannot be read as YAML"),
    "NUL": ("a: \0", "control characters are not allowed"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "an alias of itself": ("a: &a [*a]", "an alias of itself"),
    "a billion laughs": (LAUGHS, "more than 100000 values, aliases written out"),
    "deep": ("[" * 90_000, f"nested more than {DEEPEST} levels deep"),
    "deep blocks": ("\n".join(f"{' ' * i}a:" for i in range(2000)), f"nested more than {DEEPEST} levels deep"),
    "a number without end": (f"a: {'9' * 5000}", "cannot be read as YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    text, message = REFUSED[name]
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(InputError) as error:
        read_yaml(file)
    assert time.process_time() - start < 2
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value) and "\n" not in str(error.value)


def test_files_of_other_encodings(tmp_path):
    (tmp_path / "c.yaml").write_bytes("name: ü".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as YAML: 'utf-8' codec"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfname: a")  # Windows' byte order mark
    assert read_yaml(tmp_path / "c.yaml") == {"name": "a"}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: [*a, {z: 1}]}\n",
        "a: 1e-3\nb: .5\nc: linf:2/16\nd: 60_000\ne: 0x1F\nf: 0\ng: -0.5\nh: 'no'\ni: \"010\"\nj: '1:30'\n",
        "a: |\n  yes\nb: [true, null, ~]\n",
        "",
    ],
)
def test_what_is_read_as_by_pyyaml(text):
    assert load(text) == yaml.safe_load(text)


def test_what_is_written_is_read_again():
    values = {"08": ["yes", "010", "1:30", "2026-01-31", "ε", "", "null", "1e-3"], "b": {"off": 1.5, "c": [None, True]}}
    assert load(dump(values)) == values
