"""ONNX: onnxruntime computes from the files what PyTorch and our own network compute."""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_models import CAPTIONS, NO_TORCH, make_model, make_tokenizer, make_torch_model, save_torch_folder

from plip_jax.convert import onnx_format
from plip_jax.convert.export_format import ConsumerUnusable, ExportError, ParityInputs, round_params
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.convert.names import to_params
from plip_jax.convert.onnx_format import ONNX, onnx_features, write_onnx
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset

onnx = pytest.importorskip("onnx", reason="it writes the files")
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs the files")

# The bound that the issue sets for onnxruntime, relative to the largest feature; 1e-6 is what these networks differ by.
TOLERANCE = 1e-4


def _inputs(batch: int, side: int = 32) -> ParityInputs:
    pixel_values = np.random.default_rng(batch).normal(size=(batch, side, side, 3)).astype(np.float32)
    return ParityInputs(pixel_values, make_tokenizer()((CAPTIONS * 5)[:batch]))


def _with_config(model: LoadedModel, *, text: dict[str, Any] | None = None, **changes: Any) -> LoadedModel:
    texts = dataclasses.replace(model.config.text, **(text or {}))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, text=texts, **changes))


@functools.cache
def _towers(config: CLIPConfig) -> tuple[Any, Any]:
    network = clip.build(config)
    return jax.jit(network.encode_image), jax.jit(network.encode_text)


def _our_features(config: CLIPConfig, params: dict[str, Any], inputs: ParityInputs) -> tuple[Any, Any]:
    encode_image, encode_text = _towers(config)
    return encode_image(params, inputs.pixel_values), encode_text(params, inputs.tokens)


