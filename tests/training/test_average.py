import pytest
import torch
from safetensors.torch import load_file, save_file

from training.average import ENCODER, UNET, main


@pytest.fixture
def before(toy_model, tmp_path):
    """A copy of the toy model with every weight 0.5 higher."""
    for path in (UNET, ENCODER):
        folder = tmp_path / "before" / path.parent
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((toy_model / path.parent / "config.json").read_text())
        state = {name: value + 0.5 for name, value in load_file(toy_model / path).items()}
        save_file(state, tmp_path / "before" / path, metadata={"format": "pt"})
    return tmp_path / "before"


def call(before, after, share, out) -> int:
    return main(["--before", str(before), "--after", str(after), "--share", str(share), "--out", str(out)])


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_weights_lie_between_and_all_else_stays(before, toy_model, tmp_path, share):
    out = tmp_path / "out"
    assert call(before, toy_model, share, out) == 0
    for path in (UNET, ENCODER):
        found, after = load_file(out / path), load_file(toy_model / path)
        for name, value in after.items():
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name].float(), value.float() + (1 - share) * 0.5, rtol=1e-3, atol=1e-3)
    files = {path.relative_to(toy_model) for path in toy_model.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files
    for path in files - {UNET, ENCODER}:
        assert (out / path).read_bytes() == (toy_model / path).read_bytes()


def test_bad_input_is_one_line(before, toy_model, tmp_path, capsys):
    assert call(before, toy_model, 1.5, tmp_path / "out") == 1
    assert "within 0 and 1" in capsys.readouterr().err
    assert call(tmp_path / "nosuch", toy_model, 0.5, tmp_path / "out") == 1
    assert "nosuch" in capsys.readouterr().err
    state = load_file(before / ENCODER)
    state.popitem()
    save_file(state, before / ENCODER, metadata={"format": "pt"})
    assert call(before, toy_model, 0.5, tmp_path / "out") == 1
    assert "different architectures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
