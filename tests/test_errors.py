"""From real messages of libraries to one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from grok_callbacks import Schedule
from grok_lightning.data import GrokData
from grok_lightning.errors import nearest, one_line
from grok_lightning.modules import GrokModule
from grok_lightning.population import members_table


class Said(Exception):
    """What a parser wanted to print."""


class Parser(LightningArgumentParser):
    """Keeps the message of the library as it is."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise Said(message)


def parser() -> Parser:
    """Return a parser of every kind of argument that the command line has."""
    parser = Parser(prog="prog")
    parser.add_argument("--config", action="config")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--share", type=float | None, default=None)
    parser.add_argument("--mode", type=str, choices=["min", "max"])
    parser.add_argument("--population", type=dict[str, list[int | float] | int] | list[dict[str, int]] | None)
    parser.add_argument("--callbacks", type=list[Callback] | Callback | None)
    parser.add_argument("--schedule", type=Schedule)
    parser.add_subclass_arguments(GrokModule, "model", required=False)
    parser.add_subclass_arguments(GrokData, "data", required=False)
    parser.link_arguments("population", "data.init_args.members", compute_fn=members_table)
    return parser


def message(arguments: list[str]) -> str:
    """Return the message with which the library refuses these arguments."""
    with pytest.raises(Said) as said:
        parser().parse_args(arguments)
    return str(said.value)


OPTIONS = ["steps", "share", "population", "trainer.max_epochs", "hidden", "train_size", "dwell", "task"]
CLASSES = ["MLP", "TableData", "SparseParity", "Onset", "NeuronNormTracker"]

REFUSED: list[Any] = [
    pytest.param(["--steps=many"], ["steps", "int", "many"], id="a word for a number"),
    pytest.param(["--steps=1.5"], ["steps", "int", "1.5"], id="a fraction for a whole number"),
    pytest.param(["--share=half"], ["share", "float", "half"], id="a word for an optional number"),
    pytest.param(["--mode=mean"], ["mode", "mean", "min", "max"], id="no choice"),
    pytest.param(["--steps"], ["steps", "expected one argument"], id="no value"),
    pytest.param(["--stepz=3"], ["stepz", "did you mean steps?"], id="an unknown option"),
    pytest.param(["stray"], ["stray"], id="a stray word"),
    pytest.param(["--population={seed: [a]}"], ["population", "a"], id="a word in nested unions"),
    pytest.param(["--population=[{seed: 0}, 3]"], ["population", "3"], id="a number among members"),
    pytest.param(["--model=MPL"], ["model", "'MPL'", "did you mean MLP?"], id="an unknown class"),
    pytest.param(["--model=nowhere.MLP"], ["nowhere"], id="an unknown module"),
    pytest.param(["--model=torch.nn.Linear"], ["model", "torch.nn.Linear", "GrokModule"], id="another kind of class"),
    pytest.param(["--model=MLP", "--model.hiden=[3]"], ["model", "hiden", "did you mean hidden?"], id="argument"),
    pytest.param(["--model=MLP", "--model.bias=perhaps"], ["bias", "perhaps"], id="an argument of another type"),
    pytest.param(
        ["--data=TableData", "--data.task=SparsParity"],
        ["task", "'SparsParity'", "did you mean SparseParity?"],
        id="a nested unknown class",
    ),
    pytest.param(
        ["--data=TableData", "--data.task=SparseParity", "--data.task.kk=3"], ["kk"], id="a nested unknown argument"
    ),
    pytest.param(["--callbacks=Onst"], ["callbacks", "'Onst'", "did you mean Onset?"], id="class in a union"),
    pytest.param(
        ["--callbacks=[{class_path: Onset, init_args: {dwel: 3}}]"],
        ["callbacks", "dwel", "did you mean dwell?"],
        id="argument in a list in a union",
    ),
    pytest.param(["--config=nowhere.yaml"], ["config", "nowhere.yaml"], id="no such file"),
    pytest.param(["--config={steps: [}"], ["config"], id="no YAML"),
    pytest.param(["--config={stepz: 3}"], ["stepz"], id="an unknown key of a config"),
    pytest.param(
        ["--data=TableData", "--population=[{seed: 0}, {seed: 0}]"],
        ["{'seed': 0} is listed more than once"],
        id="a function of a link",
    ),
]


