"""The notebooks are whole: executed, quiet, of no machine in particular. ``.ci/run`` executes them."""

import ast
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
ELSEWHERE = re.compile(r"(?<![\w./~])/(?:home|root|tmp|work|usr|opt|var|private|Users|content)/|[A-Z]:\\\\Users")

pytestmark = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(path: Path) -> Iterator[dict]:
    for cell in code_cells(path):
        yield from cell["outputs"]


def written(output: dict) -> str:
    """Return all text of an output."""
    parts = output["text"] if output["output_type"] == "stream" else []
    for kind, data in output.get("data", {}).items():
        parts = [*parts, *(data if kind.startswith("text/") else [])]
    return "".join(parts)


def test_there_is_something_to_read_between_the_cells(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_its_code_parses(path: Path) -> None:
    for cell in code_cells(path):
        lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith(("!", "%"))]
        ast.parse("\n".join(lines))


def test_it_was_executed_from_the_first_cell_to_the_last(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)


def test_nothing_failed_and_nothing_was_complained_of(path: Path) -> None:
    for output in outputs(path):
        assert output["output_type"] in ("stream", "display_data", "execute_result")
        assert output.get("name") != "stderr", written(output)
        assert not re.search(r"warning|deprecat|traceback|\berror\b|\x1b", written(output), re.IGNORECASE)


def test_it_tells_of_no_machine(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert not ELSEWHERE.search("".join(cell["source"]))
        assert set(cell["metadata"]) <= {"tags"}, "times of execution"
    for output in outputs(path):
        assert not ELSEWHERE.search(written(output)), written(output)


def test_its_pictures_are_small(path: Path) -> None:
    pictures = ["".join(output.get("data", {}).get("image/png", "")) for output in outputs(path)]
    sizes = [len(base64.b64decode(picture)) for picture in pictures if picture]
    assert sizes, "no picture"
    assert sum(sizes) < 150_000
    assert path.stat().st_size < 300_000


def test_it_leaves_nothing_behind(path: Path) -> None:
    """It works in a folder of its own, which goes away with the kernel."""
    source = "".join("".join(cell["source"]) for cell in code_cells(path))
    assert "TemporaryDirectory()" in source
    assert "os.chdir(folder.name)" in source
