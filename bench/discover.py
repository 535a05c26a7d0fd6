"""Which contenders there are: the files of `bench/contenders`, read each time; nothing registers itself."""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.contract import ATTENTIONS, BACKENDS, PRECISIONS, Attention, Backend, Options, Precision, Task

FOLDER = Path(__file__).parent / "contenders"
DEFAULT_PRECISION: Precision = "fp32"


@dataclass(frozen=True)
class Contender:
    """A file of `bench/contenders` at one precision, and at one backend and attention where it has a choice."""

    name: str
    module: ModuleType
    precision: Precision = DEFAULT_PRECISION
    backend: Backend = "auto"
    attention: Attention = "auto"

    @property
    def variant(self) -> str:
        """What its line in the table is called: `packhorse:onnx`. The precision has a column of its own."""
        return ":".join([self.name, *(word for word in (self.backend, self.attention) if word != "auto")])

    @property
    def label(self) -> str:
        """As on the command line: `sorted_torch:bf16`, `packhorse:torch:packed:int8`; fp32 goes without saying."""
        return self.variant if self.precision == DEFAULT_PRECISION else f"{self.variant}:{self.precision}"

    @property
    def is_slow(self) -> bool:
        """Whether it is timed on a sample of the rows (`--slow-rows`)."""
        return bool(self.module.IS_SLOW)

    def options(self, warmup_rows: int, work_dir: Path) -> Options:
        """What its process is told."""
        how = {"precision": self.precision, "backend": self.backend, "attention": self.attention}
        return Options.model_validate(how | {"warmup_rows": warmup_rows, "work_dir": work_dir})


def contender_names() -> list[str]:
    """The files of the folder, without those that start with an underscore."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


def contender_module(name: str) -> ModuleType:
    """The file of this contender."""
    return importlib.import_module(f"bench.contenders.{name}")


def words_of(module: ModuleType) -> tuple[str, ...]:
    """What may follow the contender's name, each after a colon."""
    choices = (*getattr(module, "BACKENDS", ()), *getattr(module, "ATTENTIONS", ()), *module.PRECISIONS)
    return tuple(word for word in choices if word != "auto")


def default_contenders(task: Task) -> list[Contender]:
    """Every contender that does the task, in what its file says is `BY_DEFAULT`, or else every precision it has."""
    modules = {name: contender_module(name) for name in contender_names()}
    return [
        parse_contender(f"{name}:{words}", task)
        for name, module in modules.items()
        if task in module.TASKS
        for words in getattr(module, "BY_DEFAULT", module.PRECISIONS)
    ]


def parse_contender(label: str, task: Task) -> Contender:
    """Read `name`, or `name:word:word` with a backend, an attention, a precision; says what is legal if it is not."""
    name, *words = label.split(":")
    names = contender_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SystemExit(f"contender {name}: not one of {', '.join(names)}.{hint}")
    module = contender_module(name)
    if task not in module.TASKS:
        raise SystemExit(f"contender {label}: does {', '.join(module.TASKS)}; this model is for {task}")
    legal = words_of(module)
    kinds = [kind for word in words for kind in (PRECISIONS, BACKENDS, ATTENTIONS) if word in kind]
    if not set(words) <= set(legal) or len(set(kinds)) < len(words):
        raise SystemExit(f"contender {label}: {name} takes {', '.join(legal)}, at most one of a kind")
    return Contender(
        name,
        module,
        next((known for known in PRECISIONS if known in words), DEFAULT_PRECISION),
        next((known for known in BACKENDS if known in words), "auto"),
        next((known for known in ATTENTIONS if known in words), "auto"),
    )
