"""ONNX: each tower as a graph that onnxruntime runs, with the names of Optimum's exports.

Owns the graphs, which mirror `plip_jax.model` operation by operation, and the check in onnxruntime. They are built with
``onnx.helper`` and not traced from JAX: ``jax2onnx`` 0.17 turns the scan over the layers into a ``Loop`` and takes each
norm apart, which onnxruntime cannot fuse (ViT-B/32 took it 2.1 to 2.5 times as long as these graphs at batch 1, and 1.2
to 1.6 times at 32), writes opset 23, and needs fourteen packages.

Inputs and outputs have the names that Optimum gives them, of opset 17 (onnxruntime 1.13 and newer):

- ``vision_model.onnx``: ``pixel_values`` float32 [batch, 3, side, side], scaled and normalised, to ``image_embeds``
  float32 [batch, embed_dim];
- ``text_model.onnx``: ``input_ids`` int64 [batch, sequence] of at most the context's length, to ``text_embeds`` float32
  [batch, embed_dim]. There is no ``attention_mask``: the tower is causal, and what stands behind the end-of-text token
  changes nothing.

The embeddings are not normalised, as those of transformers' ``CLIPVisionModelWithProjection`` are not. float16 is the
type of the stored weights alone: each is widened where it is used (onnxruntime does so once, when it loads), and
inputs, outputs and arithmetic stay float32, which every provider has.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.export_format import (
    ConsumerFeatures,
    ConsumerUnusable,
    ExportError,
    ExportFormat,
    ParityInputs,
    round_params,
)
from plip_jax.convert.hf import read_preprocessing
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import flatten, warn_of_loss_params
from plip_jax.convert.program_folder import stored_params, write_small_files
from plip_jax.model.presets import Activation, CLIPConfig, TextConfig, VisionConfig

VISION_FILE = "vision_model.onnx"
TEXT_FILE = "text_model.onnx"
OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # what came with opset 17; a newer one makes older runtimes refuse the file

# Bytes of weights that a file holds itself. protobuf cannot write a message of 2 GiB; the rest of a graph is far
# below what is left. Beyond, the weights stand in FILE_data beside it.
MAX_BYTES_INSIDE = 2**31 - 2**24


def write_onnx(folder: Path, model: LoadedModel, dtype: str) -> None:
    """Write ``vision_model.onnx``, ``text_model.onnx``, and what a consumer needs beside them.

    Args:
        folder: exists; see `plip_jax.export` for how it becomes the target.
        model: to write.
        dtype: of the stored weights, ``float32`` or ``float16``.

    Raises:
        ExportError: onnx is not installed, or a weight is too large for the dtype.
        HFConfigError: the configuration beside the graphs cannot say how the model pools.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ExportError("writing ONNX needs the package onnx, which is not installed: pip install onnx onnxruntime")
    warn_of_loss_params(model.params, "An ONNX graph")
    params, config = stored_params(model, dtype), model.config
    write_small_files(folder, model)
    facts = {
        "weights_hash": model.weights_hash,
        "logit_scale": repr(float(params["logit_scale"])),
        "logit_scale_is": "log of the temperature's inverse: logits = exp(logit_scale) * cosine",
        "embeddings": "not normalised; divide each row by its length before a cosine",
    }
    for name, build, tower in ((VISION_FILE, _vision_model, "vision"), (TEXT_FILE, _text_model, "text")):
        graph = _Graph(_unstacked(params[tower]), dtype)
        _save(build(graph, config), folder / name, facts)


