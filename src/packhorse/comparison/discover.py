"""Which contenders there are: the files of the folder `contenders`, read each time; nothing registers itself."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from packhorse.comparison.contract import ATTENTIONS, BACKENDS, PRECISIONS, Attention, Backend, Options, Precision, Task
from packhorse.errors import UsageError, did_you_mean

FOLDER = Path(__file__).parent / "contenders"
DEFAULT_PRECISION: Precision = "fp32"


@dataclass(frozen=True)
class Contender:
    """A file of `contenders` at one precision; at one backend, attention, batch size where it has a choice."""

    name: str
    module: ModuleType
    precision: Precision = DEFAULT_PRECISION
    backend: Backend = "auto"
    attention: Attention = "auto"
    batch_size: int | None = None

    @property
    def variant(self) -> str:
        """What its line in the table is called: `packhorse:onnx`. The precision has a column of its own."""
        size = () if self.batch_size is None else (str(self.batch_size),)
        return ":".join([self.name, *(word for word in (self.backend, self.attention) if word != "auto"), *size])

    @property
    def label(self) -> str:
        """As on the command line: `sorted_torch:bf16`, `packhorse:torch:packed:int8`; fp32 goes without saying."""
        return self.variant if self.precision == DEFAULT_PRECISION else f"{self.variant}:{self.precision}"

    @property
    def is_slow(self) -> bool:
        """Whether it is timed on a sample of the rows (`--slow-rows`)."""
        return bool(self.module.IS_SLOW)

    @property
    def description(self) -> str:
        """The first line of its file."""
        return (self.module.__doc__ or "").strip().splitlines()[0]

    @property
    def missing(self) -> str:
        """Why it cannot run here, as far as can be told without trying: packages that are not installed."""
        packages = [name for name in getattr(self.module, "NEEDS", ()) if find_spec(name) is None]
        hint = " ".join(name.replace("_", "-") for name in packages)
        return f"{', '.join(packages)} is not installed: pip install {hint}" if packages else ""

    def options(self, warmup_rows: int, work_dir: Path, limit_s: float | None = None) -> Options:
        """What its process is told."""
        how = {"precision": self.precision, "backend": self.backend, "attention": self.attention}
        what = {"batch_size": self.batch_size, "warmup_rows": warmup_rows, "work_dir": work_dir, "limit_s": limit_s}
        return Options.model_validate(how | what)


def contender_names() -> list[str]:
    """The files of the folder, without those that start with an underscore."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


def contender_module(name: str) -> ModuleType:
    """The file of this contender."""
    return importlib.import_module(f"packhorse.comparison.contenders.{name}")


def words_of(module: ModuleType) -> tuple[str, ...]:
    """What may follow the contender's name, each after a colon; a batch size apart."""
    ways = (*getattr(module, "BACKENDS", ()), *getattr(module, "ATTENTIONS", ()))
    return (*(word for word in ways if word != "auto"), *module.PRECISIONS)


def default_contenders(task: Task) -> list[Contender]:
    """Every contender that does the task, in what its file says is `BY_DEFAULT`, or else every precision it has."""
    modules = {name: contender_module(name) for name in contender_names()}
    return [
        parse_contender(f"{name}:{words}", task)
        for name, module in modules.items()
        if task in module.TASKS
        for words in getattr(module, "BY_DEFAULT", module.PRECISIONS)
    ]


def parse_contenders(by_comma: str, task: Task) -> list[Contender]:
    """Labels in a list by comma, each once. Raises UsageError."""
    labels = dict.fromkeys(label.strip() for label in by_comma.split(",") if label.strip())
    if not labels:
        raise UsageError(f"--contenders {by_comma!r}: no name in it; legal are {', '.join(contender_names())}")
    return [parse_contender(label, task) for label in labels]


def parse_contender(label: str, task: Task) -> Contender:
    """Read `name`, or `name:word:word` with a backend, an attention, a batch size, a precision.

    Raises UsageError with what is legal.
    """
    name, *words = label.split(":")
    names = contender_names()
    if name not in names:
        raise UsageError(f"--contenders {name}: not one of {', '.join(names)}{did_you_mean(name, names)}")
    module = contender_module(name)
    if task not in module.TASKS:
        raise UsageError(f"--contenders {label}: does {', '.join(module.TASKS)}; this model is for {task}")
    sizes = [int(word) for word in words if word.isdigit() and int(word) and getattr(module, "HAS_BATCH_SIZE", False)]
    words = [word for word in words if not (sizes and word.isdigit())]
    legal = words_of(module)
    kinds = [[word for word in words if word in kind] for kind in (PRECISIONS, BACKENDS[1:], ATTENTIONS[1:])]
    if not set(words) <= set(legal) or len(sizes) > 1 or any(len(found) > 1 for found in kinds):
        rows = ", a number of rows a batch" if getattr(module, "HAS_BATCH_SIZE", False) else ""
        raise UsageError(f"--contenders {label}: {name} takes {', '.join(legal)}{rows}, at most one of a kind")
    return Contender(
        name,
        module,
        next((known for known in PRECISIONS if known in words), DEFAULT_PRECISION),
        next((known for known in BACKENDS if known in words and known != "auto"), "auto"),
        next((known for known in ATTENTIONS if known in words and known != "auto"), "auto"),
        sizes[0] if sizes else None,
    )
