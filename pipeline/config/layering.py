"""Decides where a key's value comes from: the defaults, a user's file, or flags."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.printing import shown
from pipeline.config.schema import FOLDER, KEEPING, OF_RUN, OUTPUT, SECTIONS, ConfigError, keys
from pipeline.lineage.locations import DATABASE_NAME
from pipeline.lineage.moved import Relocation
from storage.addresses import SecretInAddressError, check_address, redacted
from storage.errors import one_line

DEFAULT_FILE = Path(__file__).resolve().parents[1] / "default.yaml"
SAVED_NAME = "config.yaml"
"""The file in an output folder that holds the settings of the latest run."""
DEFAULT = "the default"
"""Origin of values that are not set anywhere else."""

FlagValues = Mapping[str, tuple[str, Any]]
"""Dotted key, such as `training.steps`, to (name of the flag, value)."""

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""A YAML file, several, or none."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A key's value and where it comes from; `str` gives the form for messages."""

    key: str
    value: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)} ({self.origin})"


def lay_over_defaults(files: Files = (), flags: FlagValues | None = None) -> dict[str, Given]:
    """The final value of every key.

    Args:
        files: YAML files of the user, each of which may set any of the keys; the last one wins.
        flags: Override all files.

    Raises:
        ConfigError: A file cannot be read or has an unknown key, or an address contains a secret.
    """
    given: dict[str, Given] = {}
    _lay_over(given, _read_yaml(DEFAULT_FILE), DEFAULT)
    for path in [files] if isinstance(files, (str, os.PathLike)) else files or ():
        _lay_over(given, _read_settings(Path(path)), f"in {path}")
    for key, (flag, value) in (flags or {}).items():
        given[key] = Given(key, value, f"from {flag}")
    for one in given.values():
        _refuse_secrets(one.value, one)
    return given


def _refuse_secrets(value: Any, given: Given) -> None:
    """Checks every text in a value; prompts and labels may contain addresses, too."""
    if isinstance(value, str):
        try:
            check_address(value)
        except SecretInAddressError as error:
            raise ConfigError(f"{given.key} ({given.origin}): {error}") from None
    elif isinstance(value, Mapping):
        for inner in value.values():
            _refuse_secrets(inner, given)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_secrets(inner, given)


def default_values() -> dict[str, Any]:
    """Every dotted key with its default; `None` if the preset decides."""
    return {key: given.value for key, given in lay_over_defaults().items()}


def _lay_over(given: dict[str, Given], tree: Mapping[str, Any], origin: str) -> None:
    """Sets every key in `tree`; `None` for a whole section sets nothing."""
    known = set(keys())
    for name, value in tree.items():
        if name == OUTPUT and isinstance(value, Mapping):
            for key, inner in value.items():
                dotted = OUTPUT if key == FOLDER else f"{OUTPUT}.{key}"
                if dotted not in known:
                    raise _unknown(dotted, (f"{OUTPUT}.{k}" for k in (FOLDER, *KEEPING)), origin)
                given[dotted] = Given(dotted, inner, origin)
        elif name in known:
            given[name] = Given(name, value, origin)
        elif name not in SECTIONS:
            raise _unknown(name, (*SECTIONS, *OF_RUN), origin)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                dotted = f"{name}.{key}"
                if dotted not in known:
                    raise _unknown(dotted, [k for k in known if k.startswith(f"{name}.")], origin)
                given[dotted] = Given(dotted, inner, origin)
        elif value is not None:
            names = ", ".join(field.name for field in dataclasses.fields(SECTIONS[name]))
            raise ConfigError(
                f"{name} = {shown(value)} ({origin}) is impossible: it must be a section with the "
                f"keys {names}"
            )


def _unknown(key: str, allowed: Iterable[str], origin: str) -> ConfigError:
    # The likeliest mistakes: a misspelt name, then a correct name in the wrong section.
    elsewhere = [k for k in keys() if k.rpartition(".")[2] == key.rpartition(".")[2]]
    close = elsewhere or difflib.get_close_matches(key, sorted(allowed), n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(key, sorted(keys()), n=1, cutoff=0.6)
    names = ", ".join(sorted(allowed))
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {names}"
    return ConfigError(f"there is no setting {redacted(repr(key))} ({origin}): {hint}")


def _read_settings(path: Path) -> dict[str, Any]:
    """A user's file; for a moved run's own file, with the places below its folder updated."""
    tree = _read_yaml(path)
    here, former = os.path.dirname(os.path.abspath(path)), tree.get(OUTPUT)
    if isinstance(former, dict):
        former = former.get(FOLDER)
    is_runs = path.name == SAVED_NAME and os.path.isfile(os.path.join(here, DATABASE_NAME))
    if not is_runs or not isinstance(former, str) or not os.path.isabs(former):
        return tree
    moved = Relocation([former], here)
    return {name: _moved(value, moved) for name, value in tree.items()}


def _moved(value: Any, moved: Relocation) -> Any:
    if isinstance(value, dict):
        return {name: _moved(inner, moved) for name, inner in value.items()}
    return moved.apply(value) if isinstance(value, str) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"the configuration file {path} does not exist: give --config the path of a YAML file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"the configuration file {path} cannot be read: {reason}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = redacted(getattr(error, "problem", None) or one_line(error))
        raise ConfigError(f"{path}{place} is not valid YAML: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds {shown(tree)}: it must hold keys and values, like pipeline/default.yaml"
        )
    return tree


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `1e-4` is a number, `on` a word, a duplicate key an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is not a name", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice; keep only one",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML follows, reads yes, no, on and off as booleans.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|false|False)$"), list("tTfF"))
# It also requires a decimal point and a signed exponent in a float.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
