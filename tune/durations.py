"""Durations such as 1h30m: parse them to seconds and format them."""

from __future__ import annotations

import math
import re

from imf_core.errors import ConfigError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str | float) -> float:
    """Seconds (> 0) of `20m`, `90s`, `1h30m`, `1.5h`, `2d` or a plain number.

    Raises:
        ConfigError: not a duration, or not positive and finite.
    """
    remedy = "write 90s, 20m, 1h30m or plain seconds"
    cleaned = str(text).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])\s*", cleaned)
    units = "".join(unit for _, unit in parts)
    if parts and re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[dhms]\s*)+", cleaned) and re.fullmatch(r"d?h?m?s?", units):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        try:
            seconds = float(cleaned)
        except ValueError:
            raise ConfigError(f"{text!r} is not a duration", remedy=remedy, key="budget", value=text) from None
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"the duration {text!r} is not positive and finite", remedy=remedy, key="budget", value=text)
    return seconds


def duration(seconds: float) -> str:
    """Seconds as `1h05m`, `5m01s` or `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
