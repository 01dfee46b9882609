"""The arrows between packages, all one way; see the rules below.

Imports are read from the source, wherever they stand in a file. The reader and the rules are tested with violations.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"grok_lightning": ROOT / "grok_lightning", "grok_callbacks": ROOT / "callbacks" / "grok_callbacks"}


def within(name, prefixes):
    """Whether a dotted name is one of these, or lies in one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imports_of(source, module, is_package):
    """Every dotted name that a file imports, absolute. ``from a import b`` counts as ``a.b``, be b a module or not."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return found


def read_imports():
    """``{module: what it imports}`` of all files of ours."""
    graph = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            graph[module] = imports_of(file.read_text(), module, is_package)
    return graph


def everything_behind(module, graph):
    """What a module imports, and what those of our modules import, and so on.

    The outermost ``__init__`` of a package, which offers everything, is not followed.
    """
    found, todo = set(), [module]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        for name in new:
            inner = name if name in graph else name.rpartition(".")[0]
            todo += [part for part in prefixes_of(inner) if part in graph and part != module]
    return found


def prefixes_of(name):
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(1, len(parts))]


@dataclass(frozen=True)
class Only:
    """Modules that import these, each other and the standard library, and nothing else."""

    modules: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()

    def violations(self, module, graph):
        allowed = (*self.allowed, *self.modules, *sys.stdlib_module_names)
        return sorted(name for name in graph[module] if not within(name, allowed))


@dataclass(frozen=True)
class Never:
    """Modules that import none of these, nor anything of ours that does."""

    modules: tuple[str, ...]
    forbidden: tuple[str, ...] = field(default=())
    exempt: tuple[str, ...] = ()

    def violations(self, module, graph):
        return sorted(name for name in everything_behind(module, graph) if within(name, self.forbidden))


SCIENCE = tuple(f"grok_lightning.{name}" for name in ("tasks", "networks", "population", "losses", "batch", "optim"))
PAGES = ("grok_lightning.figures", "grok_lightning.report")
THEORY = (
    "grok_lightning.theory",
    *(f"grok_lightning.theory.{file.stem}" for file in sorted((ROOT / "grok_lightning" / "theory").glob("[a-z]*.py"))),
)

RULES = {
    "callbacks need torch and lightning": Only(("grok_callbacks",), ("torch", "lightning", "typing_extensions")),
    "functional is torch": Only(("grok_callbacks.functional",), ("torch",)),
    "a schedule is plain Python": Only(("grok_callbacks.schedule",)),
    "population is torch": Only(("grok_lightning.population",), ("torch",)),
    "batch is torch": Only(("grok_lightning.batch",), ("torch",)),
    "tasks are torch": Only(
        ("grok_lightning.tasks",), ("torch", "grok_lightning.population", "grok_lightning.imports")
    ),
    "networks are torch": Only(("grok_lightning.networks",), ("torch",)),
    "losses are torch": Only(("grok_lightning.losses",), ("torch", "grok_lightning.imports")),
    "optim is torch": Only(("grok_lightning.optim",), ("torch",)),
    "sweeps are arrays": Only(("grok_lightning.sweeps",), ("numpy", "scipy", "xarray")),
    "science knows no Lightning": Never(SCIENCE, ("lightning", "lightning_fabric", "pytorch_lightning")),
    "modules know no data": Never(("grok_lightning.modules",), ("grok_lightning.data",)),
    "data know no modules": Never(("grok_lightning.data",), ("grok_lightning.modules",)),
    "pages read records": Never(
        PAGES, ("torch", "lightning", "grok_callbacks", "grok_lightning.modules", "grok_lightning.data")
    ),
    "records know no modules and no data": Never(
        ("grok_lightning.records",), ("grok_lightning.modules", "grok_lightning.data")
    ),
    "what trains and records knows no sweeps": Never(
        (
            *SCIENCE,
            "grok_callbacks",
            "grok_lightning.modules",
            "grok_lightning.data",
            "grok_lightning.records",
        ),
        ("grok_lightning.sweeps",),
    ),
    "theory is tables, networks and figures": Only(
        ("grok_lightning.theory",),
        (
            "numpy",
            "scipy",
            "torch",
            "matplotlib",
            "rich",
            "grok_callbacks.files",
            "grok_callbacks.functional",
            "grok_lightning.errors",
            "grok_lightning.figures",
            "grok_lightning.networks",
        ),
    ),
    "nothing needs the theory": Never(
        ("grok_lightning", "grok_callbacks"),
        ("grok_lightning.theory",),
        exempt=("grok_lightning", "grok_lightning.__main__", "grok_lightning.cli", *THEORY),
    ),
    "strategies know members and modules": Only(
        ("grok_lightning.strategies",),
        ("torch", "lightning", "typing_extensions", "grok_lightning.modules", "grok_callbacks.members"),
    ),
    "strategies are a matter of the Trainer": Never(
        ("grok_lightning", "grok_callbacks"),
        ("grok_lightning.strategies",),
        exempt=("grok_lightning", "grok_lightning.__main__", "grok_lightning.cli", "grok_lightning.strategies"),
    ),
    "nothing needs the command line": Never(
        ("grok_lightning", "grok_callbacks"),
        ("grok_lightning.cli",),
        exempt=("grok_lightning.__main__", "grok_lightning.cli"),
    ),
}


def broken(graph):
    """``{rule: {module: what it should not import}}``, for rules that are broken."""
    found = {}
    for name, rule in RULES.items():
        modules = [module for module in graph if within(module, rule.modules) and module not in rule.exempt]
        wrong = {module: names for module in modules if (names := rule.violations(module, graph))}
        if wrong:
            found[name] = wrong
    return found


GRAPH = read_imports()


def test_the_arrows_hold():
    assert broken(GRAPH) == {}


def test_every_rule_is_about_modules_that_exist():
    for name, rule in RULES.items():
        for modules in (rule.modules, rule.exempt):
            for module in modules:
                assert module in GRAPH, f"{name}: {module}"


PLANTED = [
    ("callbacks need torch and lightning", "grok_callbacks.curves", "import numpy as np"),
    ("callbacks need torch and lightning", "grok_callbacks.monitor", "from grok_lightning.population import seeds"),
    ("callbacks need torch and lightning", "grok_callbacks.rows", "def f():\n    import xarray"),
    ("callbacks need torch and lightning", "grok_callbacks", "import matplotlib.pyplot"),
    ("functional is torch", "grok_callbacks.functional.onset", "from lightning.pytorch import Trainer"),
    ("functional is torch", "grok_callbacks.functional.onset", "from ..monitor import Monitor"),
    ("functional is torch", "grok_callbacks.functional", "from .. import schedule"),
    ("a schedule is plain Python", "grok_callbacks.schedule", "import torch"),
    ("a schedule is plain Python", "grok_callbacks.schedule", "from .protocols import HasMembers"),
    ("population is torch", "grok_lightning.population", "import numpy"),
    ("batch is torch", "grok_lightning.batch", "from lightning.pytorch import LightningModule"),
    ("tasks are torch", "grok_lightning.tasks.parity", "from grok_lightning.networks import Network"),
    ("tasks are torch", "grok_lightning.tasks", "if True:\n    import scipy.special"),
    ("networks are torch", "grok_lightning.networks.mlp", "from grok_lightning.population import seeds"),
    ("losses are torch", "grok_lightning.losses", "from torchmetrics import Metric"),
    ("optim is torch", "grok_lightning.optim.member_decay", "from typing_extensions import override"),
    ("sweeps are arrays", "grok_lightning.sweeps.critical_size", "import torch"),
    ("sweeps are arrays", "grok_lightning.sweeps.reading", "from grok_lightning.figures.reading import curve_of"),
    ("sweeps are arrays", "grok_lightning.sweeps", "import matplotlib"),
    ("sweeps are arrays", "grok_lightning.sweeps.survival", "from ..records import join_records"),
    ("science knows no Lightning", "grok_lightning.networks.layers", "import lightning"),
    ("science knows no Lightning", "grok_lightning.population", "import pytorch_lightning as pl"),
    ("modules know no data", "grok_lightning.modules.mlp", "from grok_lightning.data import TableData"),
    ("modules know no data", "grok_lightning.modules", "from ..data.table import TableData"),
    ("modules know no data", "grok_lightning.modules.mlp", "from grok_lightning import data"),
    ("data know no modules", "grok_lightning.data.table", "import grok_lightning.modules.mlp"),
    ("pages read records", "grok_lightning.figures.curves", "from torch import Tensor"),
    ("pages read records", "grok_lightning.report", "from lightning.pytorch import Trainer"),
    ("pages read records", "grok_lightning.report", "from grok_lightning.runs import open_run"),
    ("pages read records", "grok_lightning.figures", "from grok_lightning.population import Members"),
    ("records know no modules and no data", "grok_lightning.records", "from grok_lightning.modules import MLP"),
    ("what trains and records knows no sweeps", "grok_lightning.records", "from grok_lightning.sweeps import Sweep"),
    ("what trains and records knows no sweeps", "grok_callbacks.curves", "import grok_lightning.sweeps.reading"),
    ("what trains and records knows no sweeps", "grok_lightning.data.table", "from ..sweeps import read_sweep"),
    ("callbacks need torch and lightning", "grok_callbacks.members", "from grok_lightning.modules import GrokModule"),
    ("theory is tables, networks and figures", "grok_lightning.theory.claims", "from lightning.pytorch import Trainer"),
    ("theory is tables, networks and figures", "grok_lightning.theory", "from grok_lightning.modules import MLP"),
    ("nothing needs the theory", "grok_lightning.report", "from grok_lightning.theory import CLAIMS"),
    ("nothing needs the theory", "grok_callbacks.neurons", "import grok_lightning.theory.claims"),
    ("strategies know members and modules", "grok_lightning.strategies", "from grok_lightning.data import TableData"),
    ("strategies know members and modules", "grok_lightning.strategies", "from grok_callbacks import Monitor"),
    ("strategies know members and modules", "grok_lightning.strategies", "from .runs import open_run"),
    ("strategies are a matter of the Trainer", "grok_lightning.modules.module", "from ..strategies import own_members"),
    ("strategies are a matter of the Trainer", "grok_lightning.runs", "from grok_lightning import strategies"),
    ("strategies are a matter of the Trainer", "grok_callbacks.monitor", "import grok_lightning.strategies"),
    ("nothing needs the command line", "grok_lightning.runs", "from grok_lightning.cli import main"),
    ("nothing needs the command line", "grok_lightning", "from . import cli"),
    ("nothing needs the command line", "grok_callbacks.rows", "import grok_lightning.cli"),
]


@pytest.mark.parametrize(("rule", "module", "source"), PLANTED)
def test_a_planted_violation_is_caught(rule, module, source):
    is_package = any(other.startswith(f"{module}.") for other in GRAPH)
    planted = GRAPH | {module: imports_of(source, module, is_package)}
    assert module in broken(planted)[rule]


def test_every_rule_has_a_planted_violation():
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_a_violation_behind_another_module_is_caught():
    planted = GRAPH | {"grok_lightning.figures.style": {"grok_lightning.population.Members"}}
    assert "torch" in {name.split(".")[0] for name in broken(planted)["pages read records"]["grok_lightning.report"]}


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import a", "p.m", False, {"a"}),
        ("import a.b as c, d", "p.m", False, {"a.b", "d"}),
        ("from a.b import c, d as e", "p.m", False, {"a.b.c", "a.b.d"}),
        ("from . import c", "p.m", False, {"p.c"}),
        ("from . import c", "p.m", True, {"p.m.c"}),
        ("from .c import d", "p.q.m", False, {"p.q.c.d"}),
        ("from ..c import d", "p.q.m", False, {"p.c.d"}),
        ("from ..c import d", "p.q", True, {"p.c.d"}),
        ("from .. import d", "p.q.m", False, {"p.d"}),
        (
            "if TYPE_CHECKING:\n    import a\nclass C:\n    def f(self):\n        from b import c",
            "m",
            False,
            {"a", "b.c"},
        ),
        ("'import a'  # import b", "m", False, set()),
    ],
)
def test_imports_are_read_in_every_form(source, module, is_package, expected):
    assert imports_of(source, module, is_package) == expected


def test_names_are_compared_part_by_part():
    assert within("torch.nn", ["torch"])
    assert within("torch", ["torch"])
    assert not within("torchmetrics", ["torch"])
    assert not within("torch", ["torch.nn"])


def test_all_files_of_both_packages_are_read():
    assert {"grok_lightning", "grok_lightning.cli", "grok_lightning.figures.style"} <= set(GRAPH)
    assert {"grok_callbacks", "grok_callbacks.monitor", "grok_callbacks.functional.onset"} <= set(GRAPH)
    assert "torch.Tensor" in GRAPH["grok_callbacks.monitor"]
    assert "grok_callbacks.schedule.Schedule" in GRAPH["grok_callbacks.monitor"]


def test_no_file_is_named_for_being_useful():
    files = [
        file
        for folder in ("grok_lightning", "callbacks", "tests", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 40
    assert [file for file in files if file.stem in ("utils", "util", "helpers", "helper", "misc", "common")] == []


def test_the_folder_of_the_callbacks_is_no_package():
    # It would give every class in it a second identity.
    assert (ROOT / "callbacks").is_dir()
    assert not (ROOT / "callbacks" / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_both_packages_are_typed(package):
    assert (PACKAGES[package] / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_code_is_a_package(package):
    folders = {file.parent for file in PACKAGES[package].rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_importing_the_callbacks_loads_nothing_beyond_lightning():
    # Lightning's own imports include some that are not ours to use, such as matplotlib by way of its metrics.
    code = (
        "import sys, lightning.pytorch\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import grok_callbacks\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} - before))\n"
        "print([name for name in ('grok_lightning', 'xarray', 'h5netcdf', 'h5py', 'pandas') if name in sys.modules])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['grok_callbacks']", "[]"]