def onnx_features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures | None:
    """Run both graphs in onnxruntime on the CPU; None where it is not installed.

    Raises:
        ConsumerUnusable: onnxruntime is installed and cannot be imported.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    try:
        import onnxruntime
    except Exception as error:  # whatever a broken installation raises
        raise ConsumerUnusable(f"onnxruntime cannot be imported: {type(error).__name__}: {error}") from None
    feeds = {
        VISION_FILE: {"pixel_values": np.ascontiguousarray(inputs.pixel_values.transpose(0, 3, 1, 2), np.float32)},
        TEXT_FILE: {"input_ids": inputs.tokens.astype(np.int64)},
    }
    features = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for name, feed in feeds.items()
    ]
    return ConsumerFeatures(f"onnxruntime {onnxruntime.__version__}", *(np.asarray(part) for part in features))


class _Graph:
    """One tower's graph while it is built: a value bears the name of the parameter or operation that made it.

    Attributes:
        weights: name -> array; each becomes a tensor of the file when it is first used.
        dtype: of the weights in the file.
        nodes: in the order of execution.
        tensors: of the file.
    """

    def __init__(self, weights: dict[str, np.ndarray], dtype: str):
        self.weights = weights
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output; the name of both."""
        return self.ops(kind, *inputs, names=[name], **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: list[str], **attributes: Any) -> list[str]:
        """Add a node with several outputs; their names."""
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """Add a tensor."""
        import onnx

        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, path: str) -> str:
        """Add a weight; whoever uses it sees float32."""
        import onnx

        if self.dtype == "float32":
            return self.constant(path, self.weights[path], np.float32)
        stored = self.constant(f"{path}.{self.dtype}", self.weights[path], self.dtype)
        return self.op("Cast", stored, name=path, to=onnx.TensorProto.FLOAT)


