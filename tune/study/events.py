"""What each event of a journal holds: checked where a journal is read, since a history is built from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, Strict, ValidationError, model_validator

from imf_core.files.json_files import Stored, told

_Numbers = dict[str, FiniteFloat]
_Pair = Annotated[tuple[FiniteFloat, FiniteFloat], Strict(False)]
_Known = Annotated[tuple[dict[str, Any], FiniteFloat], Strict(False)]


class _Event(Stored):
    at: FiniteFloat = 0.0


class _Study(_Event):
    name: str = ""
    tied: dict[str, Any] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)
    known: list[_Known] = Field(default_factory=list)
    note: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)


class _Session(_Event):
    at: FiniteFloat
    trials: NonNegativeInt
    budget: FiniteFloat | None = None
    extend: NonNegativeInt | None = None


class _OfTrial(_Event):
    trial: str


class _Ask(_OfTrial):
    params: dict[str, Any]
    number: NonNegativeInt = 0
    until: PositiveInt | None = None


class _Resume(_OfTrial):
    until: PositiveInt


class _Report(_OfTrial):
    epoch: NonNegativeInt
    numbers: _Numbers
    at: FiniteFloat
    seconds: FiniteFloat


class _Tell(_OfTrial):
    value: FiniteFloat | None
    error: bool
    diverged: bool = False
    stopped: bool = False
    epoch: NonNegativeInt = 0
    seconds: FiniteFloat = 0.0
    numbers: _Numbers = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> _Tell:
        if self.epoch and not {"at", "seconds", "numbers"} <= self.model_fields_set:
            raise ValueError("it lacks a part of its last report")
        return self


class _Budget(_Event):
    pace: dict[str, FiniteFloat]
    max_epochs: NonNegativeInt
    runs: NonNegativeInt


class _Finals(_Event):
    winner: str
    runs: NonNegativeInt
    max_epochs: NonNegativeInt | None


class _Duel(_Event):
    first: str
    second: str
    winner: str
    seed: int
    mrr: _Pair


class _Final(_Event):
    winner: str
    asked: list[int]
    seeds: list[int]
    validation: list[FiniteFloat]
    test: list[_Numbers]
    structure_only: FiniteFloat | None
    without: _Numbers
    control: str
    decisions: dict[str, Any]
    pooled: dict[str, Any] | None
    baseline: dict[str, Any] | None
    margins: dict[str, _Pair] = Field(default_factory=dict)
    pool: dict[str, Any] | None = None
    duel: dict[str, Any] | None = None
    footprints: dict[str, _Numbers] = Field(default_factory=dict)


_KINDS: dict[str, type[_Event]] = {
    "study": _Study, "session": _Session, "ask": _Ask, "report": _Report, "retry": _OfTrial, "pause": _OfTrial,
    "resume": _Resume, "tell": _Tell, "budget": _Budget, "finals": _Finals, "duel": _Duel,
    "final": _Final,
}


def wrong_event(event: dict[str, Any]) -> str:
    """What is wrong with an event by itself; empty if nothing is, or if its kind is not known."""
    try:
        _KINDS.get(event["event"], _Event).model_validate(event)
    except ValidationError as error:
        return f"an event {event['event']}: {told(error)}"
    return ""
