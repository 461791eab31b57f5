"""Manifest rows and configurations with anything in them: accepted, or refused in a sentence that names the key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.config import ConfigError, TrainingConfig, load_config, parse_config
from training.manifest import FIELDS, check_row

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, float("nan"), float("inf"), 1e308])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "", "\0", "train", "synthetic"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
CONFIGURATIONS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    manifest = Path(__file__).parents[2] / "training" / "benchmark" / "test.jsonl"
    return dict(json.loads(manifest.read_text().splitlines()[1]))


@EXAMPLES
@given(data=st.data())
def test_any_value_of_a_row_is_accepted_or_named(row: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(FIELDS[row["kind"]]) + ["kind"]))
    value = data.draw(ANYTHING)
    changed = copy.deepcopy(row) | {key: value}
    try:
        checked = check_row(changed)
    except ValueError as error:
        text = str(error)
        assert text.startswith("manifest row ") and "\n" not in text and len(text) < 1000
        assert key in text or (key in ("num_takes", "bed_path", "music_stems") and "values, expected" in text)
    else:
        assert checked[key] == value
        texts = value if isinstance(value, list) else [value]
        if key.endswith("_path") or key == "music_stems":
            assert not any(str(text).startswith("/") or ".." in Path(str(text)).parts for text in texts)


@EXAMPLES
@given(value=ANYTHING)
def test_anything_is_no_row(value: Any) -> None:
    if isinstance(value, dict):
        with pytest.raises(ValueError, match="manifest row"):
            check_row(value)


@EXAMPLES
@given(data=st.data())
def test_any_value_of_a_configuration_is_accepted_or_named(data: st.DataObject) -> None:
    values = yaml.safe_load(data.draw(st.sampled_from(CONFIGURATIONS[:1])).read_text())
    sections = TrainingConfig.model_fields
    section = data.draw(st.sampled_from(sorted(sections)))
    value = data.draw(ANYTHING)
    inner = getattr(sections[section].annotation, "model_fields", None)
    if inner and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(inner)))
        values[section] = {**(values.get(section) or {}), key: value}
    else:
        key = section
        values[section] = value
    try:
        parse_config(values)
    except ConfigError as error:
        assert section in str(error) and "Traceback" not in str(error)


@EXAMPLES
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_file_is_a_configuration_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except ConfigError as error:
        assert "any.yaml" in str(error)
