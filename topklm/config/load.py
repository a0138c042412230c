"""`config=FILE key=value ...` to a configuration: defaults <- file (over its `base`) <- dotlist."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from topklm.config.build import build, to_dict
from topklm.config.secrets import secret_problems
from topklm.errors import ConfigError, Problem

T = TypeVar("T")
log = logging.getLogger("topklm.config")

Verbatim = Annotated[str, "verbatim"]
"""Type of a program's text whose value on the command line is taken as it stands, not as YAML: `prompt=7`,
`prompt="Once, there: was # one ${x}"`. In a file it is YAML as everything else."""


def load_config(schema: type[T], args: Sequence[str]) -> T:
    """Read `config=FILE` and `key.path=value` arguments into a `schema`.

    Later arguments win over earlier ones and over the file. Values are YAML (`topk=null`, `data.sources={a: 1}`) but
    for `Verbatim` fields, `${other.key}` refers to another key. Raises `ConfigError` with every problem found, before
    anything else is done (of keys and passwords alone, if it holds any); keys of Meta Lingua that have no effect here
    are named in one warning.
    """
    problems: list[Problem] = []
    files = [arg.removeprefix("config=") for arg in args if arg.startswith("config=")]
    if len(files) > 1:
        problems.append(Problem("config", f"given {len(files)} times; give one file"))
    # The defaults come first, so that interpolations see them and a dotlist key meets a null section as null.
    tree = overlay(to_dict(schema()), read_yaml(Path(files[0])) if files else {})
    verbatim = {}
    for arg in args:
        key, eq, text = arg.partition("=")
        if eq and key in _verbatim_fields(schema):
            verbatim[key] = text
        elif key != "config" or not eq:
            problems += _apply(tree, arg)
    try:
        data = resolved(tree)
    except ConfigError as error:
        problems += error.problems
        data = tree
    data |= verbatim  # after the interpolations, of which it has none
    if secrets := list(secret_problems(data)):  # alone, since other messages show values
        raise ConfigError(secrets)
    unused: list[Problem] = []
    try:
        config = build(schema, data, unused=unused)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    finally:  # also where something is wrong: what has no effect may be part of it
        if unused:
            log.warning("keys without effect here:\n%s", "\n".join(_by_reason(unused)))
    if problems:
        raise ConfigError(problems)
    return config


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tree with every `${other.key}` replaced by what it refers to. Raises `ConfigError`."""
    config = OmegaConf.create(tree)
    try:
        data: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(list(_unresolved(config)) or [Problem("", str(error))]) from None
    return data


def _unresolved(node: Any, path: str = "") -> Iterator[Problem]:
    """Every interpolation below `node` that refers to nothing."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        where = f"{path}[{key!r}]" if isinstance(node, ListConfig) else ".".join(filter(None, [path, str(key)]))
        try:
            child = node[key]
        except OmegaConfBaseException as error:
            written = OmegaConf.to_container(node)[key]  # type: ignore[index]
            why = str(error).splitlines()[0].rpartition("while resolving interpolation: ")[2].strip('"')
            yield Problem(
                where, f"{written!r} cannot be resolved ({why}); refer to what there is, or write the value itself"
            )
        else:
            if isinstance(child, DictConfig | ListConfig):
                yield from _unresolved(child, where)


def _by_reason(unused: list[Problem]) -> Iterator[str]:
    """A line for each reason, with the keys that share it."""
    for reason in dict.fromkeys(problem.message for problem in unused):
        keys = ", ".join(problem.key for problem in unused if problem.message == reason)
        yield f"  - {keys}: {reason}"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a plain dictionary, interpolations unresolved. Raises `ConfigError`.

    `base: other.yaml` (relative to the file) names a file that this one overlays, key by key.
    """
    chain: list[Path] = []
    layers: list[dict[str, Any]] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in chain:
            raise ConfigError(f"{path}: base leads in a circle, back to {following}; remove one base")
        chain.append(following.resolve())
        try:
            layers.append(_read_one(following))
        except ConfigError as error:
            raise ConfigError(f"base: {error}" if layers else str(error)) from error
        base = layers[-1].pop("base", None)
        following = None if base is None else following.parent / str(base)
    tree: dict[str, Any] = {}
    for layer in reversed(layers):
        tree = overlay(tree, layer)
    return tree


def _read_one(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"config file {path} is a directory; give a file in it")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"config file {path} does not exist" + (f"; there are: {', '.join(near)}" if near else ""))
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}); give a YAML file, written in UTF-8") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}\n{_yaml_advice(error, path)}") from error
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}; allow it, or give another") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; it must hold a mapping, lines of `key: value`")
    if not data:
        raise ConfigError(f"{path} is empty; write keys into it, or leave config= out (--help tells all keys)")
    return {str(key): value for key, value in data.items()}


def _yaml_advice(error: Exception, path: Path) -> str:
    """What to do about the kinds of broken YAML whose own words do not tell."""
    mark = getattr(error, "problem_mark", None)
    lines = path.read_text(encoding="utf-8").splitlines()
    if mark is not None and mark.line < len(lines) and lines[mark.line].startswith("\t"):
        return "indent with spaces; YAML takes no tab"
    if "duplicate key" in str(error):
        return "keep one of the two"
    if "python/" in str(error):
        return "write plain values; nothing in a configuration is run"
    return "correct that line, or the one before it"


def save_config(config: Any, path: Path) -> None:
    """Write a configuration (a dataclass or a dictionary) as YAML, whole or not at all, also where others do too."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    OmegaConf.save(OmegaConf.create(config if isinstance(config, dict) else to_dict(config)), part)
    part.replace(path)


def _verbatim_fields(schema: type) -> set[str]:
    hints = get_type_hints(schema, include_extras=True)
    return {name for name, hint in hints.items() if any(option == Verbatim for option in (hint, *get_args(hint)))}


def _apply(data: dict[str, Any], arg: str) -> list[Problem]:
    """Set one `a.b=value` in `data`, or say why not."""
    key, eq, text = arg.partition("=")
    if not eq or not key:
        hint = f"; did you mean config={arg}?" if arg.endswith((".yaml", ".yml")) else f"; write {key or 'KEY'}=VALUE"
        return [Problem(arg, f"is not of the form key=value{hint}")]
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
        value = parsed["value"] if text else ""
    except (YAMLError, OmegaConfBaseException):
        return [Problem(key, f"{text!r} is not valid YAML; quote it")]
    return put(data, key, value)


def put(tree: dict[str, Any], key: str, value: Any) -> list[Problem]:
    """Set one dotted key in a tree, as `key=value` on the command line does: a mapping takes the place of a section.
    Returns why it cannot be."""
    *parents, leaf = key.split(".")
    node = tree
    for depth, name in enumerate(parents):
        section = ".".join(parents[: depth + 1])
        if node.get(name, {}) is None:
            inner = ".".join([*parents[depth + 1 :], leaf])
            return [
                Problem(
                    key,
                    f"the section {section} is null here; give a whole section, {section}={{{inner}: {value}}}",
                )
            ]
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            return [Problem(key, f"{section} is a value, not a section; give {section}=VALUE")]
    node[leaf] = value
    return []


def overlay(base: Any, top: Any) -> Any:
    """`top` over `base`, key by key, as a file lies over its `base`; neither is changed."""
    if isinstance(base, dict) and isinstance(top, dict):
        return {**base, **{key: overlay(base.get(key), value) for key, value in top.items()}}
    return top
