"""Which contenders there are: the files of `bench/contenders`, read each time; nothing registers itself."""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.contract import PRECISIONS, Precision, Task

FOLDER = Path(__file__).parent / "contenders"
DEFAULT_PRECISION: Precision = "fp32"


@dataclass(frozen=True)
class Contender:
    """A file of `bench/contenders` at one precision."""

    name: str
    precision: Precision
    module: ModuleType

    @property
    def label(self) -> str:
        """As on the command line: `sorted_torch:bf16`; fp32 goes without saying."""
        return self.name if self.precision == DEFAULT_PRECISION else f"{self.name}:{self.precision}"

    @property
    def is_slow(self) -> bool:
        """Whether it is timed on a sample of the rows (`--slow-rows`)."""
        return bool(self.module.IS_SLOW)


def contender_names() -> list[str]:
    """The files of the folder, without those that start with an underscore."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


def contender_module(name: str) -> ModuleType:
    """The file of this contender."""
    return importlib.import_module(f"bench.contenders.{name}")


def default_contenders(task: Task) -> list[Contender]:
    """Every contender that does the task, at every precision it has."""
    modules = {name: contender_module(name) for name in contender_names()}
    return [
        Contender(name, precision, module)
        for name, module in modules.items()
        if task in module.TASKS
        for precision in module.PRECISIONS
    ]


def parse_contender(label: str, task: Task) -> Contender:
    """Read `name` or `name:precision`; says what is legal if it is not."""
    name, _, suffix = label.partition(":")
    names = contender_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise SystemExit(f"contender {name}: not one of {', '.join(names)}.{hint}")
    module = contender_module(name)
    precision = next((known for known in PRECISIONS if known == (suffix or DEFAULT_PRECISION)), None)
    if precision is None or precision not in module.PRECISIONS:
        raise SystemExit(f"contender {label}: {name} runs in {', '.join(module.PRECISIONS)}")
    if task not in module.TASKS:
        raise SystemExit(f"contender {label}: does {', '.join(module.TASKS)}; this model is for {task}")
    return Contender(name, precision, module)
