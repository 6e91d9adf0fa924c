"""Own code without a fork: `file.py:NAME` or `package.module:NAME` to what it names, or one sentence that says why not.

A recipe, a term, an operation, a source, a protocol or a backbone of one's own stands wherever a built-in name may. The
words are what a run's config.yaml and its checkpoints record, as they were written; a file's path is relative to the
folder that the command is run in. Only what a person names is run: never a file that lies beside the weights it is for.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from glocal.errors import ConfigError, ModelError, nearest_name
from glocal.outside import given_path, reason

BaseT = TypeVar("BaseT")
_SPEC = re.compile(r"(?P<place>.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")


def is_own(text: object) -> bool:
    """Whether these words name code rather than something built in.

    >>> is_own("my_terms.py:Agreement"), is_own("lab.terms:Agreement"), is_own("knn")
    (True, True, False)
    """
    return isinstance(text, str) and _SPEC.fullmatch(text) is not None


def load_named(spec: str, key: str) -> Any:
    """What `file.py:NAME` or `package.module:NAME` names; the file is imported once in a process.

    Args:
        spec: the words.
        key: the setting they stand in, for errors.

    Raises:
        ConfigError: when there is no such file, module or name (the nearest is given), or it can't be imported.

    >>> load_named("glocal.schedules:value_at", "example").__name__
    'value_at'
    """
    matched = _SPEC.fullmatch(spec)
    if matched is None:
        raise ConfigError(f"{key}: '{spec}' names no code. Write file.py:NAME or package.module:NAME.")
    place, name = matched["place"], matched["name"]
    module = _import_file(place, key) if place.endswith(".py") else _import_module(place, key)
    if not hasattr(module, name):
        names = _public_names(module)
        raise ConfigError(
            f"{key}: {place} has no '{name}'.{nearest_name(name, names)} It has: {', '.join(names) or 'nothing'}."
        )
    return getattr(module, name)


def load_class(spec: str, base: type[BaseT], key: str, needs: tuple[str, ...] = ()) -> type[BaseT]:
    """The class that the words name, which must be a `base` with methods of its own where `needs` says so.

    Raises:
        ConfigError: as `load_named`, and for anything else, with the classes of that file that would do.

    >>> load_class("glocal.views.photometric.tone:Invert", object, "example").__name__
    'Invert'
    """
    named = load_named(spec, key)
    if not (isinstance(named, type) and issubclass(named, base)):
        what = (
            f"a subclass of {named.__mro__[1].__name__}"
            if isinstance(named, type)
            else f"a {type(named).__name__}"
        )
        fitting = [n for n, value in vars(sys.modules.get(getattr(named, "__module__", ""), None) or {}).items()
                   if isinstance(value, type) and issubclass(value, base) and value.__module__ == named.__module__]  # fmt: skip
        raise ConfigError(
            f"{key}: {spec} is {what}; needed: a subclass of {base.__module__}.{base.__name__}."
            + (f" That file has {', '.join(fitting)}." if fitting else "")
        )
    missing = [name for name in needs if getattr(named, name) is getattr(base, name)]
    missing += sorted(set(getattr(named, "__abstractmethods__", ())) - set(missing))
    if missing:
        raise ConfigError(f"{key}: {spec} lacks {', '.join(missing)}, which every {base.__name__} must have.")
    return named


def spec_of(kind: type) -> str:
    """The words that name a class of somebody's own.

    Raises:
        ConfigError: for a class that no other process could find, such as one of a notebook.

    >>> from pathlib import PurePath
    >>> spec_of(PurePath)
    'pathlib:PurePath'
    """
    module = sys.modules.get(kind.__module__)
    path = getattr(module, "__file__", None)
    if "." in kind.__qualname__ or path is None:
        raise ConfigError(
            f"{kind.__qualname__} can't be found again by a continued run. Define it at the top of a file, and import it."
        )
    of_a_file = kind.__module__ == "__main__" or kind.__module__ in _FILES
    return (
        f"{_FILES.get(kind.__module__, path)}:{kind.__name__}"
        if of_a_file
        else f"{kind.__module__}:{kind.__name__}"
    )


def files_named(plain: Any) -> dict[str, Path]:
    """The files of own code that a configuration, as plain data, names: what a run keeps a copy of."""
    places = (_SPEC.match(text) for text in _texts(plain))
    files = [Path(m["place"]).expanduser() for m in places if m is not None and m["place"].endswith(".py")]
    return {file.name: file for file in files if file.is_file()}


def refuse_code_beside(spec: str | None, weights: Path) -> None:
    """Weights from elsewhere must not bring code along that is run by loading them.

    Raises:
        ModelError: when the file that `spec` names lies in the folder of the weights, or in one below it.
    """
    place = "" if spec is None else spec.rpartition(":")[0]
    folder = (weights if weights.is_dir() else weights.parent).resolve()
    if place.endswith(".py") and Path(place).expanduser().resolve().is_relative_to(folder):
        raise ModelError(
            f"{weights} asks for the code in {place}, which lies beside it and is not run. Look at it, and put it where you "
            "keep your own code."
        )


_FILES: dict[str, str] = {}
"""Modules made from files: their name, and the path as it was first written."""


def _import_file(place: str, key: str) -> ModuleType:
    path = given_path(place, key)
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{key}: there is no file '{place}'.{nearest_name(path.name, beside)} Paths are relative to '{Path.cwd()}'."
        )
    name, folder = path.stem, str(path.resolve().parent)
    for present in (sys.modules.get(name), sys.modules["__main__"]):
        file = getattr(present, "__file__", None)
        if present is not None and file is not None and Path(file).resolve() == path.resolve():
            return present
    # Behind everything installed: the file's neighbours can be imported, and hide nothing. Worker processes that are
    # spawned find the module by its name.
    if folder not in sys.path:
        sys.path.append(folder)
    _refuse_taken_name(name, path, place, key)
    _FILES[name] = place
    return _import(name, place, key)


def _refuse_taken_name(name: str, path: Path, place: str, key: str) -> None:
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name) if name.isidentifier() and name not in sys.modules else None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        raise ConfigError(
            f"{key}: {place} can't be imported as '{name}', which is no name or that of another module. Rename the file."
        )


def _import_module(place: str, key: str) -> ModuleType:
    # An installed command, unlike `python -m`, doesn't look where it is run.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return _import(place, place, key)


def _import(name: str, place: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key}: {place} can't be imported: there is no module '{error.name}'. Check the name, install it, or name a "
            "file: folder/file.py:NAME."
        ) from error
    except Exception as error:
        at = f", line {line}" if (line := _line_of(error, place)) else ""
        raise ConfigError(
            f"{key}: {place} can't be imported: {type(error).__name__}{at}: {reason(error)}."
        ) from error


def _line_of(error: Exception, place: str) -> int | None:
    """The last line of this file that the error passed."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [f.lineno for f in inspect.getinnerframes(error.__traceback__, 0) if Path(f.filename).name == Path(place).name] if error.__traceback__ else []  # fmt: skip
    return lines[-1] if lines else None


def _public_names(module: ModuleType) -> list[str]:
    """What a module defines itself, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, dict | list | tuple):
        for value in plain.values() if isinstance(plain, dict) else plain:
            yield from _texts(value)
