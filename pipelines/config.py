"""From a recipe and `key.path=value` overrides to a Run, or to every problem at once, each with its place and a nearest name.

Nothing heavy is imported here or by the workloads' settings, so a mistake is reported in well under a second.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.errors import RecipeError, nearest
from pipelines.run_settings import Run
from pipelines.settings import Data, Optim, Promote, Scale, Splits, Sweep, Track, Train, flat
from workloads.base import Workload

WORKLOADS = Path(inspect.getfile(Workload)).parent
RECIPES = WORKLOADS / "recipes"
_RECIPE_BYTES = 1_000_000
# what PyYAML 6 raises for text that is no YAML: besides its own, whatever its constructors meet in a bad date, number or tag
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_INSTEAD = {
    "train.epochs": ("train.steps",),
    "train.steps": ("train.epochs",),
    "data.source": ("data.train", "data.validation", "data.test"),
    "data.train": ("data.source",),
}


@dataclass(frozen=True)
class Loaded:
    """A run, and where each of its settings came from (default, recipe, command line)."""

    run: Run
    origins: Mapping[str, str]
    about: Mapping[str, Any]
    """The recipe's `about:`: parameters, and seconds on the machine it was measured on."""
    words: tuple[str, ...] = ()
    """The recipe and the overrides as they were given: the words behind `raylway train` that mean this run."""

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every setting: {dotted key: {"value", "origin"}}."""
        every = flat(self.run.model_dump(mode="json", exclude={"recipe"}))
        return {key: {"value": value, "origin": _origin(key, self.origins)} for key, value in every.items()}

    def chosen(self) -> dict[str, Any]:
        """The settings that the recipe or the command line set: the run's parameters in MLflow."""
        return {key: row["value"] for key, row in self.settings().items() if row["origin"] != "default"}


def recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str, overrides: Sequence[str] = ()) -> Loaded:
    """The run that a recipe (a name or a YAML file) and `key.path=value` overrides describe.

    Raises RecipeError with every problem found: unknown keys with the nearest known one, wrong types, values out of bounds.
    """
    path = _path_of(recipe)
    values, places, problems = copy.deepcopy(_parsed(path, path.read_text(encoding="utf-8", errors="replace")))
    presets: dict[str, dict[str, Any]] = {}
    for key in [key for key in values if key.startswith("presets.")]:
        _, name, *setting = key.split(".")
        presets.setdefault(name, {})[".".join(setting)] = values.pop(key)
    about = {key.removeprefix("about."): values.pop(key) for key in list(values) if key.startswith("about.")}
    origins = dict.fromkeys(values, "recipe")
    _apply_overrides(overrides, values, origins, places, problems, presets=presets, of=path.name)
    return Loaded(_validated(path.stem, values, places, problems), origins, about, (recipe, *overrides))


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line, `key.path=value`; a value that is a mapping is a group. Raises RecipeError."""
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            words += [f"{key}.{word}" for word in words_of(value)]
            continue
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value.item() if hasattr(value, "item") else value
        try:
            text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=float("inf"))
        except yaml.YAMLError:
            raise RecipeError(f"{key}: a {type(value).__name__} is no setting") from None
        words.append(f"{key}={text.removesuffix('...' + chr(10)).strip()}")
    return words


def trained_with(text: str, overrides: Sequence[str] = ()) -> Run:
    """The settings of a run, from the text of its config.yaml, with overrides laid over. Raises RecipeError."""
    path = Path("config.yaml")
    values, places, problems = copy.deepcopy(_parsed(path, text[:_RECIPE_BYTES]))
    recipe = str(values.pop("recipe", path.stem))
    _apply_overrides(overrides, values, dict.fromkeys(values, "recipe"), places, problems, presets={}, of=recipe)
    return _validated(recipe, values, places, problems)


@functools.cache
def workload_class(name: str) -> type[Workload]:
    """The class that `name` (cnn, or workloads.mine:CNN) means. Raises RecipeError."""
    module, _, attribute = name.partition(":")
    dotted = module if module.startswith("workloads.") else f"workloads.{module}"
    if not re.fullmatch(r"workloads(\.[a-z_][a-z0-9_]*)+", dotted) or (attribute and not attribute.isidentifier()):
        raise RecipeError(f"workload: {name!r} names no file of workloads/; write cnn, or workloads.my_file:MyClass")
    try:
        imported = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name != dotted and not dotted.startswith(f"{error.name}."):
            raise
        families = [path.stem for path in WORKLOADS.glob("*.py") if path.stem not in {"__init__", "base", "inference", "judging", "served"}]
        raise RecipeError(f"workload: there is no workloads/{module}.py{nearest(module, families)}") from None
    classes = {
        name: value
        for name, value in vars(imported).items()
        if isinstance(value, type) and issubclass(value, Workload) and value.__module__ == dotted and not inspect.isabstract(value)
    }
    if attribute:
        if attribute not in classes:
            raise RecipeError(f"workload: {dotted} has no workload class {attribute}{nearest(attribute, list(classes))}")
        return classes[attribute]
    if len(classes) != 1:
        raise RecipeError(f"workload: {dotted} has {len(classes)} workload classes ({', '.join(classes)}); write {module}:Class")
    return next(iter(classes.values()))


def _path_of(recipe: str) -> Path:
    if recipe.endswith((".yaml", ".yml")) or os.sep in recipe:
        path = Path(recipe)
        if not path.is_file():
            raise RecipeError(f"{recipe}: there is no such recipe file")
    else:
        path = RECIPES / f"{recipe}.yaml"
        if recipe not in recipes():
            raise RecipeError(f"{recipe}: no such recipe{nearest(recipe, recipes())}; there are: {', '.join(recipes())}")
    if path.stat().st_size > _RECIPE_BYTES:
        raise RecipeError(f"{recipe}: a recipe larger than {_RECIPE_BYTES:,} bytes is no recipe")
    return path


@functools.lru_cache(maxsize=8)  # a sweep reads the same recipe for each trial
def _parsed(path: Path, text: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(dotted key -> value, dotted key -> file:line, problems) of a YAML file's text. Aliases are refused: they can be bombs."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError(f"{path}: YAML aliases (*name) are not read")
        root = yaml.compose(text, yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', None) or type(error).__name__}") from None
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a mapping of settings, such as `workload: cnn`")

    def walk(node: yaml.MappingNode, subtree: Mapping[Any, Any], prefix: str) -> None:
        for key_node, value_node in node.value:
            name, place = str(key_node.value), f"{path.name}:{key_node.start_mark.line + 1}"
            key = prefix + name
            if key in places:
                problems.append(f"{key}: written twice ({places[key]} and {place})")
            places[key] = place
            value = subtree.get(name)
            if isinstance(value_node, yaml.MappingNode) and value_node.value and isinstance(value, Mapping):
                walk(value_node, value, f"{key}.")
            else:
                values[key] = value

    walk(root, tree, "")
    return values, places, problems


def _apply_overrides(
    overrides: Sequence[str],
    values: dict[str, Any],
    origins: dict[str, str],
    places: dict[str, str],
    problems: list[str],
    *,
    presets: Mapping[str, dict[str, Any]],
    of: str,
) -> None:
    """Put `key.path=value` overrides over `values`, presets first."""
    for override in sorted(overrides, key=lambda override: not override.startswith("preset=")):
        key, equals, text = override.partition("=")
        if key == "preset":
            if text not in presets:
                problems.append(f"preset: {of} has no preset {text!r}{nearest(text, list(presets))}; it has: {', '.join(presets)}")
            for name, value in presets.get(text, {}).items():
                _replace(name, {name: value}, f"preset {text}", values, origins)
            continue
        if not equals or not all(key.split(".")):
            problems.append(f"{override}: an override is written key.path=value")
            continue
        if key == "recipe":
            problems.append("recipe: the recipe is the command's first word, not a setting")
            continue
        try:
            value = yaml.safe_load(text)
        except _YAML_ERRORS:
            value = text
        given = flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
        _replace(key, given, "command line", values, origins)
        places |= dict.fromkeys(given, "command line")


def _replace(key: str, given: Mapping[str, Any], origin: str, values: dict[str, Any], origins: dict[str, str]) -> None:
    """Put `given`, the settings at and below `key`, in the place of what stands there."""
    for covered in [known for known in values if f"{known}.".startswith(f"{key}.") or key.startswith(f"{known}.")]:
        del values[covered]
        del origins[covered]
    for other in _INSTEAD.get(key, ()):  # the later of two ways to say the same wins
        values.pop(other, None)
        origins.pop(other, None)
    values.update(given)
    origins.update(dict.fromkeys(given, origin))


def _validated(recipe: str, values: dict[str, Any], places: dict[str, str], problems: list[str]) -> Run:
    """The settings tree of `values`. Raises RecipeError with `problems` and all that are wrong with the values."""
    sentences: dict[str, str] = {}  # the first problem of each key; later ones are mostly its consequences
    if "recipe" in values:
        sentences["recipe"] = "recipe: the recipe's name is its file's; it is no setting"
    groups: dict[str, type[BaseModel]] = {kind.__name__.lower(): kind for kind in (Data, Optim, Train, Scale, Track, Sweep, Promote)}
    if "workload" not in values:
        sentences["workload"] = "workload: missing; a recipe names the file of workloads/ that it trains, such as `workload: cnn`"
    else:
        try:
            groups["model"] = workload_class(str(values["workload"]))
        except RecipeError as error:
            sentences["workload"] = "\n".join(error.problems)
    known = _known_keys(groups)
    parts: dict[str, Any] = {"model": {}, "data": {}, "train": {}} | _nest(values, problems) | {"recipe": recipe}
    for group, kind in groups.items():
        try:
            if group in parts:
                parts[group] = kind.model_validate(parts[group])
        except ValidationError as error:
            parts[group], sentences[group] = None, ""
            for key, sentence in _sentences(error, f"{group}.", places, known):
                sentences.setdefault(key, sentence) if key != group else sentences.update({group: sentence})
    if "model" not in groups:
        parts["model"], sentences["model"] = None, ""
    try:
        run = Run.model_validate(parts)
    except ValidationError as error:
        for key, sentence in _sentences(error, "", places, known):
            sentences.setdefault(key, sentence)
    problems.extend(sentence for sentence in sentences.values() if sentence)
    if problems:
        raise RecipeError(*problems)
    return run


def _sentences(error: ValidationError, prefix: str, places: Mapping[str, str], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    for problem in error.errors(include_url=False):
        # of a union, pydantic puts the branch that it tried into the place: `literal[False]`, `function-after[…]`, `int`
        place = [str(part) for part in problem["loc"] if not ("[" in str(part) or part in ("int", "str", "float", "bool"))]
        key = (prefix + ".".join(place)).rstrip(".")
        where = f" ({places[key]})" if key in places else ""
        if problem["type"] == "extra_forbidden":
            yield key, f"{key}: no such setting{nearest(key, known)}{where}"
        elif problem["type"] == "missing":
            yield key, f"{key}: missing; it has no default"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = f", not {_short(problem['input'])}" if problem["type"] != "value_error" else ""
            yield key, f"{key}: {message[0].lower()}{message[1:]}{shown}{where}" if key else f"{message}{where}"


def _short(given: Any) -> str:
    """A value as the user would recognise it; nothing of what is not a plain one."""
    if not isinstance(given, (str, int, float)):
        return f"a {type(given).__name__}"
    if isinstance(given, int) and given.bit_length() > 200:  # Python refuses to print very long ones
        return f"a number of {given.bit_length():,} bits"
    return reprlib.repr(given)


def _known_keys(groups: Mapping[str, type[BaseModel]]) -> list[str]:
    top = [name for name in Run.model_fields if name not in groups and name != "recipe"]
    inside = [f"{group}.{field.alias or name}" for group, kind in groups.items() for name, field in kind.model_fields.items()]
    return [*top, *groups, *inside] + [f"data.splits.{name}" for name in Splits.model_fields]


def _nest(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                problems.append(f"{key}: {parent} is a value, not a group")
                break
            node = child
        else:
            node[last] = value
    return tree


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The origin of a setting, or of the nearest group above it that was set as a whole."""
    return origins.get(key) or (_origin(key.rpartition(".")[0], origins) if "." in key else "default")
