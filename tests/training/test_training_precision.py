"""What a device cannot do is refused; fp16 scales its loss."""

import io

import pytest
import torch

from compresskd.training.precision import check_compile, check_precision


def test_fp16_without_a_gpu_is_refused_with_a_way_out(train, make_recipe):
    words = "precision: got 'fp16', expected"
    with pytest.raises(ValueError, match=words):
        train(recipe=make_recipe(precision="fp16"))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: got 'half', expected fp32, bf16, fp16"):
        check_precision("half", torch.device("cpu"))


def test_bf16_on_an_older_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")
    with pytest.raises(ValueError, match="precision: got 'bf16', expected"):
        check_precision("bf16", torch.device("cuda"))


def test_compile_without_a_compiler_is_refused(train, make_recipe, monkeypatch):
    monkeypatch.setattr("compresskd.training.precision.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="compile: got true, expected"):
        train(recipe=make_recipe(compile=True))
    check_compile(False, torch.device("cpu"))


def test_bf16_trains_like_fp32(train, make_recipe):
    exact, rough = (train(recipe=make_recipe(precision=p))[1].history[-1] for p in ("fp32", "bf16"))
    assert rough.train["loss"] == pytest.approx(exact.train["loss"], rel=0.05)
    assert rough.train["loss"] != exact.train["loss"]


def test_fp16_scales_the_loss_clips_what_is_unscaled_and_resumes(train, make_recipe, monkeypatch):
    """The scaler's path, with the CPU's own scaler in place of the GPU's."""
    monkeypatch.setattr("compresskd.training.loop.check_precision", lambda *_: None)
    kept = []

    def keep(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        kept.append(buffer.getvalue())

    plain = train(recipe=make_recipe(gradient_clip=0.5))[1]
    recipe = make_recipe(precision="fp16", gradient_clip=0.5, checkpoint_seconds=1e-9)
    model, result = train(recipe=recipe, checkpoint=keep)
    assert result.history[-1].train["loss"] == pytest.approx(plain.history[-1].train["loss"], rel=0.1)
    state = torch.load(io.BytesIO(kept[10]), weights_only=True)
    assert state["scaler"]["scale"] > 1
    again, _ = train(recipe=recipe, resume=state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