def _unstacked(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """One tower's parameters by path: ``blocks/0/norm1/scale`` is the first layer's part of ``blocks/norm1/scale``."""
    weights: dict[str, np.ndarray] = {}
    for path, value in flatten(params).items():
        if not path.startswith("blocks/"):
            weights[path] = value
            continue
        for layer, part in enumerate(value):
            weights[path.replace("blocks/", f"blocks/{layer}/", 1)] = part
    return weights


def _vision_model(graph: _Graph, config: CLIPConfig) -> Any:
    """`plip_jax.model.vision`."""
    vision = config.vision
    side, patch, num_tokens = vision.image_size, vision.patch_size, vision.num_tokens
    kernel, class_token = graph.weights["patch_embedding/kernel"], graph.weights["class_embedding"]
    # A convolution's weight is [out, channel, height, width].
    graph.weights |= {"patch_embedding/kernel": kernel.transpose(3, 2, 0, 1), "class_embedding": class_token[None]}
    patches = graph.op(
        "Conv",
        "pixel_values",
        graph.weight("patch_embedding/kernel"),
        name="patches",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    # A 0 keeps the input's size on that axis.
    shape = graph.constant("patches/shape", [0, vision.width, num_tokens - 1], np.int64)
    rows = graph.op("Reshape", patches, shape, name="patches/columns")
    rows = graph.op("Transpose", rows, name="patches/rows", perm=[0, 2, 1])
    # The class token goes before the patches: a row of zeros there, to which the token is added with its position.
    before = graph.constant("class/before", [0, 1, 0, 0, 0, 0], np.int64)
    rows = graph.op("Pad", rows, before, name="class/room")
    behind = graph.constant("class/behind", [0, 0, num_tokens - 1, 0], np.int64)
    class_row = graph.op("Pad", graph.weight("class_embedding"), behind, name="class/row")
    added = graph.op("Add", class_row, graph.weight("position_embedding"), name="class/position")
    x = graph.op("Add", rows, added, name="embeddings")
    x = _norm(graph, x, "pre_norm", config)
    x = _blocks(graph, x, vision, config, mask=None)
    # Only the class token is of use from here on.
    first = graph.constant("class/index", 0, np.int64)
    x = _norm(graph, graph.op("Gather", x, first, name="pooled", axis=1), "post_norm", config)
    graph.op("MatMul", x, graph.weight("projection/kernel"), name="image_embeds")
    return _model(graph, "pixel_values", np.float32, ["batch", 3, side, side], "image_embeds", config)


def _text_model(graph: _Graph, config: CLIPConfig) -> Any:
    """`plip_jax.model.text`."""
    text = config.text
    x = graph.op("Gather", graph.weight("token_embedding"), "input_ids", name="tokens", axis=0)
    zero = graph.constant("length/zero", [0], np.int64)
    zeros = graph.constant("length/zeros", [0, 0], np.int64)
    length = graph.op("Shape", "input_ids", name="length", start=1, end=2)
    lengths = graph.op("Concat", length, length, name="length/twice", axis=0)
    position = graph.op("Slice", graph.weight("position_embedding"), zero, length, name="positions")
    x = graph.op("Add", x, position, name="embeddings")
    # Added to the scores: the lowest float32 at keys behind the query, whose softmax is then 0.
    lowest = np.triu(np.full((text.context_length,) * 2, np.finfo(np.float32).min), 1)
    mask = graph.op("Slice", graph.constant("mask/whole", lowest, np.float32), zeros, lengths, name="mask")
    x = _blocks(graph, x, text, config, mask)
    pooled = graph.op("GatherND", x, _eot_position(graph, text), name="pooled", batch_dims=1)
    x = _norm(graph, pooled, "final_norm", config)
    graph.op("MatMul", x, graph.weight("projection/kernel"), name="text_embeds")
    return _model(graph, "input_ids", np.int64, ["batch", "sequence"], "text_embeds", config)


def _eot_position(graph: _Graph, text: TextConfig) -> str:
    """The index [batch, 1] of the token that stands for the caption: `plip_jax.model.text.eot_position`."""
    import onnx

    scores = "input_ids"
    if text.eot_pooling == "first_eot":
        scores = graph.op("Equal", scores, graph.constant("eot/id", text.eot_token_id, np.int64), name="eot/is")
    # As int32: the widest integer of which every runtime has the maximum.
    scores = graph.op("Cast", scores, name="eot/scores", to=onnx.TensorProto.INT32)
    return graph.op("ArgMax", scores, name="eot", axis=1, keepdims=1)  # the first of several


def _blocks(graph: _Graph, x: str, tower: VisionConfig | TextConfig, config: CLIPConfig, mask: str | None) -> str:
    """`plip_jax.model.transformer.Stack`: attention, then perceptron, each on the norm of what it is added to."""
    for layer in range(tower.depth):
        path = f"blocks/{layer}"
        attended = _attention(graph, _norm(graph, x, f"{path}/norm1", config), f"{path}/attention", tower, mask)
        x = graph.op("Add", x, attended, name=f"{path}/attended")
        hidden = _linear(graph, _norm(graph, x, f"{path}/norm2", config), f"{path}/mlp/fc1")
        hidden = _linear(graph, _ACTIVATIONS[config.activation](graph, hidden), f"{path}/mlp/fc2")
        x = graph.op("Add", x, hidden, name=path)
    return x


def _attention(graph: _Graph, x: str, path: str, tower: VisionConfig | TextConfig, mask: str | None) -> str:
    heads, head_dim = tower.num_heads, tower.width // tower.num_heads
    apart = graph.constant(f"{path}/apart", [0, 0, heads, head_dim], np.int64)
    scale = graph.constant(f"{path}/scale", head_dim**-0.5, np.float32)

    def head_wise(part: str, perm: list[int]) -> str:
        rows = _linear(graph, x, f"{path}/{part}")
        rows = graph.op("Mul", rows, scale, name=f"{path}/{part}/scaled") if part == "query" else rows
        rows = graph.op("Reshape", rows, apart, name=f"{path}/{part}/apart")
        return graph.op("Transpose", rows, name=f"{path}/{part}/heads", perm=perm)

    query, value = head_wise("query", [0, 2, 1, 3]), head_wise("value", [0, 2, 1, 3])
    scores = graph.op("MatMul", query, head_wise("key", [0, 2, 3, 1]), name=f"{path}/scores")
    if mask is not None:
        scores = graph.op("Add", scores, mask, name=f"{path}/masked")
    weights = graph.op("Softmax", scores, name=f"{path}/weights", axis=-1)
    mixed = graph.op("MatMul", weights, value, name=f"{path}/mixed")
    mixed = graph.op("Transpose", mixed, name=f"{path}/mixed/rows", perm=[0, 2, 1, 3])
    together = graph.constant(f"{path}/together", [0, 0, tower.width], np.int64)
    return _linear(graph, graph.op("Reshape", mixed, together, name=f"{path}/mixed/together"), f"{path}/out")


def _norm(graph: _Graph, x: str, path: str, config: CLIPConfig) -> str:
    scale, bias = graph.weight(f"{path}/scale"), graph.weight(f"{path}/bias")
    return graph.op("LayerNormalization", x, scale, bias, name=path, axis=-1, epsilon=config.norm_eps)


def _linear(graph: _Graph, x: str, path: str) -> str:
    product = graph.op("MatMul", x, graph.weight(f"{path}/kernel"), name=f"{path}/product")
    return graph.op("Add", product, graph.weight(f"{path}/bias"), name=path)


def _quick_gelu(graph: _Graph, x: str) -> str:
    """Compute x * sigmoid(1.702 x)."""
    inner = graph.op("Mul", x, graph.constant(f"{x}/1.702", 1.702, np.float32), name=f"{x}/inner")
    return graph.op("Mul", x, graph.op("Sigmoid", inner, name=f"{x}/sigmoid"), name=f"{x}/quick_gelu")


def _gelu(graph: _Graph, x: str) -> str:
    """Compute x * (1 + erf(x / sqrt 2)) / 2, in the order of operations that onnxruntime recognises and fuses."""
    inner = graph.op("Div", x, graph.constant(f"{x}/sqrt2", 2**0.5, np.float32), name=f"{x}/inner")
    risen = graph.op(
        "Add", graph.op("Erf", inner, name=f"{x}/erf"), graph.constant(f"{x}/one", 1, np.float32), name=f"{x}/risen"
    )
    product = graph.op("Mul", x, risen, name=f"{x}/doubled")
    return graph.op("Mul", product, graph.constant(f"{x}/half", 0.5, np.float32), name=f"{x}/gelu")


_ACTIVATIONS: dict[Activation, Callable[[_Graph, str], str]] = {"quick_gelu": _quick_gelu, "gelu": _gelu}


def _model(graph: _Graph, takes: str, dtype: Any, shape: list[int | str], gives: str, config: CLIPConfig) -> Any:
    """The whole graph as a model, with its one input and one output."""
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info(takes, kind, shape)]
    outputs = [helper.make_tensor_value_info(gives, TensorProto.FLOAT, ["batch", config.embed_dim])]
    body = helper.make_graph(graph.nodes, gives, inputs, outputs, initializer=graph.tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="plip_jax")


def _save(model: Any, path: Path, facts: dict[str, str]) -> None:
    """Write a model, its weights beside it where it cannot hold them, and check the file."""
    import onnx

    onnx.helper.set_model_props(model, facts)
    inside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MAX_BYTES_INSIDE
    beside = {} if inside else {"save_as_external_data": True, "location": f"{path.name}_data"}
    onnx.save_model(model, path, **beside)
    onnx.checker.check_model(path, full_check=True)


ONNX = ExportFormat(
    write=write_onnx,
    read_back=None,
    read_preprocessing=read_preprocessing,
    consumer_features=onnx_features,
    rounded=round_params,
    consumer="onnxruntime",
    tolerance=1e-4,  # the bound for another runtime's order of sums; 3e-6 was measured on ViT-B/32
    dtypes=("float32", "float16"),
    how_to_load='onnxruntime.InferenceSession("{folder}/vision_model.onnx")',
)
