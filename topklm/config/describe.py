"""The `--help` of every program: all keys with type, default and the docstring literal under each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any, get_origin, get_type_hints

from topklm.config.build import section_of


def describe(schema: type, program: str, purpose: str) -> str:
    """Help text of a program that is configured by `schema`."""
    head = f"usage: python -m apps.{program} config=FILE key.path=value ...\n\n{inspect.cleandoc(purpose)}\n\nkeys:\n"
    return head + "\n".join(_lines(schema, ""))


def field_docs(schema: type) -> dict[str, str]:
    """The docstring literal under each field of a dataclass, those it inherits included, on one line."""
    docs: dict[str, str] = {}
    for base in schema.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0].body  # type: ignore[attr-defined]
    for field, literal in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(literal, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(literal.value)).split())
    return docs


def _lines(schema: type, path: str) -> Iterator[str]:
    docs, hints = field_docs(schema), get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, section = f"{path}{field.name}", section_of(hints[field.name])
        doc = textwrap.fill(docs.get(field.name, ""), 100, initial_indent="      ", subsequent_indent="      ")
        if section is None:
            yield f"  {key}: {_type_name(field.type)} = {_default(field)}" + (f"\n{doc}" if doc else "")
        else:
            yield (
                f"\n  {key}:" + (" (null by default)" if field.default is None else "") + (f"\n{doc}" if doc else "")
            )
            # Of a dictionary of sections the user names the entries.
            named = get_origin(hints[field.name]) is dict
            yield from _lines(section, f"{key}.<name>." if named else f"{key}.")


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(field: dataclasses.Field[Any]) -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    return "null" if value is None else repr(value)
