"""Sections that name a method: the options of all methods are keys of the section, those of others are refused.

A section class is written without these keys. `complete` adds them from the registries as they are when a config is
read, so a method that was registered by other code has its keys too.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from lors_cli.config.fields import Fault, Section
from lors_cli.options import Options, facts

M = TypeVar("M", bound=BaseModel)
Kind = TypeVar("Kind", bound=Options)
Classes = Mapping[str, type[Options]]  # options by who has them, such as "sparsegpt" or "spp (columns)"

_completed: dict[type[BaseModel], tuple[Any, type[BaseModel]]] = {}  # by the class, with what was added to it


class MethodSection(Section):
    """A section with the options of methods as keys of its own."""

    @classmethod
    def option_classes(cls) -> Classes:
        """All options that are keys of the section."""
        raise NotImplementedError

    @property
    def own_options(self) -> type[Options]:
        """The options of the method that the section names."""
        raise NotImplementedError

    def values(self, kind: type[Kind]) -> Kind:
        """The values that the section has for the options `kind`."""
        has = type(self).model_fields  # a section that was not given the options of all methods has their defaults
        return kind(**{name: getattr(self, name) for name in kind.model_fields if name in has})

    def options(self) -> Options:
        """The values of the options that the method has."""
        return self.values(self.own_options)

    def option(self, name: str) -> Any:
        """The value of one of the method's options; None if the method does not have it."""
        return getattr(self, name, None) if name in self.own_options.model_fields else None

    def option_faults(self, classes: Classes, method: str) -> Iterator[Fault]:
        """The options that the method does not have but are set, and those that it requires but are not.

        Args:
            classes: the options of all methods that can be chosen instead.
            method: the method, as a message calls it.

        """
        for name, (owners, field) in _owned(classes).items():
            value = getattr(self, name, None)
            if name in self.own_options.model_fields:
                if field.is_required() and value is None:
                    yield Fault(name, f"{name}: {field.description}", f"add {name}: {method} has no default for it")
            elif name in self.model_fields_set:
                told, remedy = facts(field), f"choose a method that has it: {', '.join(owners)}"
                if "off" not in told:
                    yield Fault(name, f"no {name}, because {method} {told['without']}", remedy, drop=(name,))
                elif value not in (told["off"], field.default):
                    off = str(told["off"]).lower() if isinstance(told["off"], bool) else told["off"]
                    yield Fault(name, f"{name}: {off}, because {method} {told['without']}", remedy, drop=(name,))


def complete(model: type[M]) -> type[M]:
    """`model` with the options of all methods as keys of itself and of the sections in it: a class derived from it."""
    classes = dict(model.option_classes()) if issubclass(model, MethodSection) else {}
    sections = {name: complete(section) for name, field in model.model_fields.items() if (section := section_of(field))}
    added = (classes, sections)
    if model not in _completed or _completed[model][0] != added:
        keys = {name: _key(owners, field) for name, (owners, field) in _owned(classes).items()}
        if taken := [name for name in keys if name in model.model_fields or hasattr(model, name)]:
            raise TypeError(f"an option must not be called {taken[0]}, which the section has itself")
        for name, section in sections.items():
            if section is not section_of(model.model_fields[name]):
                keys[name] = (section | None, model.model_fields[name])
        made: Any = partial(create_model, model.__name__, __base__=model, __doc__=model.__doc__)
        derived = made(__module__=model.__module__, **keys) if keys else model
        _completed[model] = (added, _in_order(derived, classes) if classes else derived)
    return _completed[model][1]  # type: ignore[return-value]


def _in_order(derived: type[BaseModel], classes: Classes) -> type[BaseModel]:
    """`derived`, with each option behind the key that the option names; pydantic puts all of them at the end."""
    options = _owned(classes)
    order = [name for name in derived.model_fields if name not in options]
    behind = {name: facts(field)["after"] for name, (_, field) in options.items()}
    for kind in classes.values():
        for before, name in pairwise(kind.model_fields):
            behind[name] = behind[name] or before
    while behind:
        name = next((name for name, key in behind.items() if key in (None, *order)), next(iter(behind)))
        key = behind.pop(name)
        order.insert(order.index(key) + 1 if key in order else len(order), name)
    derived.__pydantic_fields__ = {name: derived.model_fields[name] for name in order}
    derived.model_rebuild(force=True)
    return derived


def section_of(field: FieldInfo, *, several: bool = False) -> type[BaseModel] | None:
    """The class of the section, or of the sections in the list, that a key holds; None if it holds a value.

    Of a key that holds either one section or a list of them it is that of the one, or with `several` that in the list.
    """
    found = _sections(field.annotation)
    return found[-1 if several else 0] if found else None


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _owned(classes: Classes) -> dict[str, tuple[list[str], FieldInfo]]:
    """Each option by its name, with who has it."""
    options: dict[str, tuple[list[str], FieldInfo]] = {}
    for owner, kind in classes.items():
        for name, field in kind.model_fields.items():
            owners, first = options.setdefault(name, ([], field))
            if repr(first) != repr(field):
                raise TypeError(f"{owner} and {owners[0]} declare the option {name} differently")
            owners.append(owner)
    return options


def _key(owners: list[str], field: FieldInfo) -> tuple[Any, Any]:
    """The type and the field of a section's key for an option."""
    kind, description = field.rebuild_annotation(), f"{', '.join(owners)}: {field.description}"
    if field.is_required():  # only by those who have it
        return kind | None, Field(None, description=description)
    return kind, Field(field.default, description=description)
