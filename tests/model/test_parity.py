"""The network against PyTorch's CLIPModel at full ViT-B/32 size, random weights, CPU, float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plip_jax.convert import names
from plip_jax.model import clip
from plip_jax.model.presets import get_preset
from plip_jax.model.transformer import causal_mask
from plip_jax.training.losses import contrastive_loss, l2_normalize

torch = pytest.importorskip("torch", reason="the parity tests need PyTorch (the test extra installs it)")

BATCH = 3
CONFIG = get_preset("ViT-B-32")


def relative_error(ours, reference) -> float:
    reference = reference.detach().numpy() if isinstance(reference, torch.Tensor) else reference
    return float(np.max(np.abs(np.asarray(ours) - reference)) / np.max(np.abs(reference)))


@pytest.fixture(scope="module")
def reference():
    """A CLIPModel whose every tensor is random, its inputs, and what each of its layers took and gave."""
    from transformers import CLIPConfig as HFConfig
    from transformers import CLIPModel

    torch.manual_seed(0)
    # HF's defaults are ViT-B/32 but for the id of the end-of-text token.
    hf_config = HFConfig(
        text_config={"eos_token_id": 49407, "bos_token_id": 49406}, attn_implementation="eager", projection_dim=512
    )
    model = CLIPModel(hf_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at init, which would hide an error
                parameter.normal_(0, 0.02)
            elif "norm" in name:
                parameter.normal_(1, 0.1)
        model.logit_scale.fill_(np.log(1 / 0.07))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(BATCH, 224, 224, 3)).astype(np.float32)
    tokens = rng.integers(1, 49000, (BATCH, 77))
    for row, length in enumerate((5, 20, 77)):
        tokens[row, 0], tokens[row, length - 1 :] = 49406, 49407
    return model, pixels, tokens.astype(np.int32)


@pytest.fixture(scope="module")
def traces(reference):
    """Input and output of every module of one forward pass."""
    model, pixels, tokens = reference
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def remember(name: str) -> Callable:
        def hook(_, args, kwargs, output):
            given = args[0] if args else next(iter(kwargs.values()))
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, torch.Tensor) and isinstance(given, torch.Tensor):
                seen[name] = (given.detach().numpy(), output.detach().numpy())

        return hook

    handles = [m.register_forward_hook(remember(n), with_kwargs=True) for n, m in model.named_modules() if n]
    with torch.no_grad():
        outputs = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        )
    for handle in handles:
        handle.remove()
    return seen, outputs


@pytest.fixture(scope="module")
def params(reference):
    tensors = {name: tensor.detach().numpy() for name, tensor in reference[0].named_parameters()}
    return jax.tree.map(jnp.asarray, names.to_params(tensors, CONFIG, "hf", where="CLIPModel"))


def test_parameter_count_is_the_published_one(params):
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 151_277_313


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_each_layer_equals_pytorch_on_the_same_input(tower, traces, params):
    seen, _ = traces
    model = clip.build(CONFIG)
    module = model.tower(tower, params)
    graphdef, layers = nnx.split(module.blocks.stacked)
    mask = causal_mask(77) if tower == "text" else None
    depth = getattr(CONFIG, tower).depth
    errors = {}
    for index in range(depth):
        given, expected = seen[f"{tower}_model.encoder.layers.{index}"]
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], layers))
        errors[f"block {index}"] = relative_error(block(jnp.asarray(given), mask), expected)
        given, expected = seen[f"{tower}_model.encoder.layers.{index}.self_attn"]
        errors[f"attention {index}"] = relative_error(block.attention(jnp.asarray(given), mask), expected)
    norms = {"vision": {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm"}}
    for ours, theirs in norms.get(tower, {"final_norm": "final_layer_norm"}).items():
        given, expected = seen[f"{tower}_model.{theirs}"]
        errors[ours] = relative_error(getattr(module, ours)(jnp.asarray(given)), expected)
    projection = "visual_projection" if tower == "vision" else "text_projection"
    given, expected = seen[projection]
    errors["projection"] = relative_error(module.projection(jnp.asarray(given)), expected)
    if tower == "vision":
        given, expected = seen["vision_model.embeddings.patch_embedding"]
        patches = module.patch_embedding(jnp.asarray(given.transpose(0, 2, 3, 1)))
        errors["patches"] = relative_error(patches, expected.reshape(BATCH, 768, 49).transpose(0, 2, 1))
    # The project's bound for a layer: 1e-5 of the largest reference value.
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}
    assert len(errors) > 2 * depth


def test_features_and_logits_equal_pytorch(reference, traces, params):
    _, pixels, tokens = reference
    _, outputs = traces
    model = clip.build(CONFIG)
    image = l2_normalize(model.encode_image(params, jnp.asarray(pixels)))
    text = l2_normalize(model.encode_text(params, jnp.asarray(tokens)))
    # The bounds the project sets: 1e-5 for a normalised feature, 1e-4 for a logit.
    np.testing.assert_allclose(image, outputs.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, outputs.text_embeds.numpy(), rtol=0, atol=1e-5)
    logits = jnp.exp(params["logit_scale"]) * image @ text.T
    np.testing.assert_allclose(logits, outputs.logits_per_image.numpy(), rtol=0, atol=1e-4)


def test_loss_and_every_gradient_equal_pytorch(reference, params):
    torch_model, pixels, tokens = reference
    model = clip.build(CONFIG)

    def loss_of(params):
        image = model.encode_image(params, jnp.asarray(pixels))
        text = model.encode_text(params, jnp.asarray(tokens))
        return contrastive_loss(image, text, {"logit_scale": params["logit_scale"]})[0]

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    expected = torch_model(
        input_ids=torch.from_numpy(tokens.astype(np.int64)),
        pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        return_loss=True,
    ).loss
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)  # one float32 sum of a few logits

    ours = names.from_params(grads, CONFIG, "hf")
    theirs = {name: parameter.grad.numpy() for name, parameter in torch_model.named_parameters()}
    largest = max(float(np.max(np.abs(grad))) for grad in theirs.values())
    errors = {}
    for name, grad in theirs.items():
        if name.endswith("k_proj.bias"):
            # Zero in theory (softmax ignores a shift), so a relative bound means nothing here.
            assert np.max(np.abs(ours[name])) <= 1e-6 * largest, name
        else:
            errors[name] = float(np.linalg.norm(ours[name] - grad) / np.linalg.norm(grad))
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}  # the project's bound
    assert len(errors) == 398 - 24
