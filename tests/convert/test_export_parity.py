"""The check of an export: what it compares, what it writes down, and that a difference stops it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from small_models import NO_TORCH, make_model, make_tokenizer

from plip_jax.convert.export_format import (
    ConsumerFeatures,
    ConsumerUnusable,
    ExportError,
    ExportFormat,
    ParityInputs,
    round_params,
)
from plip_jax.convert.hf import read_hf, write_hf
from plip_jax.convert.hf_format import HF
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.convert.names import WeightsError
from plip_jax.convert.parity import (
    TEXTS,
    check_export,
    hash_inputs,
    our_features,
    parity_images,
    parity_inputs,
    public_description,
    read_parity,
    relative_difference,
)
from plip_jax.convert.safetensors_file import read_safetensors_file
from plip_jax.data.image import Preprocessing
from plip_jax.data.tokenizer import train_tokenizer
from plip_jax.export import EXPORTERS, export

_OTHER_TOKENIZER = train_tokenizer(["other words, another vocabulary"], vocab_size=560, context_length=16)


def _check(model: LoadedModel, folder: Path, changed: ExportFormat, dtype: str = "float32", **changes: Any) -> Any:
    return check_export(model, folder, changed, name="hf", dtype=dtype, version="0", **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    HF.write(folder, make_model(), "float32")
    return folder


def _consumer(change: Any = lambda image, text: (image, text)) -> ExportFormat:
    """A consumer that computes what plip_jax does, but for a change."""

    def features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures:
        model = make_model()
        return ConsumerFeatures("another 1.0", *change(*our_features(model.config, model.params, inputs)))

    return dataclasses.replace(HF, consumer_features=features, consumer_inputs=None)


def test_a_difference_is_relative_to_the_largest_value_and_nan_is_one() -> None:
    ours = np.array([[-4.0, 1.0], [0.5, 0.0]], np.float32)
    theirs = np.array([[-4.0, 1.0], [0.5, 0.25]], np.float32)
    assert relative_difference(ours, theirs) == 0.0625
    assert relative_difference(ours, ours) == 0
    assert np.isnan(relative_difference(ours, np.full((2, 2), np.nan, np.float32)))
    with pytest.raises(ExportError, match=r"expected features of shape \(2, 2\), got \(2, 3\)"):
        relative_difference(ours, np.zeros((2, 3), np.float32))


def test_the_inputs_are_fixed_and_of_several_kinds() -> None:
    model = make_model()
    inputs = parity_inputs(model)
    assert inputs.pixel_values.shape == (4, 32, 32, 3)
    assert inputs.tokens.shape == (5, 16)
    assert hash_inputs(inputs) == hash_inputs(parity_inputs(model))
    other = dataclasses.replace(inputs, tokens=inputs.tokens[::-1])
    assert hash_inputs(inputs) != hash_inputs(other)
    eot = model.tokenizer.eot_token_id
    empty, long = inputs.tokens[TEXTS.index("")], inputs.tokens[2]
    assert list(empty[:2]) == [model.tokenizer.bot_token_id, eot]
    assert long[-1] == eot  # cut, and closed
    assert eot not in long[:-1]
    assert len({image.size for image in parity_images()}) == 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_computes_the_same_from_every_dtype(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import CLIPModel

    model = make_model()
    HF.write(tmp_path, model, dtype)
    report = _check(model, tmp_path, HF, dtype)
    assert report["checked"]
    assert report["bit_equal_weights"]
    assert max(report["max_relative_difference"].values()) < 1e-5
    assert report["consumer_inputs"] == {"tokens_equal": True, "max_pixel_difference": pytest.approx(0, abs=1e-6)}
    assert report["consumer"].endswith(torch.__version__)
    json.dumps(report, allow_nan=False)
    # The configuration and the tensors agree: loaded as it asks for, no tensor changes its type.
    assert {tensor.dtype.name for tensor in read_safetensors_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert str(CLIPModel.from_pretrained(tmp_path, torch_dtype="auto").dtype) == f"torch.{dtype}"


def test_weights_too_large_for_a_dtype_are_refused(tmp_path: Path) -> None:
    model = make_model()
    model.params["text"]["final_norm"]["scale"][3] = 70000.0
    arguments = (tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)
    with pytest.raises(WeightsError, match=r"float16 can hold, got larger ones in text_model.final_layer_norm.weight"):
        write_hf(*arguments, dtype="float16")
    write_hf(*arguments, dtype="bfloat16")  # it has float32's range
    assert read_hf(tmp_path).params["text"]["final_norm"]["scale"][3] == 70144.0  # 8 bits of 70000


def test_other_features_fail_the_check(written: Path) -> None:
    model = make_model()
    assert _check(model, written, _consumer())["max_relative_difference"] == {"image_features": 0, "text_features": 0}

    def off(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image, text + np.float32(3e-5) * np.abs(text).max()

    with pytest.raises(ExportError, match=r"another 1.0 computes other features.*: text_features by 3e-05 of"):
        _check(model, written, _consumer(off))
    with pytest.raises(ExportError, match=r"image_features by nan"):
        _check(model, written, _consumer(lambda image, text: (image * np.nan, text)))


def test_other_weights_ids_and_pixels_fail_the_check(written: Path) -> None:
    model = make_model()
    with pytest.raises(ExportError, match=r"read back, .* parameters differ: logit_scale"):
        _check(dataclasses.replace(model, params={**model.params, "logit_scale": np.float32(1)}), written, HF)
    inputs = parity_inputs(model)
    for changed, message in (
        (
            dataclasses.replace(model, preprocessing=Preprocessing(32, (0.9, 0.9, 0.9))),
            r"expected the preprocessing .*0\.9",
        ),
        (dataclasses.replace(model, tokenizer=_OTHER_TOKENIZER), "the tokenizer differs from the model's"),
    ):
        with pytest.raises(ExportError, match=message):
            _check(changed, written, _consumer())
    for tokens, pixels, message in (
        (inputs.tokens + 1, inputs.pixel_values, "tokenizer gives other ids"),
        (inputs.tokens, inputs.pixel_values + np.float32(1e-4), "other pixels than plip_jax: by 0.0001"),
        (inputs.tokens, inputs.pixel_values[:, 1:], "expected pixels of shape"),
    ):
        reading = dataclasses.replace(_consumer(), consumer_inputs=lambda *_, found=(tokens, pixels): found)
        with pytest.raises(ExportError, match=message):
            _check(model, written, reading)


@pytest.mark.filterwarnings("ignore:.*has a vocabulary of its own")  # the small one is; what is written is the point
@pytest.mark.parametrize("name", ["open_clip", "onnx", "stablehlo"])
def test_every_format_writes_the_tokenizer_and_preprocessing(tmp_path: Path, name: str) -> None:
    for package in {"onnx": ["onnx"], "stablehlo": ["flatbuffers"]}.get(name, []):
        pytest.importorskip(package, reason="it writes the format")
    unchecked = dataclasses.replace(EXPORTERS[name], consumer_features=lambda folder, inputs: None)
    model = dataclasses.replace(make_model(), preprocessing=Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    unchecked.write(tmp_path, model, "float32")
    _check(model, tmp_path, unchecked)
    with pytest.raises(ExportError, match=r"expected the preprocessing"):
        _check(make_model(), tmp_path, unchecked)
    _OTHER_TOKENIZER.save(tmp_path)
    with pytest.raises(ExportError, match="the tokenizer differs"):
        _check(model, tmp_path, unchecked)


def test_a_lost_bias_fails_the_check_of_a_format_that_keeps_it(written: Path) -> None:
    biased = dataclasses.replace(make_model(), params={**make_model().params, "logit_bias": np.float32(-10)})
    absent = dataclasses.replace(HF, consumer_features=lambda folder, inputs: None)
    assert _check(biased, written, absent)["left_out"] == {"logit_bias": -10}
    with pytest.raises(ExportError, match="1 parameters differ: logit_bias"):
        _check(biased, written, dataclasses.replace(absent, keeps_loss_params=True))
    assert {name for name, format in EXPORTERS.items() if format.keeps_loss_params} == {"open_clip", "stablehlo"}


def test_a_consumer_that_fails_is_named_with_its_version(written: Path) -> None:
    class Fail(Exception):
        pass

    def fails(folder: Path, inputs: ParityInputs) -> None:
        raise Fail("1 : FAIL : no such operator")

    failing = dataclasses.replace(HF, consumer="numpy", consumer_features=fails)
    with pytest.raises(ExportError, match=r"numpy 2\.\S+ cannot load or run .*Fail: 1 : FAIL : no such operator"):
        _check(make_model(), written, failing)


def test_a_library_that_is_not_there_or_broken_is_said_and_stops_nothing(written: Path) -> None:
    absent = dataclasses.replace(HF, consumer_features=lambda folder, inputs: None)
    report = _check(make_model(), written, absent)
    assert (report["checked"], report["why_not"]) == (False, "install transformers torch")
    assert report["bit_equal_weights"] is True

    def broken(folder: Path, inputs: ParityInputs) -> None:
        raise ConsumerUnusable("OSError: /home/jane doe/lib/libtorch.so: no such file") from OSError("no such file")

    with pytest.warns(UserWarning, match=r"not checked: OSError: /home/jane doe/lib"):
        report = _check(make_model(), written, dataclasses.replace(HF, consumer_features=broken))
    assert not report["checked"]
    assert report["why_not"] == "the check with transformers torch cannot run here (OSError)"


def test_a_program_has_no_weights_to_read_back(written: Path) -> None:
    program = dataclasses.replace(_consumer(), read_back=None)
    assert _check(make_model(), written, program)["bit_equal_weights"] is None


def test_paths_do_not_leave_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "plip").mkdir(parents=True)
    model = make_model()

    def described(source: str, weights_file: str = "model.safetensors") -> tuple[str, str]:
        said = public_description(dataclasses.replace(model, source=source, weights_file=weights_file))
        return said["source"], said["weights_file"]

    private = "a folder that is not published"
    assert described("vinid/plip") == ("vinid/plip", "model.safetensors")
    assert described("runs/plip")[0] == private  # such a folder is here
    assert described("/home/alice/x", "/home/alice/x/ViT-B-32.pt") == (private, "ViT-B-32.pt")
    assert described("gs://bucket/alice")[0] == private
    mixed = {"alpha": 0.5, "start": {"source": "/a/b", "weights_file": "w"}, "end": {"source": "a/b"}}
    said = public_description(dataclasses.replace(model, mixed_from=mixed))["mixed_from"]
    assert said == {"alpha": 0.5, "start": {"source": private, "weights_file": "w"}, "end": {"source": "a/b"}}


def test_rounding_is_to_the_nearest() -> None:
    rounded = round_params({"a": np.float32([1 + 2**-9, 1 + 3 * 2**-9])}, "bfloat16")
    np.testing.assert_array_equal(rounded["a"], np.float32([1, 1 + 2**-7]))


def test_a_consumer_that_rounds_as_it_loads_is_compared_with_what_it_computes(written: Path) -> None:
    """OpenAI's loader does so: its float32 file holds every bit, and its features are of float16 weights."""
    model = make_model()
    halved = round_params(model.params, "float16")

    def features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures:
        return ConsumerFeatures("another 1.0", *our_features(model.config, halved, inputs))

    rounding = dataclasses.replace(
        HF,
        consumer_features=features,
        consumer_inputs=None,
        rounded=lambda params, dtype: round_params(params, "float16"),
    )
    report = _check(model, written, rounding)
    assert report["bit_equal_weights"] is True
    assert report["max_relative_difference"] == {"image_features": 0, "text_features": 0}
    with pytest.raises(ExportError, match=r"another 1.0 computes other features"):
        _check(model, written, dataclasses.replace(HF, consumer_features=features))


@pytest.mark.slow  # 0.6 GB of weights, made, written and loaded three times
def test_a_vit_b_32_of_transformers_goes_in_and_out(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import CLIPConfig, CLIPModel

    tokenizer = make_tokenizer(77)
    ids = {"bos_token_id": tokenizer.bot_token_id, "eos_token_id": tokenizer.eot_token_id}
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(text_config={**ids, "pad_token_id": tokenizer.pad_token_id})).eval()
    theirs.save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text("{}")  # CLIP's own settings are the defaults
    out = export(load_model(tmp_path / "in"), tmp_path / "out")

    parity = read_parity(out)
    assert parity["checked"]
    assert max(parity["max_relative_difference"].values()) < 1e-5
    before, after = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (tmp_path / "in", out))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []
