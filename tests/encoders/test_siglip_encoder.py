"""A SigLIP folder through PyTorch: the features are those of transformers' own processor, tokenizer and model."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from small_models import NO_TORCH

from plip_jax.convert.hf_config import HFConfigError
from plip_jax.convert.hub import SourceError
from plip_jax.convert.names import WeightsError
from plip_jax.convert.safetensors_file import read_safetensors_file, write_safetensors_file
from plip_jax.encoders.table import open_encoder

torch = pytest.importorskip("torch", reason=NO_TORCH)
import tokenizers  # noqa: E402 # behind the skip
import transformers  # noqa: E402 # the same

WORDS = ["an", "h&e", "image", "of", "tumor", "normal", "mucosa", "adipose", "tissue", "lymphocytes"]
TEXTS = ["An H&E image of tumor", "normal mucosa", "adipose tissue " * 10]
CONTEXT = 12


def make_tokenizer():
    vocab = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=CONTEXT
    )


@pytest.fixture(scope="module")
def model():
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    text = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": CONTEXT, "projection_size": 32}
    config = transformers.SiglipConfig(
        text_config={**shared, **text, **special}, vision_config={**shared, "image_size": 32, "patch_size": 16}
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.logit_scale.fill_(4.5)
    return model


SETTINGS = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5] * 3}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    make_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def test_images_pass_through_its_own_settings(model, folder):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50, 60 + i, 3), np.uint8)) for i in range(11)]
    files = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        files.append(stream.getvalue())
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in images])
    values = ((pixels / 255 - np.array([0.4, 0.5, 0.6])) / 0.5).astype(np.float32)
    with torch.no_grad():
        vision = model.vision_model(torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))))
    reference = vision.pooler_output.numpy()
    encoder = open_encoder(f"siglip:{folder}", batch_size=8)
    features = encoder.encode_images(iter(files), names=[str(i) for i in range(11)])
    assert (features.shape, features.dtype) == ((11, 32), np.float32)
    assert np.abs(features - reference).max() < 1e-5 * np.abs(reference).max()
    assert encoder.encode_images([], names=[]).shape == (0, 32)


def test_text_is_padded_to_the_context_and_the_padding_is_seen(model, folder):
    encoder = open_encoder(f"siglip:{folder}", batch_size=2)
    assert encoder.encode_text is not None
    ids = [[3, 4, 5, 6, 7, 1, 0, 0, 0, 0, 0, 0], [8, 9, 1, *[0] * 9], [*[10, 11] * 5, 10, 1]]
    with torch.no_grad():
        reference = model.text_model(torch.tensor(ids)).pooler_output.numpy()
        unpadded = model.text_model(torch.tensor([ids[1][:3]])).pooler_output.numpy()
    features = encoder.encode_text(TEXTS)
    assert np.abs(features - reference).max() < 1e-5 * np.abs(reference).max()
    assert np.abs(features[1] - unpadded).max() > 1e-2
    assert encoder.logit_scale == pytest.approx(np.exp(4.5), rel=1e-6)  # float32
    assert encoder.tower is None
    assert json.loads(json.dumps(encoder.describe())) == encoder.describe()


def test_the_key_is_of_weights_and_settings(folder, tmp_path):
    key = open_encoder(f"siglip:{folder}").key
    assert open_encoder(f"siglip:{folder}", batch_size=3, name="x").key == key
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, "resample": 2}))
    assert open_encoder(f"siglip:{tmp_path}").key != key


def test_settings_inside_processor_config_are_read(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(HFConfigError, match="expected the image settings in preprocessor_config"):
        open_encoder(f"siglip:{tmp_path}")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SETTINGS}))
    assert open_encoder(f"siglip:{tmp_path}").key == open_encoder(f"siglip:{folder}").key


def test_without_torch_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    with pytest.raises(SourceError, match=r"pip install torch sentencepiece"):
        open_encoder(f"siglip:{folder}")


def test_another_model_and_incomplete_weights_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(HFConfigError, match="got 'siglip2'"):
        open_encoder(f"siglip:{tmp_path}")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"expected model\.safetensors"):
        open_encoder(f"siglip:{tmp_path}")
    tensors = dict(read_safetensors_file(folder / "model.safetensors"))
    tensors.pop("text_model.head.bias")
    write_safetensors_file(tmp_path / "model.safetensors", {name: np.array(value) for name, value in tensors.items()})
    with pytest.raises(WeightsError, match=r"text_model\.head\.bias"):
        open_encoder(f"siglip:{tmp_path}")
    with pytest.raises(SourceError, match="nothing at that path"):
        open_encoder("siglip:nowhere at all")
