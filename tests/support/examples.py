"""How many examples Hypothesis tries."""

from __future__ import annotations

from hypothesis import settings


def examples(nightly: int) -> settings:
    """The settings of a property: 25 examples, or with `--hypothesis-profile=nightly` as many as are given."""
    return settings(max_examples=nightly) if settings.get_current_profile_name() == "nightly" else settings()
