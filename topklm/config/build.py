"""Nested dictionaries to nested dataclasses: strict types, all problems collected.

OmegaConf's structured configs stop at the first error and turn `name: 7` into a string; here each leaf is
checked by itself, a wrong one is noted and its default used, so that the rest is still checked.

A section is a frozen keyword-only dataclass. It may define
- `problems(self) -> Iterable[Problem]`: rules over its own fields;
- `postpones(self, key: str) -> bool`: whether rules about `key`, of a section in it, wait until that is filled in;
- `unused_keys: ClassVar[dict[str, str]]`: keys that Meta Lingua knows and this project does not use, with the
  reason. They are named in one warning instead of being an error; null asks for nothing and is passed over;
- `only_values: ClassVar[dict[str, tuple[Any, str]]]`: keys of Meta Lingua that would change the result and are not
  offered: the value (null too) that means so in Lingua, and the reason why any other is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from topklm.errors import ConfigError, Problem

T = TypeVar("T")


def build(schema: type[T], data: Mapping[str, Any], *, unused: list[Problem] | None = None) -> T:
    """Make a `schema` (a dataclass) of `data`; raise `ConfigError` with every problem there is.

    `unused`, if given, receives the keys of Meta Lingua that are present but have no effect here.
    """
    problems: list[Problem] = []
    builder = _Builder(schema, problems, [] if unused is None else unused)
    config = builder.section(schema, data, "")
    # What was refused, in whole or in part, is not blamed a second time by a rule that saw its default.
    blamed = [problem.key for problem in problems]
    problems += [
        p
        for p in section_problems(config)
        if not any(_is_or_is_in(key, p.key) or _is_or_is_in(p.key, key) for key in blamed)
    ]
    if problems:
        raise ConfigError(problems)
    return config


def section_problems(config: Any, path: str = "") -> Iterator[Problem]:
    """The problems that a section and the sections in it report of themselves, with full keys."""
    if hasattr(config, "problems"):
        yield from (problem.under(path) for problem in config.problems())
    postpones = getattr(config, "postpones", lambda key: False)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        children = value.items() if isinstance(value, dict) else [("", value)]
        for key, child in children:
            if dataclasses.is_dataclass(child):
                found = section_problems(child, ".".join(p for p in (field.name, key) if p))
                yield from (problem.under(path) for problem in found if not postpones(problem.key))


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dictionary of a configuration, as it is written to YAML and JSON."""
    return dataclasses.asdict(config)


class _Builder:
    def __init__(self, root: type, problems: list[Problem], unused: list[Problem]):
        self.problems = problems
        self.unused = unused
        self.all_keys = list(_leaf_keys(root))

    def section(self, schema: type[T], data: Mapping[str, Any], path: str) -> T:
        hints = get_type_hints(schema)
        fields = {field.name for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
        unused_keys: dict[str, str] = getattr(schema, "unused_keys", {})
        only_values: dict[str, tuple[Any, str]] = getattr(schema, "only_values", {})
        values = {}
        for key, value in data.items():
            where = f"{path}.{key}" if path else str(key)
            if key in fields:
                ok, value = self.value(hints[key], value, where)
                if ok:
                    values[key] = value
            elif key in unused_keys:
                if value is not None:
                    self.unused.append(Problem(where, unused_keys[key]))
            elif key in only_values:
                wanted, reason = only_values[key]
                if value not in (None, wanted):
                    self.refuse(where, f"{value!r}: {reason}; only {'null' if wanted is None else wanted}")
            else:
                self.problems.append(Problem(where, "unknown key" + self.nearest(str(key), where, fields, path)))
        return schema(**values)

    def nearest(self, key: str, where: str, fields: set[str], path: str) -> str:
        here = difflib.get_close_matches(key, fields, n=1)
        if here:
            return f"; did you mean {f'{path}.' if path else ''}{here[0]}?"
        same_name = [k for k in self.all_keys if k.rsplit(".", 1)[-1] == key]
        elsewhere = same_name or difflib.get_close_matches(where, self.all_keys, n=1)
        if elsewhere:
            return f"; did you mean {elsewhere[0]}?"
        return f"; known here: {', '.join(sorted(fields))}"

    def refuse(self, path: str, message: str) -> tuple[bool, None]:
        self.problems.append(Problem(path, message))
        return False, None

    def value(self, hint: Any, value: Any, path: str) -> tuple[bool, Any]:
        """(accepted, value as the hint wants it)."""
        origin, args = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None:
                return (True, None) if type(None) in args else self.refuse(path, "must not be null")
            options = [a for a in args if a is not type(None)]
            if len(options) == 1:
                return self.value(options[0], value, path)
            for option in options:
                if _is_a(option, value):
                    return self.value(option, value, path)
            return self.refuse(path, f"{value!r} is not {' or '.join(_name(o) for o in options)}")
        if value is None and hint is not Any:
            return self.refuse(path, f"is null, but must be {_name(hint)}")
        if origin is Literal:
            if value in args and any(type(value) is type(a) for a in args):
                return True, value
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]}?" if near else ""
            return self.refuse(path, f"{value!r} is not one of {', '.join(map(str, args))}{hint_text}")
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                return self.refuse(path, f"{value!r} is not a section (a mapping of keys to values)")
            return True, self.section(hint, value, path)  # type: ignore[arg-type]
        if origin is dict:
            if not isinstance(value, Mapping):
                return self.refuse(path, f"{value!r} is not a mapping of names to {_name(args[1])}")
            checked = {str(k): self.value(args[1], v, f"{path}.{k}") for k, v in value.items()}
            return True, {k: v for k, (ok, v) in checked.items() if ok}
        if origin in (list, tuple):
            if not isinstance(value, list | tuple):
                return self.refuse(path, f"{value!r} is not a list; write [{value}]")
            items = [self.value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
            return True, origin(v for ok, v in items if ok)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return True, float(value)
        if hint is Any or _is_a(hint, value):
            return True, value
        advice = f"; quote it: '{value}'" if hint is str and isinstance(value, int | float) else ""
        if hint is int and isinstance(value, float) and value.is_integer():
            advice = f"; write {value:.0f}"
        return self.refuse(path, f"{value!r} is not {_name(hint)}{advice}")


def _is_or_is_in(key: str, other: str) -> bool:
    """Whether `key` is `other`, or an entry of it, as `sources.web` is of `sources` and `tasks[0]` of `tasks`."""
    return key == other or key.startswith((f"{other}.", f"{other}["))


def _is_a(hint: Any, value: Any) -> bool:
    """Strictly: True is no number, 7 is no text, 1.0 is no whole number."""
    if dataclasses.is_dataclass(hint) or get_origin(hint) is dict:
        return isinstance(value, Mapping)
    if get_origin(hint) in (list, tuple):
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if dataclasses.is_dataclass(hint):
        return "a section"
    origin = get_origin(hint)
    if origin in (list, tuple):
        return "a list"
    return names.get(hint, str(hint))


def section_of(hint: Any) -> type | None:
    """The dataclass in a type hint such as `TopKConfig | None`, if there is one."""
    for option in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return option
    return None


def _leaf_keys(schema: type, path: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        if name not in {field.name for field in dataclasses.fields(schema)}:
            continue
        section = None if get_origin(hint) is dict else section_of(hint)
        if section is None:
            yield path + name
        else:
            yield from _leaf_keys(section, f"{path}{name}.")
