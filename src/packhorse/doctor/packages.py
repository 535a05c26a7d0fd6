"""Packages that packhorse uses where they are installed, and the commands that install them."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from typing import Any

from packhorse.doctor.diagnosis import Check, State

Trial = Callable[[], str]


def tried(area: str, name: str, trial: Trial, command: str | None, missing: tuple[str, ...] = ()) -> Check:
    """Runs a trial that returns a detail. missing: modules without which it cannot work."""
    absent = [module for module in missing if not is_installed(module)]
    if absent:
        return Check(area, name, "missing", f"{', '.join(absent)}: not installed", command)
    try:
        with _silent():
            detail = trial()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a foreign package fails with is what is told
        lines = str(error).strip().splitlines()
        return Check(area, name, "broken", f"{type(error).__name__}: {lines[0] if lines else ''}", command)
    return Check(area, name, "works", detail)


def installed(
    area: str, name: str, modules: tuple[str, ...], command: str, trial: Trial | None, measure: bool
) -> Check:
    """Of packages that take seconds to import: they are imported and tried with `measure` alone."""
    if measure and trial is not None:
        return tried(area, name, trial, command, modules)
    absent = [module for module in modules if not is_installed(module)]
    state: State = "missing" if absent else "installed"
    if absent:
        return Check(area, name, state, f"{', '.join(absent)}: not installed", command)
    return Check(area, name, state, ", ".join(f"{module} {version_of(module)}" for module in modules))


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # of a part of a package that is not there
        return False


def version_of(module: str) -> str:
    """Of the package that brings it, which mostly has its name; to look through all packages takes half a second."""
    name = module.split(".")[0]
    try:
        return version(name)
    except PackageNotFoundError:
        distributions = packages_distributions().get(name)
        return version(distributions[0]) if distributions else ""


def imported(module: str) -> Any:
    return importlib.import_module(module)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What packages print and log when they are imported does not stand in the doctor's answer."""
    nowhere, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with _compiled_silent(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _compiled_silent() -> Iterator[None]:
    """What compiled code prints goes by sys.stdout, to the file descriptor itself: --json would be no JSON."""
    sys.stdout.flush()
    try:
        before = os.dup(1)
    except OSError:  # a process without a standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