@pytest.mark.parametrize(("arguments", "parts"), REFUSED)
def test_a_message_of_the_parser_becomes_one_line_with_what_matters(arguments: list[str], parts: list[str]) -> None:
    line = one_line(message(arguments), OPTIONS, CLASSES)
    assert len(line.splitlines()) == 1
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("arguments", "parts"), REFUSED)
def test_the_inner_words_of_the_parser_are_left_out(arguments: list[str], parts: list[str]) -> None:
    del parts
    line = one_line(message(arguments), OPTIONS, CLASSES)
    for noise in ("Union subtypes", "NoneType", "NestedArg", "Problem with given class_path", "compute_fn", "Errors:"):
        assert noise not in line
    assert len(line) < 300, line


def test_the_messages_of_the_parser_are_many_lines_and_noisy() -> None:
    """The tests above can fail."""
    messages = [message(case.values[0]) for case in REFUSED]
    assert sum(len(text.splitlines()) > 1 for text in messages) > len(messages) / 2
    assert any("Union subtypes" in text for text in messages)
    assert any("NoneType" in text for text in messages)


def test_a_reason_is_given_once() -> None:
    line = one_line(message(["--population={seed: [a]}"]))
    assert line.count("Expected a <class 'int'>") <= 1


def test_weights_of_another_network_become_one_line() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.nn.Linear(3, 2).load_state_dict(torch.nn.Linear(4, 2).state_dict())
    assert len(str(error.value).splitlines()) > 1
    line = one_line(str(error.value))
    assert len(line.splitlines()) == 1
    assert "size mismatch for weight" in line
    assert "[2, 4]" in line
    assert "[2, 3]" in line


def test_what_is_no_yaml_becomes_one_line() -> None:
    with pytest.raises(yaml.YAMLError) as error:
        yaml.safe_load("a: [b\nc: {")
    line = one_line(str(error.value))
    assert len(line.splitlines()) == 1
    assert "line 1" in line


def test_a_checkpoint_that_torch_does_not_trust_becomes_one_line(tmp_path: Path) -> None:
    torch.save({"path": tmp_path}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="Weights only") as error:
        torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert len(one_line(str(error.value)).splitlines()) == 1


def test_a_line_that_is_one_already_stays_as_it_is() -> None:
    text = "train_size: expected at most the 64 rows that there are, got 65"
    assert one_line(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t\n",
        "Errors:\n",
        "Does not validate against any of the Union subtypes\nErrors:\n  - Expected a <class 'NoneType'>",
        'Parser key "a":\n',
        "one\rtwo\x0bthree\u2028four",
    ],
    ids=repr,
)
def test_whatever_comes_one_line_goes_out(text: str) -> None:
    line = one_line(text)
    assert line.strip()
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("hiden", "hidden"),
        ("max_epoch", "trainer.max_epochs"),
        ("trainr.max_epochs", "trainer.max_epochs"),
        ("model.max_epochs", "trainer.max_epochs"),
        ("Hidden", "hidden"),
    ],
)
def test_the_nearest_word_is_asked_for(word: str, meant: str) -> None:
    assert nearest(word, ["steps", "hidden", "trainer.max_epochs"]) == f"; did you mean {meant}?"


@pytest.mark.parametrize(
    ("word", "known"),
    [("banana", ["steps", "hidden"]), ("banana", []), ("zzz.yaml", ["parity.yaml"]), ("", ["steps"])],
)
def test_a_word_like_no_other_asks_for_nothing(word: str, known: list[str]) -> None:
    assert nearest(word, known) == ""


def test_known_words_may_come_from_a_generator_and_twice() -> None:
    assert nearest("hiden", (word for word in ["hidden", "hidden"])) == "; did you mean hidden?"
