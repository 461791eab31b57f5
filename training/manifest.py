"""Manifests of pairs: JSON lines, a header with the versions that made them, then one flat row a pair, all checked."""

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from reprlib import repr  # of bounded length: a value may be anything
from typing import Any

from training.codecs import CODECS
from training.degrade import LOCAL_NOISES, RANGES, TRAINING_CONDITIONS
from training.device import Device

SPLITS = ("train", "validation", "test")
# Whatever decides which bits a row renders to.
PACKAGES = ("numpy", "scipy", "soundfile", "soxr", "av")
MAX_SECONDS = 600.0


@dataclass(frozen=True)
class Number:
    """A finite number between two bounds; `whole` ones are integers. `per` names the row's key that counts a list."""

    low: float
    high: float
    whole: bool = False
    per: str = ""

    def complaint(self, value: Any) -> str:
        """Why a single value is wrong, or an empty string."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return f"must be {'a whole number' if self.whole else 'a number'}, not {repr(value)}"
        if not self.low <= value <= self.high:  # true of NaN, too
            return f"is {repr(value)}, outside {self.low:g} to {self.high:g}"
        return ""


@dataclass(frozen=True)
class Text:
    """A string: a plain relative path, or one of `choices`; `optional` allows the empty string."""

    choices: tuple[str, ...] = ()
    path: bool = False
    optional: bool = False
    per: str = ""

    def complaint(self, value: Any) -> str:
        """Why a single value is wrong, or an empty string."""
        if not isinstance(value, str):
            return f"must be a string, not {repr(value)}"
        if not value:
            return "" if self.optional else "is empty"
        if self.choices and value not in self.choices:
            return f"is {repr(value)}, not one of {', '.join(self.choices)}"
        if self.path:
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or "\\" in value or ":" in path.parts[0]:
                return f"is {repr(value)}: only plain paths relative to the data folder are allowed"
        return ""


Field = Number | Text

_COMMON: dict[str, Field] = {
    "row_id": Number(0, 2**53, whole=True),
    "seed": Number(0, 2**53, whole=True),
    "split": Text(choices=SPLITS),
    "condition": Text(choices=TRAINING_CONDITIONS),
    "sample_rate": Number(8000, 192_000, whole=True),
    "seconds": Number(0.1, MAX_SECONDS),
    "channels": Number(1, 2, whole=True),
    "num_takes": Number(1, 4, whole=True),
}


def _per_take(field: Number | Text) -> Field:
    values = {item.name: getattr(field, item.name) for item in fields(field)} | {"per": "num_takes"}
    return type(field)(**values)


_LEVEL_DB = Number(-120.0, 60.0)
_FREQUENCY_HZ = Number(0.0, 96_000.0)
_SECONDS = Number(0.0, 86_400.0)
_PATH = Text(path=True)

_DEVICE: dict[str, Field] = {
    "rolloff_hz": _FREQUENCY_HZ,
    "rolloff_db": _LEVEL_DB,
    "low_cut_hz": _FREQUENCY_HZ,
    "low_cut_order": Number(1, 8, whole=True),
    "presence_hz": Number(20.0, 96_000.0),
    "presence_db": _LEVEL_DB,
    "presence_octaves": Number(0.01, 4.0),
    "tilt_db_per_octave": Number(-12.0, 12.0),
    "stop_hz": Number(20.0, 96_000.0),
    "stop_db": _LEVEL_DB,
    "stop_octaves": Number(0.01, 4.0),
    "band_limit_hz": _FREQUENCY_HZ,
    "agc_ratio": Number(1.0, 100.0),
    "agc_attack_s": Number(1e-4, 10.0),
    "agc_release_s": Number(1e-4, 10.0),
    "drive_db": Number(0.0, 60.0),
    "clip_db": Number(0.0, 60.0),
    "resample_hz": Number(0, 192_000, whole=True),
    "bits": Number(0, 24, whole=True),
    "codec": Text(choices=tuple(CODECS), optional=True),
    "bitrate_kbps": Number(0, 512, whole=True),
    "level_db": _LEVEL_DB,
}
assert list(_DEVICE) == [field.name for field in fields(Device)]

_SYNTHETIC: dict[str, Field] = {
    "ranges": Text(choices=tuple(RANGES)),
    "music_path": _PATH,
    "music_stems": Text(path=True, per="music_stems"),
    "music_offset_s": _SECONDS,
    "lead_in_s": Number(0.0, 60.0),
    "pa_low_hz": Number(20.0, 96_000.0),
    "pa_low_db": _LEVEL_DB,
    "pa_mid_hz": Number(20.0, 96_000.0),
    "pa_mid_db": _LEVEL_DB,
    "pa_high_hz": Number(20.0, 96_000.0),
    "pa_high_db": _LEVEL_DB,
    "pa_cut_hz": _FREQUENCY_HZ,
    "pa_limit_hz": _FREQUENCY_HZ,
    "crosstalk_db": _LEVEL_DB,
    "spill_db": _LEVEL_DB,
    "spill_delay_s": Number(0.0, 1.0),
    "rir_path": _PATH,
    "venue": Text(),
    "music_in_room": Number(0, 1, whole=True),
    "rir_left": _per_take(Number(0, 4096, whole=True)),
    "rir_right": _per_take(Number(0, 4096, whole=True)),
    "drr_db": _per_take(_LEVEL_DB),
    "rt60_s": Number(0.01, 60.0),
    "decay_per_s": Number(0.0, 1000.0),
    "bed_path": Text(path=True, per="bed_path"),
    "bed_offset_s": Number(0.0, 86_400.0, per="bed_path"),
    "bed_db": Number(-120.0, 60.0, per="bed_path"),
    "snr_db": _per_take(_LEVEL_DB),
    "crowd_in_room": Number(0.0, 1.0),
    "crowd_own": Number(0.0, 1.0),
    "misalignment_s": _per_take(Number(-0.1, 0.1)),
}
for _kind in LOCAL_NOISES:
    _SYNTHETIC[f"{_kind}_path"] = _per_take(Text(path=True, optional=True))
    _SYNTHETIC[f"{_kind}_offset_s"] = _per_take(_SECONDS)
    _SYNTHETIC[f"{_kind}_snr_db"] = _per_take(Number(-60.0, 120.0))
_SYNTHETIC |= {name: _per_take(field) for name, field in _DEVICE.items()}

# Recordings in files: real pairs are aligned on load, rendered ones are aligned already.
_RECORDED: dict[str, Field] = {
    "recordings": Text(path=True, per="num_takes"),
    "clean": _PATH,
    "offset_s": _SECONDS,
}

FIELDS: dict[str, dict[str, Field]] = {
    "synthetic": _COMMON | _SYNTHETIC,
    "rendered": _COMMON | _RECORDED | {"early": _PATH},
    "real": _COMMON | _RECORDED,
}


def check_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest row that is fit to be rendered, without the empty columns that a table of mixed rows adds.

    Raises:
        ValueError: naming the row and the key that is missing, of the wrong type, absurd, or a path out of its folder.
    """
    name = f"manifest row {repr(row.get('row_id', '?'))}"
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"{name}: kind is {repr(kind)}, not one of {', '.join(FIELDS)}")
    checked: dict[str, Any] = {"kind": kind}
    for key, field in FIELDS[kind].items():
        value = row.get(key)
        if value is None:
            raise ValueError(f"{name}: {key} is missing")
        if field.per:
            if not isinstance(value, list):
                raise ValueError(f"{name}: {key} must be a list, not {repr(value)}")
            count = row[field.per] if field.per == "num_takes" else len(checked.get(field.per, value))
            if len(value) != count:
                raise ValueError(f"{name}: {key} has {len(value)} values, expected {count}")
        for item in value if field.per else [value]:
            if complaint := field.complaint(item):
                raise ValueError(f"{name}: {key} {complaint}")
        checked[key] = value
    return checked


def versions() -> dict[str, str]:
    """Versions of what renders a row."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def check_header(header: Mapping[str, Any]) -> None:
    """Warn if other library versions wrote the manifest: its rows may render to other bits."""
    written = {name: found for name, found in (header.get("versions") or {}).items() if name in PACKAGES}
    here = versions()
    different = [f"{name} {found} (here {here[name]})" for name, found in written.items() if here[name] != found]
    if different:
        warnings.warn(
            f"the manifest was written with {', '.join(different)}: its rows may differ in the last bits", stacklevel=2
        )


def read_header(path: Path) -> dict[str, Any]:
    """The header row of a manifest in a file."""
    with open(path, encoding="utf-8") as file:
        try:
            header = json.loads(file.readline())
        except json.JSONDecodeError:
            header = None
    if not isinstance(header, dict) or header.get("kind") != "header":
        raise ValueError(f"{path} has no header row: it is not a manifest of pairs")
    return header
