"""How endpoints are reached: section `connections` of params.yaml, a setting of a run.

    connections = params.settings("connections", Connections)
    teacher = connections.for_teacher(params.section("teacher", ChatModel))    # an Endpoint

`connections.default` holds for all endpoints; `teacher`, `judge.NAME` and `respond.NAME` hold what
differs. Stages don't declare the section, so another concurrency or price re-runs nothing.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from stages.chat.protocol import ChatModel, Connection, Endpoint
from stages.core.errors import LibraError
from stages.core.params import Section, did_you_mean


class Connections(Section):
    """Section `connections`."""

    default: Connection
    teacher: Connection = Field(default_factory=Connection)
    judge: dict[str, Connection] = Field(default_factory=dict)
    respond: dict[str, Connection] = Field(default_factory=dict)

    def for_teacher(self, teacher: ChatModel) -> Endpoint:
        """The teacher with its connection."""
        return self._joined(teacher, self.teacher)

    def for_judges(self, panel: Mapping[str, ChatModel]) -> dict[str, Endpoint]:
        """The members of `judge.panel` by name. Raises LibraError for a name the panel lacks."""
        _check_names("judge", self.judge, "a member of judge.panel", panel)
        return {name: self._joined(member, self.judge.get(name)) for name, member in panel.items()}

    def for_candidates(self, candidates: Mapping[str, Any]) -> dict[str, Endpoint]:
        """The endpoints among `respond.candidates`, by name; the others run in this process.

        Raises LibraError for a name that isn't such a candidate.
        """
        models = {name: one for name, one in candidates.items() if isinstance(one, ChatModel)}
        _check_names("respond", self.respond, "an endpoint in respond.candidates", models)
        return {name: self._joined(model, self.respond.get(name)) for name, model in models.items()}

    def _joined(self, model: ChatModel, own: Connection | None) -> Endpoint:
        values = _set_keys(model) | _set_keys(self.default) | (_set_keys(own) if own else {})
        return Endpoint(**values)


def _set_keys(section: Section) -> dict[str, Any]:
    return {key: getattr(section, key) for key in section.model_fields_set}


def _check_names(key: str, names: Mapping[str, Any], kind: str, known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if known else "; there is none"
            raise LibraError(f"params.yaml: `connections.{key}.{name}` is not {kind}{hint}")
