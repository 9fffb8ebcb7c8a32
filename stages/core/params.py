"""params.yaml, read strictly: a stage sees the sections dvc.yaml declares for it and nothing else.

    params = read_params("dpo")
    dpo, random_seed = params.section("dpo", DpoParams), params.random_seed

Each stage describes its section as a pydantic model (a `Section`), so a mistyped key or a value out
of range stops the run with the key's name before any work is done. `python -m stages.tools check`
checks them all.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.errors import LibraError

PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")
# How a run is carried out. No stage declares these sections, so a change to them re-runs nothing.
SETTINGS = ("budget", "connections")


class _Loader(yaml.SafeLoader):
    """PyYAML with the floats of YAML 1.2: to YAML 1.1, `1e-05`, as DVC writes it, is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


class Section(BaseModel):
    """Base of a stage's params: unknown keys are refused, and values aren't converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


S = TypeVar("S", bound=Section)


def read_params(stage: str) -> "Params":
    """The params that dvc.yaml declares for `stage`.

    Raises LibraError if a file is missing or isn't YAML, or if the stage isn't in dvc.yaml.
    """
    stages = read_yaml(DVC_YAML).get("stages", {})
    if stage not in stages:
        raise LibraError(f"dvc.yaml has no stage `{stage}`; run this from the project's top folder")
    declared = [entry for entry in stages[stage].get("params", []) if isinstance(entry, str)]
    return Params(stage, declared, read_yaml(PARAMS))


class Params:
    """The declared part of params.yaml, and the settings of a run."""

    def __init__(self, stage: str, declared: list[str], values: dict[str, Any]):
        self._stage, self._declared, self._values = stage, declared, values

    def section(self, name: str, model: type[S]) -> S:
        """Section `name`, checked against `model`. Raises LibraError naming every wrong key."""
        return check_section(name, self._get(name), model)

    def settings(self, name: str, model: type[S]) -> S:
        """Section `name` of SETTINGS, checked against `model`: it can't change a result.

        Raises LibraError that names every wrong key, and when dvc.yaml declares the section.
        """
        if name not in SETTINGS:
            raise LibraError(f"`{name}` is a param of a stage, not a setting of a run")
        if name in self._declared:
            raise LibraError(
                f"dvc.yaml declares `{name}` for stage `{self._stage}`, but it can't change a "
                "result; remove it there, or each change to it re-runs the stage"
            )
        return check_section(name, self._value(name), model)

    @property
    def random_seed(self) -> int:
        """The random seed of the whole pipeline (a seed, by contrast, is a request)."""
        return check_random_seed(self._get("random_seed"))

    def _get(self, name: str) -> Any:
        if name not in self._declared:
            raise LibraError(
                f"stage `{self._stage}` reads params `{name}` that dvc.yaml doesn't declare for it"
            )
        return self._value(name)

    def _value(self, name: str) -> Any:
        if name not in self._values:
            raise LibraError(f"params.yaml has no `{name}`{did_you_mean(name, self._values)}")
        return self._values[name]


def check_section(name: str, values: Any, model: type[S], source: str = "params.yaml") -> S:
    """`values` of section `name` as `model`; with name "" they are all of `source`.

    Raises LibraError listing every wrong key and what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = sorted(model.model_fields)
        lines = []
        for fault in error.errors():
            key = ".".join([*filter(None, [name]), *map(str, fault["loc"])])
            if fault["type"] == "extra_forbidden":
                hint = did_you_mean(str(fault["loc"][0]), known) if len(fault["loc"]) == 1 else ""
                lines.append(f"`{key}` is not a param{hint}")
            elif fault["type"] == "missing":
                lines.append(f"`{key}` is missing")
            elif fault["type"] == "value_error":  # our own check, over several keys
                lines.append(
                    f"`{key}`: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
                )
            else:
                lines.append(f"`{key}`: {fault['msg']} (got {fault['input']!r})")
        raise LibraError(f"{source}: " + "; ".join(lines)) from None


def check_random_seed(value: Any) -> int:
    """`value` as the random seed. Raises LibraError if it isn't a whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LibraError(
            f"params.yaml: random_seed must be a whole number of at least 0, not {value!r}"
        )
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean ...?` for a name close to `name`, else the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises LibraError if the file is missing or isn't one."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506
    except FileNotFoundError:
        raise LibraError(f"{path} not found; run this from the project's top folder") from None
    except yaml.YAMLError as error:
        raise LibraError(f"{path} isn't valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise LibraError(f"{path} must be a mapping of sections")
    return loaded
