"""Groups of command-line options as dataclasses, reusable in any command, each with its own section of the help."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo


class OptionGroup:
    """Base of a group: a dataclass whose fields are ``Annotated[type, typer.Option(...)]``, each with a default.

    A command takes a group as a parameter of this type; :func:`expand_groups` turns it into one parameter a field,
    so field names must differ between the groups of a command.
    """

    panel: ClassVar[str]
    """Heading of the group's options in ``--help``."""


def expand_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a command's option groups by their fields in the signature that Typer reads.

    Raises:
        TypeError: two parameters have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[OptionGroup]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and issubclass(hint, OptionGroup):
            groups[parameter.name] = hint
            parameters += _parameters(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    names = [parameter.name for parameter in parameters]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__} has two parameters named {', '.join(sorted(repeated))}")

    def expanded(**values: Any) -> Any:
        arguments = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})  # type: ignore[arg-type]
            for name, group in groups.items()
        }
        return command(**arguments, **values)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return expanded


def _parameters(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_in_panel(hints[field.name], group.panel),
        )
        for field in fields(group)  # type: ignore[arg-type]
    ]


def _in_panel(hint: Any, panel: str) -> Any:
    """Return an option's annotation with its help panel set."""
    assert get_origin(hint) is Annotated, hint
    kind, *metadata = get_args(hint)
    (option,) = (item for item in metadata if isinstance(item, OptionInfo))
    # Copied, since several groups may share a declaration.
    option = copy.copy(option)
    option.rich_help_panel = panel
    return Annotated[kind, option]


class SectionedCommand(TyperCommand):
    """A command whose plain help has a section for each panel, in the order of declaration.

    Typer draws panels only with rich, which takes 0.1 s to import and reads ``[...]`` in help texts as markup.
    """

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = _help_record(parameter, ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(panel or default, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the arguments as they are declared, then the options."""
        parameters: list[Any] = list(self.get_params(ctx))
        arguments = [_written(each) for each in parameters if each.param_type_name == "argument"]
        formatter.write_usage(ctx.command_path, " ".join([*arguments, "[OPTIONS]"]))

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples of the epilog, a line each, which are not wrapped."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _written(argument: Any) -> str:
    """Write an argument as in a usage line, in brackets if it may be left out."""
    name: str = argument.metavar or argument.name.upper()
    return name if argument.required or "[" in name else f"[{name}]"


def _help_record(parameter: Any, ctx: typer.Context) -> tuple[str, str] | None:
    """Return an option's names and help, with names for people of other programs after the help."""
    long = [name for name in parameter.opts if name.startswith("--")]
    record: tuple[str, str] | None = parameter.get_help_record(ctx)
    if record is not None and parameter.param_type_name == "argument":
        return _written(parameter), record[1].removesuffix("  [required]")
    if len(long) < 2:
        return record
    shown = copy.copy(parameter)
    shown.opts = [name for name in parameter.opts if name not in long[1:]]
    record = shown.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    return names, f"{text}  [also {', '.join(long[1:])}]"
