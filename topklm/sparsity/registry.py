"""Activations by name: one file each in `topklm/sparsity/activations/`, found through `TopKConfig.activation`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from topklm.errors import ConfigError, Problem

if TYPE_CHECKING:
    from topklm.sparsity.activation import Activation
    from topklm.sparsity.config import TopKConfig

_ACTIVATIONS: dict[str, type[Activation]] = {}
A = TypeVar("A", bound="type[Activation]")

REFUSED = {
    "featurechoice": "Feature Choice (arXiv 2411.02124) keeps the tokens that are largest for a neuron, so whether an "
    "entry is kept depends on later tokens and on other rows of the batch: no language model can run so. It is for "
    "autoencoders on stored activations; topk or batchtopk here",
    "mutualchoice": "Mutual Choice (arXiv 2411.02124) keeps the largest entries of the whole batch, which is "
    "BatchTopK's rule under another name; batchtopk here, whose threshold is causal",
    "gradient": "selection by the gradient of the loss (arXiv 2411.10397) knows the next token, which the loss is "
    "about; it is for autoencoders on stored activations; normtopk weighs entries by what reads them instead",
}
"""Rules that look across positions or into the future, and what to take instead; names without separators."""


def register(name: str) -> Callable[[A], A]:
    """Class decorator; a name can be taken once."""

    def add(activation: A) -> A:
        if name in _ACTIVATIONS:
            raise ConfigError(f"the activation {name!r} is registered twice")
        activation.name = name
        _ACTIVATIONS[name] = activation
        return activation

    return add


def activation_names() -> list[str]:
    return sorted(_ACTIVATIONS)


def activation_class(name: str) -> type[Activation]:
    """The class under `name`; raises `ConfigError` with the nearest name, or the reason why there is none."""
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    raise ConfigError([Problem("activation", why_unknown(name))])


def why_unknown(name: str) -> str:
    """What to tell of a name that is not registered."""
    plain = "".join(c for c in name.lower() if c.isalnum())
    for refused, reason in REFUSED.items():
        if plain.startswith(refused):
            return f"{name!r} is refused in a language model: {reason}"
    near = difflib.get_close_matches(name, activation_names(), n=1)
    return f"{name!r} is unknown; " + (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(activation_names())}"
    )


def build_activation(cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> Activation:
    """The activation that `cfg` names, for a stream of `dim` entries after block `layer`.

    Raises `ConfigError` with every problem of `cfg`, and where the activation needs `dim` and it is None.
    """
    if problems := list(cfg.problems()):
        raise ConfigError(problems)
    cls = activation_class(cfg.activation)
    if dim is None and cls.needs_dim(cfg):
        raise ConfigError(
            f"{cfg.activation} with these settings needs the width of the residual stream, which the model does not "
            "tell; give the model (or its config) an attribute dim or hidden_size"
        )
    return cls(cfg, dim, layer)


def option_problems(schema: type, given: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with the section `options` for an activation whose options are `schema`, a dataclass."""
    hints = get_type_hints(schema)
    values = {}
    for key, value in given.items():
        if key not in hints:
            advice = f"it has {', '.join(hints)}" if hints else "it has none, leave it out"
            yield Problem(f"options.{key}", f"is no option of this activation; {advice}")
        elif not _fits(hints[key], value):
            yield Problem(f"options.{key}", f"{value!r} is not {_described(hints[key])}")
        else:
            values[key] = value
    if hasattr(schema, "problems"):
        yield from (problem.under("options") for problem in schema(**values).problems())


def make_options(schema: type, given: dict[str, Any]) -> Any:
    """`given`, which has no problems, as an instance of `schema`; whole numbers become floats where those are meant."""
    hints = get_type_hints(schema)
    return schema(**{key: float(v) if float in _kinds(hints[key]) and v is not None else v for key, v in given.items()})


def all_options(schema: type, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with every default filled in."""
    return dataclasses.asdict(make_options(schema, given))


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) or (hint,)


def _fits(hint: Any, value: Any) -> bool:
    """Strictly, as in a section of the configuration: true is no number, 7 is no text."""
    for kind in _kinds(hint):
        if isinstance(kind, str) and value == kind:  # of a Literal
            return True
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True
        if isinstance(kind, type) and kind is not float and type(value) is kind:
            return True
    return False


def _described(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(names.get(kind, str(kind)) for kind in _kinds(hint))