def _difference(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


def _session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(folder, make_model(), "float32")
    return folder


@pytest.mark.parametrize(("hidden_act", "legacy_eos"), [("quick_gelu", False), ("gelu", True)])
def test_features_are_those_of_pytorch(hidden_act: str, legacy_eos: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    theirs = make_torch_model(hidden_act=hidden_act, legacy_eos=legacy_eos)
    model = load_model(save_torch_folder(tmp_path / "hf", theirs))
    assert model.config.text.eot_pooling == ("argmax" if legacy_eos else "first_eot")
    (tmp_path / "onnx").mkdir()
    write_onnx(tmp_path / "onnx", model, "float32")
    for batch in (1, 3, 17):
        inputs = _inputs(batch)
        ours = onnx_features(tmp_path / "onnx", inputs)
        assert ours is not None
        with torch.no_grad():
            pixels = torch.from_numpy(inputs.pixel_values.transpose(0, 3, 1, 2).copy())
            image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
            tokens = torch.from_numpy(inputs.tokens.astype(np.int64))
            text = theirs.text_projection(theirs.text_model(tokens).pooler_output)
        assert ours.image_features.dtype == ours.text_features.dtype == np.float32
        assert _difference(ours.image_features, image) < TOLERANCE
        assert _difference(ours.text_features, text) < TOLERANCE


@pytest.mark.parametrize("dtype", ONNX.dtypes)
def test_features_are_those_of_the_rounded_weights(dtype: str, tmp_path: Path) -> None:
    model = make_model()
    write_onnx(tmp_path, model, dtype)
    inputs = _inputs(3)
    theirs = onnx_features(tmp_path, inputs)
    assert theirs is not None
    assert theirs.library == f"onnxruntime {onnxruntime.__version__}"
    image, text = _our_features(model.config, ONNX.rounded(model.params, dtype), inputs)
    assert _difference(theirs.image_features, image) < TOLERANCE
    assert _difference(theirs.text_features, text) < TOLERANCE
    graph = onnx.load(tmp_path / "text_model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    name = "token_embedding" if dtype == "float32" else "token_embedding.float16"
    np.testing.assert_array_equal(stored[name], model.params["text"]["token_embedding"].astype(dtype), strict=True)


def test_float16_is_half_the_file_and_refuses_what_it_cannot_hold(written: Path, tmp_path: Path) -> None:
    model = make_model()
    write_onnx(tmp_path, model, "float16")
    # 0.7 and not 0.5: in so small a file the graph itself counts.
    assert (tmp_path / "text_model.onnx").stat().st_size < 0.7 * (written / "text_model.onnx").stat().st_size
    kernel = model.params["vision"]["projection"]["kernel"].copy()
    kernel[0, 0] = 70_000  # float16 ends at 65,504
    vision = {**model.params["vision"], "projection": {"kernel": kernel}}
    large = dataclasses.replace(model, params={**model.params, "vision": vision})
    with pytest.raises(ExportError, match="float16 can hold, got larger ones in vision/projection/kernel"):
        write_onnx(tmp_path, large, "float16")


def test_the_pooled_token_is_the_first_end_of_text_or_the_first_largest_id(tmp_path: Path) -> None:
    model = make_model()
    write_onnx(tmp_path, _with_config(model, text={"eot_token_id": 5}), "float32")
    session = _session(tmp_path / "text_model.onnx")

    def features(*tokens: int) -> np.ndarray:
        return session.run(None, {"input_ids": np.array([tokens], np.int64)})[0]

    expected = features(1, 7, 5)
    # 1e-6: sums of another length are added up in another order
    np.testing.assert_allclose(features(1, 7, 5, 9, 5, 0, 0), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert _difference(features(1, 8, 5), expected) > 0.01

    write_onnx(tmp_path, _with_config(model, text={"eot_pooling": "argmax"}), "float32")
    session = _session(tmp_path / "text_model.onnx")
    expected = features(1, 9)
    np.testing.assert_allclose(
        features(1, 9, 5, 9, 0), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )  # the same
    assert _difference(features(1, 9, 5, 10, 0), expected) > 0.01


def test_the_interface_is_that_of_optimum(written: Path) -> None:
    described = {}
    for name in ("vision_model.onnx", "text_model.onnx"):
        session = _session(written / name)
        (takes,), (gives,) = session.get_inputs(), session.get_outputs()
        described[name] = (takes.name, takes.type, takes.shape, gives.name, gives.type, gives.shape)
        facts = session.get_modelmeta().custom_metadata_map
        assert float(facts["logit_scale"]) == float(make_model().params["logit_scale"])
        assert facts["weights_hash"] == make_model().weights_hash
        assert facts["embeddings"].startswith("not normalised")
        onnx.checker.check_model(written / name, full_check=True)
        assert [opset.version for opset in onnx.load(written / name).opset_import] == [17]
    assert described == {
        "vision_model.onnx": (
            "pixel_values",
            "tensor(float)",
            ["batch", 3, 32, 32],
            "image_embeds",
            "tensor(float)",
            ["batch", 16],
        ),
        "text_model.onnx": (
            "input_ids",
            "tensor(int64)",
            ["batch", "sequence"],
            "text_embeds",
            "tensor(float)",
            ["batch", 16],
        ),
    }


def test_the_files_beside_the_graphs_are_those_that_transformers_reads(written: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the consumer of these files")
    config = transformers.CLIPConfig.from_pretrained(written)
    assert (config.vision_config.image_size, config.projection_dim) == (32, 16)
    assert config.logit_scale_init_value == float(make_model().params["logit_scale"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    tokens = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(tokens, make_tokenizer()(CAPTIONS))


def test_no_rows_and_short_rows_are_computed_and_long_rows_refused(written: Path) -> None:
    nothing = onnx_features(written, _inputs(0))
    assert nothing is not None
    assert nothing.image_features.shape == nothing.text_features.shape == (0, 16)
    text = _session(written / "text_model.onnx")
    tokens = make_tokenizer()("colon").astype(np.int64)
    length = int(np.argmax(tokens[0] == make_tokenizer().eot_token_id)) + 1
    whole, short = (text.run(None, {"input_ids": rows})[0] for rows in (tokens, tokens[:, :length]))
    np.testing.assert_allclose(short, whole, rtol=0, atol=1e-6 * np.abs(whole).max())  # another order of sums
    onnxruntime.set_default_logger_severity(4)  # it would print the error that it also raises
    try:
        with pytest.raises(Exception, match="16"):
            text.run(None, {"input_ids": np.ones((1, 17), np.int64)})
        with pytest.raises(Exception, match="pixel_values"):
            _session(written / "vision_model.onnx").run(None, {"pixel_values": np.zeros((1, 3, 64, 64), np.float32)})
    finally:
        onnxruntime.set_default_logger_severity(2)


def test_weights_beyond_the_limit_of_protobuf_stand_beside_the_graph(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "MAX_BYTES_INSIDE", 10_000)
    (tmp_path / "fresh").mkdir()
    write_onnx(tmp_path / "fresh", make_model(), "float32")
    folder = (tmp_path / "fresh").rename(tmp_path / "renamed")
    assert (folder / "vision_model.onnx_data").is_file()
    assert (folder / "text_model.onnx_data").is_file()
    inside, beside = onnx_features(written, _inputs(3)), onnx_features(folder, _inputs(3))
    assert inside is not None
    assert beside is not None
    np.testing.assert_array_equal(beside.image_features, inside.image_features)
    np.testing.assert_array_equal(beside.text_features, inside.text_features)


def test_the_bias_of_siglip_is_left_out(written: Path, tmp_path: Path) -> None:
    model = make_model()
    biased = dataclasses.replace(model, params={**model.params, "logit_bias": np.float32(-10)})
    with pytest.warns(UserWarning, match=r"no place for SigLIP's logit_bias \(-10\)"):
        write_onnx(tmp_path, biased, "float32")
    assert (tmp_path / "text_model.onnx").read_bytes() == (written / "text_model.onnx").read_bytes()


def test_an_absent_or_broken_library_is_said(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ExportError, match=r"pip install onnx onnxruntime"):
            write_onnx(tmp_path, make_model(), "float32")
        assert onnx_features(written, _inputs(1)) is None
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise RuntimeError('libonnx.so: cannot open')")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "onnxruntime")
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ConsumerUnusable, match=r"RuntimeError: libonnx\.so: cannot open"):
            onnx_features(written, _inputs(1))


@pytest.mark.slow
def test_vit_b_32_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    torch.manual_seed(0)
    # The text defaults of the configuration are the legacy ones; the vision defaults are ViT-B/32.
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config={"eos_token_id": 49407})).eval()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if "position_ids" not in name}
    config = get_preset("ViT-B-32")
    params = to_params(tensors, config, "hf", where="a model made in a test")
    model = dataclasses.replace(make_model(), config=config, params=params)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 49406, (4, 77)).astype(np.int32)
    tokens[:, 20:] = 49407
    inputs = ParityInputs(rng.normal(size=(4, 224, 224, 3)).astype(np.float32), tokens)
    pixels = np.ascontiguousarray(inputs.pixel_values.transpose(0, 3, 1, 2))
    with torch.no_grad():
        start = time.perf_counter()
        image = theirs.visual_projection(theirs.vision_model(torch.from_numpy(pixels)).pooler_output)
        torch_seconds = time.perf_counter() - start
        text = theirs.text_projection(theirs.text_model(torch.from_numpy(tokens.astype(np.int64))).pooler_output)
    for dtype in ONNX.dtypes:
        folder = tmp_path / dtype
        folder.mkdir()
        write_onnx(folder, model, dtype)
        ours = onnx_features(folder, inputs)
        assert ours is not None
        if dtype != "float32":
            image, text = _our_features(config, round_params(params, dtype), inputs)
        assert _difference(ours.image_features, image) < TOLERANCE
        assert _difference(ours.text_features, text) < TOLERANCE
        session = _session(folder / "vision_model.onnx")
        start = time.perf_counter()
        session.run(None, {"pixel_values": pixels})
        with capsys.disabled():
            seconds = time.perf_counter() - start
            print(f"\nfirst 4 images, ViT-B/32 {dtype}: onnxruntime {seconds:.2f} s, PyTorch {torch_seconds:.2f} s")
