"""The command line: composes modules, data and callbacks, links them, and speaks clear errors. Holds no science."""

import errno
import inspect
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from typing_extensions import override

from grok_callbacks import Intervention, LearningCurves, Monitor, Onset, Schedule, WeightTrajectory, callbacks_of
from grok_callbacks.files import WriteError, replacing
from grok_lightning import report
from grok_lightning.checkpoints import (
    CHECKPOINTS,
    LAST,
    newest_checkpoint,
    step_of_checkpoint,
    usable_checkpoint,
    whole_checkpoints,
)
from grok_lightning.data import GrokData
from grok_lightning.errors import UserError, nearest, one_line
from grok_lightning.events import ContinuedEvents
from grok_lightning.figures.size_sweep import summary_sentence
from grok_lightning.memory import MemoryEstimate
from grok_lightning.modules import GrokModule
from grok_lightning.modules.module import TAKES_APART, takes_apart
from grok_lightning.population import check_consumed, members_table, stream
from grok_lightning.records import join_records, read_record
from grok_lightning.runs import (
    CONFIG,
    RECORD,
    WEIGHTS,
    LastCheckpoint,
    Recorder,
    Run,
    claim_directory,
    find_run,
    missing_parents,
    open_run,
    release_directory,
    run_of_checkpoint,
)
from grok_lightning.storage import AtomicCheckpointIO
from grok_lightning.strategies import PopulationStrategy, check_enough_members
from grok_lightning.sweeps import Margins
from grok_lightning.tasks import Task
from grok_lightning.terminal import StepBar, Summary
from grok_lightning.theory import command as theory

__all__ = ["GrokCLI", "main"]

PROGRAM = "python -m grok_lightning"
RUNS = "runs"
THEORY = "theory"
SUBCOMMANDS = ("fit", "validate", "test", "predict", "report", "theory")
DESCRIPTION = (
    "Study grokking. fit trains and leaves a run; report draws a run's figures and page again, or several runs beside "
    "each other; validate, test and predict look at a checkpoint; theory checks what the papers prove."
)
REPORT_USAGE = f"""usage: {PROGRAM} report [RUN ...]

Draw the figures and the page of a run again; of the newest run without RUN. Of several runs, draw them over one
another, on a page in a directory named compared, beside the experiment of the first.

RUN is the directory of a run, or one above it for the newest run in it."""
USERS = (ValueError, TypeError, RuntimeError, OSError, NotImplementedError, MisconfigurationException)
"""Errors that arguments cause; others, before training begins, are faults of a program and keep their traceback."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Numbers of the errors by which a system says that nothing can be written, whoever wants to."""

WHERE = " (JSONARGPARSE_DEBUG=true shows where)"

WORTH_THREADS = 15e6
"""Weights times rows of a step, over all members, from which more than one CPU thread is used by default."""


class Parser(LightningArgumentParser):
    """Says in one line what is wrong and what may have been meant, instead of pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise, for :func:`main` to print."""
        if _debugging():
            raise UserError(message) from ex
        raise UserError(one_line(message, _options(), _classes()))


class Unprofiled(PassThroughProfiler):
    """Profiles nothing, without a fresh context manager for each of the forty times a step that Lightning asks."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return a context that does nothing."""
        return self._nothing


class EndingLoop(_FitLoop):
    """Ends a resumed run of which the last step was saved, but not what comes after it."""

    # The loop is private, and the only place: nothing else is called when there is no step left to be taken.
    # tests/test_resume.py::test_a_run_that_was_killed_between_its_last_checkpoint_and_its_end_is_ended would notice.

    @property
    @override
    def skip(self) -> bool:
        """Whether to leave without a word to the callbacks."""
        trainer = self.trainer
        if not super().skip or trainer.limit_train_batches == 0:
            return super().skip
        # Beyond a limit there is nothing to end: the checkpoint is of a longer run than was asked for.
        return trainer.global_step != trainer.max_steps and trainer.current_epoch != trainer.max_epochs


class KeepConfig(SaveConfigCallback):
    """Writes the configuration into the run's directory once training begins: a failed start leaves none."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            # Fed back, it repeats the run; the checkpoint from which this one went on is not part of it.
            config = self.config.clone()
            config.ckpt_path = None
            text = self.parser.dump(config, skip_none=False)
            with replacing(Path(trainer.default_root_dir) / CONFIG) as fresh:
                fresh.write_text(text)


class GrokCLI(LightningCLI):
    """LightningCLI with a population, run directories, and what a grokking experiment wants by default."""

    run_directory: Path | None = None
    _claimed: Path | None = None
    _made: Sequence[Path] = ()
    _written_before: Mapping[str, int] = {}
    _events: AbstractSet[Path] = frozenset()

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--population",
            type=dict[str, list[int | float] | int | float] | list[dict[str, int | float]] | None,
            default=None,
            help="Members to train in lockstep: axes whose product is taken ({seed: [0, 1, 2]}), or a list of members.",
        )
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name of the run's directory below trainer.default_root_dir; by default that of the config file.",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads of torch; by default decided from the size of the work.",
        )
        parser.add_argument(
            "--margins",
            type=dict[str, float] | None,
            default=None,
            help="What a sweep over training-set sizes is judged by, written down before it is run: the fields of "
            "grok_lightning.sweeps.Margins ({width: 4, slope: 0.1}); kept in the record.",
        )
        for target in ("model", "data"):
            parser.link_arguments("population", f"{target}.init_args.members", compute_fn=_members)
        for name in ("n_inputs", "n_tokens", "n_outputs"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.set_defaults(
            {
                "trainer.default_root_dir": RUNS,
                "trainer.devices": 1,
                # The initial weights are measured anyway, in full.
                "trainer.num_sanity_val_steps": 0,
                # Nothing is logged by the training step; Lightning's 50 only leads to a warning for short epochs.
                "trainer.log_every_n_steps": 1,
            }
        )

    @override
    def _parse_ckpt_path(self) -> None:
        # The one private method of Lightning here: it puts the hyper-parameters of a checkpoint over what
        # was typed, silently. tests/test_cli.py::test_typed_arguments_win_over_the_checkpoint would notice.
        """Leave the configuration as it was typed."""

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        self._experiment = config.experiment or _experiment_of(config)
        root = Path(config.trainer.default_root_dir or RUNS)
        if config.get("ckpt_path"):
            config.ckpt_path = str(_checkpoint(config.ckpt_path, root / self._experiment))
            resumed = self._resumed_run()
            self._experiment = self._experiment if resumed is None else resumed.absolute().parent.name
        self._choose_accelerator(config.trainer)
        _check_strategy_name(config.trainer.strategy)
        if config.trainer.barebones:
            raise UserError("barebones: a run leaves a record; time Lightning itself from a script of your own")
        if config.threads is not None and config.threads < 1:
            raise UserError(f"threads: expected at least 1, got {config.threads}")

    @staticmethod
    def _choose_accelerator(trainer: Namespace) -> None:
        # MPS has no float64, in which losses and metrics are summed.
        if trainer.accelerator == "mps":
            raise UserError("accelerator: MPS has no float64; use cpu")
        if trainer.accelerator == "auto" and torch.backends.mps.is_available() and not torch.cuda.is_available():
            trainer.accelerator = "cpu"

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except BaseException as error:
            self._abandon_directory()
            if _debugging() or not (isinstance(error, USERS) or _is_wordless(error)):
                raise
            wordless = "a class that is named in the configuration failed without a word" + WHERE
            raise UserError(wordless if _is_wordless(error) else one_line(str(error), classes=_classes())) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert isinstance(self.model, GrokModule)
        config = self.config_init[self.subcommand].trainer
        callbacks = config["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        consumed = self.model.coordinates | self.datamodule.coordinates
        consumed = consumed.union(*(call.coordinates for call in callbacks if isinstance(call, Intervention)))
        check_consumed(self.model.members, consumed)
        threads = self.config[self.subcommand].threads
        torch.set_num_threads(threads or _threads(self.model, self.datamodule))
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            # Absolute: a checkpoint remembers where it was written, and a resumed run may be started from elsewhere.
            directory = self._run_directory(config).resolve()
            kwargs["default_root_dir"] = str(directory)
            if config["logger"] in (None, True):
                kwargs["logger"] = self._events_logger(directory)
            callbacks += self._default_callbacks(callbacks, config, directory)
        elif config["logger"] in (None, True):
            kwargs["logger"] = False
        if config["fast_dev_run"]:
            callbacks += _missing_monitors(callbacks)
        if config["enable_progress_bar"] is not False and not _has(callbacks, ProgressBar) and self.subcommand == "fit":
            callbacks.insert(0, StepBar())
        if config["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = False
        if config["profiler"] is None:
            kwargs["profiler"] = Unprofiled()
        plugins = config["plugins"] if isinstance(config["plugins"], list) else [config["plugins"]]
        in_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
        if in_slurm and not _has(plugins, ClusterEnvironment) and isinstance(config["strategy"], str):
            # Lightning would save, and put the job into the queue again, inside of a handler of a signal.
            kwargs["plugins"] = [*filter(None, plugins), SLURMEnvironment(auto_requeue=False)]
        kwargs["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, Trainer)
        if self._lacks_its_end():
            trainer.fit_loop.__class__ = EndingLoop
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO and not _has(plugins, TorchCheckpointIO):
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()  # in the place of Lightning's default
        if isinstance(trainer.strategy, PopulationStrategy):
            # Here, before there are any processes each of which would say it.
            check_enough_members(self.model.n_members_in_all, trainer.num_nodes * trainer.num_devices)
        if trainer.num_devices > 1:
            # Otherwise Lightning gives each of the processes as many threads as there are cores for it.
            if threads is None and not _started_by_others():
                torch.set_num_threads(max(1, torch.get_num_threads() // trainer.num_devices))
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        return trainer

    def _default_callbacks(self, chosen: Sequence[Callback], config: Namespace, directory: Path) -> list[Callback]:
        for callback in chosen:
            # Whatever the logger: where an opened run looks for them.
            if isinstance(callback, WeightTrajectory) and callback.directory is None:
                callback.directory = directory / WEIGHTS
        defaults = _missing_monitors(chosen)
        if config["enable_checkpointing"] is not False and not _has(chosen, LastCheckpoint):
            defaults.append(LastCheckpoint(directory))
        margins = self._margins()
        return [*defaults, Recorder(directory, self._experiment, margins), MemoryEstimate(), Summary()]

    def _lacks_its_end(self) -> bool:
        """Return whether a run may be without its end, or has it at this very step: where going on loses nothing."""
        resumed = self._resumed_run()
        if resumed is None:
            return False
        try:
            attributes = read_record(resumed / RECORD).attrs
        except OSError:
            return True
        step = step_of_checkpoint(Path(self.config[self.subcommand].ckpt_path))
        return bool(attributes.get("status") != "finished" or attributes.get("last_step", step) <= step)

    def _margins(self) -> Margins | None:
        given = self.config[self.subcommand].margins
        if given is None:
            return None
        known = [field.name for field in fields(Margins)]
        for name in given:
            if name not in known:
                raise UserError(f"margins: '{name}' is none of {', '.join(known)}{nearest(name, known)}")
        try:
            return Margins(**given)
        except ValueError as error:
            raise UserError(f"margins: {error}") from error

    def _run_directory(self, config: Namespace) -> Path:
        """Return the directory of the run that is continued, or a new one."""
        resumed = self._resumed_run()
        if resumed is not None:
            self.run_directory = resumed
            self._events = set(resumed.glob("events.out.tfevents.*"))
            return resumed
        experiment = Path(config["default_root_dir"] or RUNS) / self._experiment
        if getattr(rank_zero_only, "rank", 0) != 0:
            return experiment / "version_of_rank_zero"
        try:
            self._made = missing_parents(experiment)
            self.run_directory = self._claimed = claim_directory(experiment)
        except OSError as error:
            raise UserError(f"cannot write to {experiment}: {error.strerror or error}") from error
        return self.run_directory

    def _resumed_run(self) -> Path | None:
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        return run_of_checkpoint(Path(checkpoint)) if checkpoint else None

    def _events_logger(self, directory: Path) -> TensorBoardLogger:
        """Return what writes TensorBoard's events into the directory of a run, of a new or of a resumed one."""
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint is None or self._resumed_run() is None:
            return TensorBoardLogger(save_dir=directory, name="", version="", default_hp_metric=False)
        return ContinuedEvents(directory, step_of_checkpoint(Path(checkpoint)))

    def before_fit(self) -> None:
        """Say where the run lies, before anything can take time."""
        self._written_before = self._written()
        if self.run_directory is not None:
            rank_zero_info(
                f"{self.run_directory}: {self.model.n_members_in_all} members, {torch.get_num_threads()} threads"
            )

    def fit(self, **kwargs: Any) -> None:
        """Train; what stops it before its first step is told in a line and leaves no directory behind."""
        try:
            with warnings.catch_warnings(), _quiet_about_disks():
                if self._claimed is None:
                    # A resumed run goes on in its own directory, which is not empty.
                    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
                self._tell_in_a_line(self.trainer.fit, **kwargs)
            if self.run_directory is not None and not self._trained():
                reason = f"nothing to train: step {self.trainer.global_step} is already at the Trainer's limits"
                if self._claimed is not None:
                    raise UserError(reason)
                rank_zero_info(reason)  # a run that has finished may be gone on with by a script that does not know
        except BaseException as error:
            unwritten = _unwritten(error)
            if not self._trained():
                self._abandon_directory()
            elif unwritten is not None and self.run_directory is not None and not _debugging():
                raise UserError(_stopped_by(unwritten, self.run_directory)) from error
            else:
                self._say_how_to_resume()
            raise

    def validate(self, **kwargs: Any) -> None:
        """Measure a checkpoint on the rows trained on and on the held-out rows."""
        self._evaluate(self.trainer.validate, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Measure a checkpoint on the held-out rows."""
        self._evaluate(self.trainer.test, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Compute the logits of a checkpoint on the held-out rows."""
        self._evaluate(self.trainer.predict, **kwargs)

    def _evaluate(self, call: Callable[..., Any], **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # Nothing is lost by looking at a checkpoint without the callbacks that watched its training.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
            self._tell_in_a_line(call, **kwargs)

    def _tell_in_a_line(self, call: Callable[..., Any], **kwargs: Any) -> None:
        """Call; an error before training begins is the user's to mend, and no place for a traceback."""
        try:
            call(**kwargs)
        except Exception as error:
            if self._began() or not isinstance(error, USERS) or _debugging():
                raise
            reason = one_line(str(error) or type(error).__name__)
            if "loading state_dict" in reason:
                first, *others = reason.partition(": ")[2].split("; ")
                more = f" (and {len(others)} more)" if others else ""
                reason = f"ckpt_path: a checkpoint of another network: {first[:300]}{more}"
            elif not isinstance(error, ValueError):
                reason += WHERE
            raise UserError(reason) from error

    def _began(self) -> bool:
        """Return whether training began, or an earlier one was taken up."""
        return self._trained() or self.trainer.global_step > 0

    def _trained(self) -> bool:
        """Return whether training began: here, or in processes that Lightning forked, which leave files alone."""
        here = any(isinstance(callback, Recorder) and callback.started for callback in callbacks_of(self.trainer))
        return here or self._written() != self._written_before

    def _written(self) -> dict[str, int]:
        """Return when the files that a run writes once it has begun were written."""
        paths = [] if self.run_directory is None else [self.run_directory / name for name in (CONFIG, RECORD)]
        return {path.name: path.stat().st_mtime_ns for path in paths if path.is_file()}

    def _abandon_directory(self) -> None:
        """Remove what this run has made before it began: its directory, or a file of events in an older one."""
        if self._claimed is not None:
            release_directory(self._claimed, self._made)
            self._claimed = None
        elif self.run_directory is not None:
            for path in set(self.run_directory.glob("events.out.tfevents.*")) - self._events:
                path.unlink()

    def after_fit(self) -> None:
        """Draw the figures."""
        if self.run_directory is None or not self.trainer.is_global_zero:
            return
        try:
            record = open_run(self.run_directory).record
            page = report.write_report(record, self.run_directory)
        except KeyboardInterrupt:
            again = f"{PROGRAM} report {self.run_directory}"
            raise UserError(f"stopped while figures were drawn; the run is whole: {again}") from None
        if sentence := summary_sentence(record):
            rank_zero_info(sentence)
        rank_zero_info(f"figures and text: {page}\nagain, or of another run: {PROGRAM} report {self.run_directory}")

    def _say_how_to_resume(self) -> None:
        if self.run_directory is not None and (last := self.run_directory / CHECKPOINTS / LAST).is_file():
            print(f"to go on: {_go_on(last)}", file=sys.stderr)  # noqa: T201


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ``args`` in place of ``sys.argv[1:]``."""
    _quiet()
    # Before the first parallel operation, whose threads take it over. The gradients of a network that is sure of its
    # answers are full of numbers below 1e-38, with which a CPU computes several times slower.
    torch.set_flush_denormal(True)
    if _debugging():
        os.environ["JSONARGPARSE_DEBUG"] = "true"  # the one spelling that jsonargparse takes
    argv = list(sys.argv[1:] if args is None else args)
    try:
        if argv[:1] == ["report"]:
            _report(argv[1:])
            return
        if argv[:1] == [THEORY]:
            if not theory.run(argv[1:], f"{PROGRAM} {THEORY}", Path(RUNS) / THEORY):
                raise SystemExit(1)
            return
        _check_words(argv)
        argv = _with_shipped_configs(_with_config_of_run(argv))
        if args is None:
            # Processes that Lightning starts for further devices are given the same words.
            sys.argv[1:] = argv
        GrokCLI(
            args=None if args is None else argv,
            model_class=GrokModule,
            datamodule_class=GrokData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=Parser,
            save_config_callback=KeepConfig,
            parser_kwargs={"prog": PROGRAM, "allow_abbrev": False, "description": DESCRIPTION},
        )
    except (UserError, UnicodeDecodeError) as error:
        if _debugging():
            raise
        reason = error if isinstance(error, UserError) else f"config: not a text file: {error}"
        print(f"error: {reason}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _go_on(checkpoint: Path) -> str:
    return f"{PROGRAM} fit --ckpt_path {checkpoint}"


def _unwritten(error: BaseException | None) -> OSError | None:
    """Return the refusal to write a file that is, or is behind, an error; ``None`` if there is none."""
    found = None
    while error is not None and not isinstance(found, WriteError):
        if isinstance(error, WriteError) or (isinstance(error, OSError) and error.errno in REFUSALS):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _stopped_by(error: OSError, run: Path) -> str:
    """Say what could not be written and why, what there is to go on from, and how."""
    whole = next(whole_checkpoints(run / CHECKPOINTS), None)
    rest = "there is no checkpoint yet"
    if whole is not None:
        rest = f"the last good checkpoint is of step {step_of_checkpoint(whole)}; mend that, then: {_go_on(whole)}"
    return f"cannot write {error.filename or f'into {run}'}: {error.strerror or error}; {rest}"


@contextmanager
def _quiet_about_disks() -> Iterator[None]:
    """Print no traceback of TensorBoard's thread where it could not write: the thread that trains is told of it."""
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if _unwritten(args.exc_value) is None:
            before(args)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def _check_words(argv: Sequence[str]) -> None:
    """Refuse a misspelt subcommand, and arguments that something else sets."""
    if not argv or (argv[0] not in SUBCOMMANDS and not argv[0].startswith("-")):
        given = f", got '{argv[0]}'{nearest(argv[0], SUBCOMMANDS)}" if argv else ""
        raise UserError(f"expected one of {', '.join(SUBCOMMANDS)}{given}")
    for argument in argv:
        if match := re.match(r"--(model|data)\.(?:init_args\.)?(members|n_inputs|n_tokens|n_outputs)\b", argument):
            source = "population" if match[2] == "members" else "the data"
            raise UserError(f"{match[1]}.{match[2]} is set by {source}")


def _report(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print(REPORT_USAGE)  # noqa: T201
        return
    try:
        runs = [open_run(find_run(Path(argument))) for argument in argv or [RUNS]]
        for run, other in combinations(runs, 2):
            if run.directory.samefile(other.directory):
                raise UserError(f"report: {other.directory} is given twice")
        page = report.write_report(runs[0].record, runs[0].directory) if len(runs) == 1 else _compare(runs)
    except OSError as error:
        raise UserError(f"report: {error}") from error
    print(page)  # noqa: T201


def _compare(runs: Sequence[Run]) -> Path:
    """Write the page of several runs into ``compared/``, beside the experiment of the first, or beside its run."""
    directories = [Path(os.path.abspath(run.directory)) for run in runs]
    labels = _run_labels(directories)
    records = {label: run.record for label, run in zip(labels, runs, strict=True)}
    name = "+".join(label.replace("/", "-") for label in labels)
    first = directories[0]
    beside = first.parent if re.fullmatch(r"version_\d+", first.name) else first
    return report.write_comparison(records, join_records(records), beside.parent / "compared" / name)


def _run_labels(directories: Sequence[Path]) -> list[str]:
    """Return the shortest of a run's experiment, experiment and version, and path, that no other run has."""
    names = [(path.parent.name, f"{path.parent.name}/{path.name}", str(path)) for path in directories]
    return [next(name for i, name in enumerate(own) if [other[i] for other in names].count(name) == 1) for own in names]


def _started_by_others() -> bool:
    """Return whether each process was started, and given its share of the cores, by torchrun or by SLURM."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def _check_strategy_name(strategy: object) -> None:
    """Refuse misspelt strategies, and by name those that :class:`GrokModule` refuses, which may not even be installed.

    Raises:
        UserError: In one line.

    """
    known = ["auto", *StrategyRegistry.available_strategies()]
    if not isinstance(strategy, str):
        return
    if strategy not in known:
        raise UserError(f"trainer.strategy: there is no '{strategy}'{nearest(strategy, known)}")
    if strategy != "auto" and takes_apart(StrategyRegistry[strategy]["strategy"]):
        raise UserError(f"trainer.strategy: {strategy} {TAKES_APART}")


def _members(population: Any) -> dict[str, list[int | float]]:
    plain = population.as_dict() if isinstance(population, Namespace) else population
    return members_table(plain)


def _threads(module: GrokModule, data: GrokData) -> int:
    """Return how many CPU threads a step of this size is worth.

    Threads meet after every small product. On an idle machine a second one gains little for five parity networks; on a
    busy one the waiting has made the same step forty times slower.
    """
    # Of one member: each of several processes is to make no more than its own.
    with torch.random.fork_rng(devices=[]):
        one = module.build_network([stream(0, "initial weights")])
    weights = module.n_members_in_all * sum(parameter.numel() for parameter in one.parameters())
    return torch.get_num_threads() if weights * data.rows_per_step >= WORTH_THREADS else 1


def _experiment_of(config: Namespace) -> str:
    files = config.get("config") or []
    if files:
        file = Path(str(files[-1]))
        if file.name == CONFIG and re.fullmatch(r"version_\d+", file.absolute().parent.name):
            return file.absolute().parent.parent.name  # a run's own configuration repeats it in its experiment
        return file.stem
    return str(config.model.class_path).rpartition(".")[2].lower()


def _checkpoint(path: str, experiment: Path) -> Path:
    """Return the checkpoint file that ``--ckpt_path`` means: a file, ``last``, or the newest one of a run.

    A ``last.ckpt`` that is damaged means the newest whole one beside it.
    """
    try:
        if path == "last":
            return newest_checkpoint(experiment)
        if Path(path).is_dir():
            return newest_checkpoint(Path(path))
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    try:
        return usable_checkpoint(Path(path))
    except ValueError as error:
        raise UserError(f"ckpt_path: {error}") from error


def _with_config_of_run(argv: list[str]) -> list[str]:
    """Resume with the configuration of the run that a checkpoint lies in, unless another one is named."""
    if any(argument.split("=")[0] in ("--config", "-c") for argument in argv) or len(argv) < 2:
        return argv
    paths = [b for a, b in pairwise(argv) if a == "--ckpt_path"]
    paths += [argument.partition("=")[2] for argument in argv if argument.startswith("--ckpt_path=")]
    if not paths or paths[-1] == "last":
        return argv
    path = Path(paths[-1])
    if not path.exists() and run_of_checkpoint(path) is None:
        raise UserError(f"ckpt_path: {path}: there is no such file")
    try:
        run = run_of_checkpoint(newest_checkpoint(path) if path.is_dir() else path)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    if run is None or not (run / CONFIG).is_file():
        return argv
    return [argv[0], "--config", str(run / CONFIG), *argv[1:]]


def _with_shipped_configs(argv: list[str]) -> list[str]:
    """Put the config that is shipped with the package in the place of one that does not exist here."""
    result = list(argv)
    for i, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        path = Path(value if equals else (argv[i + 1] if i + 1 < len(argv) else ""))
        if path.exists() or path.suffix not in (".yaml", ".yml"):
            continue
        shipped = next((folder / path.name for folder in _config_folders() if (folder / path.name).is_file()), None)
        if shipped is None:
            known = sorted({p.name for folder in _config_folders() for p in folder.glob("*.yaml")})
            hint = nearest(path.name, known) or f"; shipped are {', '.join(known)}"
            raise UserError(f"config: there is no file {path}{hint}")
        print(f"{path} is not here: using the one shipped with grok_lightning", file=sys.stderr)  # noqa: T201
        result[i + (0 if equals else 1)] = f"{option}={shipped}" if equals else str(shipped)
    return result


def _config_folders() -> list[Path]:
    """Return where configs are shipped: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    return [package / "configs", package.parent / "configs"]


def _missing_monitors(chosen: Sequence[Callback]) -> list[Callback]:
    """Return the monitors that every run has, as far as they are not chosen."""
    return [monitor for monitor in (LearningCurves(), Onset()) if not _has(chosen, type(monitor))]


def _has(objects: Sequence[object], kind: type) -> bool:
    return any(isinstance(entry, kind) for entry in objects)


def _options() -> list[str]:
    """Return the names of options and of the arguments of our classes, for telling what may have been meant."""
    options = [
        "population",
        "experiment",
        "threads",
        "margins",
        "seed_everything",
        "config",
        "ckpt_path",
        "model",
        "data",
        "trainer",
    ]
    options += [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]
    kinds = _subclasses(GrokModule, GrokData, Task, Monitor, Intervention, torch.optim.Optimizer)
    return options + [name for kind in kinds for name in inspect.signature(kind).parameters]


def _classes() -> list[str]:
    """Return the names of the classes that can be named without their module."""
    return [kind.__name__ for kind in _subclasses(GrokModule, GrokData, Task, Callback, Schedule)]


def _subclasses(*kinds: type) -> list[type]:
    """Return all classes derived from these."""
    found: list[type] = []
    for kind in kinds:
        derived: list[type] = kind.__subclasses__()
        found += [*derived, *_subclasses(*derived)]
    return found


def _is_wordless(error: BaseException) -> bool:
    """Return whether a class of an argument raised an error without a message, over which jsonargparse itself falls."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, IndexError) and bool(frames) and "jsonargparse" in frames[-1].filename


def _debugging() -> bool:
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() in ("1", "true", "yes")


def _quiet() -> None:
    """Drop warnings of libraries about one another, which a user can do nothing about."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    # Advertisements, of which Lightning has no switch.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)


def _is_no_advertisement(entry: logging.LogRecord) -> bool:
    return "Tip:" not in entry.getMessage()
