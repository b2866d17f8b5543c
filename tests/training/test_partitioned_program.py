"""The step's program after SPMD partitioning: what is summed over devices, and in which precision.

Read there and not in the compiled program: the CPU backend promotes bfloat16 sums afterwards, and would hide them.
"""

import collections
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import small_training as training

from plip_jax import sharding
from plip_jax.evaluation.embeddings import Similarity, normalize_rows
from plip_jax.model import clip, text, transformer, vision
from plip_jax.training.losses import contrastive_loss

REDUCTIONS = ("all-reduce", "reduce-scatter")
# What changes layout or type only: the sum is of what lies behind.
PASSED_THROUGH = ("convert", "copy", "transpose", "reshape", "bitcast")


class Instruction(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    opcode: str
    operand: str
    line: str


def parse(program: str) -> dict[str, Instruction]:
    """Instructions with one array as their result, by name."""
    found = {}
    for line in program.splitlines():
        match = re.match(r"\s*(?:ROOT )?(%[\w.-]+) = (\w+)\[([\d,]*)\]\S* ([\w-]+)\((%[\w.-]+)?", line)
        if match:
            name, dtype, shape, opcode, operand = match.groups()
            sizes = tuple(int(size) for size in shape.split(",") if size)
            found[name] = Instruction(dtype, sizes, opcode, operand or "", line)
    return found


def partitioned(function, arguments, folder: Path) -> dict[str, Instruction]:
    """The program that each of the devices gets, before the backend's own passes."""
    # What comes after the partitioner is of no interest here, and half the time.
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd.*", "xla_backend_optimization_level": 0}
    jax.jit(function).lower(*arguments).compile(compiler_options=options)
    (path,) = folder.glob("*after_spmd-partitioning*.txt")
    return parse(path.read_text())


def summed(program: dict[str, Instruction]) -> list[tuple[str, Instruction, bool]]:
    """Of each sum over devices of floats: its type, what is summed, and whether that was rounded on the way there."""
    sums = []
    for instruction in program.values():
        if instruction.opcode in REDUCTIONS and instruction.dtype not in ("pred", "s32", "u32"):
            source, dtypes = program[instruction.operand], set()
            while source.opcode in PASSED_THROUGH and source.operand in program:
                dtypes.add(source.dtype)
                source = program[source.operand]
            sums.append((instruction.dtype, source, bool(dtypes - {"f32"})))
    return sums


def bfloat16_step(folder: Path) -> dict[str, Instruction]:
    mesh = sharding.make_mesh()
    arguments = training.init(mesh).params, sharding.put_batch(mesh, training.make_batch())
    return partitioned(training.make_grads(mesh, compute_dtype="bfloat16"), arguments, folder)


def test_gradients_are_products_and_sums_in_float32(tmp_path):
    program = bfloat16_step(tmp_path)
    sums = summed(program)
    assert {dtype for dtype, _, _ in sums} == {"f32"}
    assert not [source for _, source, is_rounded in sums if is_rounded]
    # Every kernel's gradient is there: a product, summed over devices as it comes out of it. Those of query, key and
    # value are one product, side by side.
    products = collections.Counter(source.shape for _, source, _ in sums if source.opcode == "dot")
    kernels = collections.Counter(
        leaf.shape[-2:] if leaf.ndim < 4 else (math.prod(leaf.shape[:3]), leaf.shape[3])
        for path, leaf in jax.tree_util.tree_flatten_with_path(clip.build(training.TINY).abstract_params())[0]
        # The stacked layers of a tower are one loop, and one product in its body.
        if path[-1].key == "kernel" and path[-2].key not in ("query", "key", "value")
    )
    assert kernels.total() == 9
    for tower in (training.TINY.vision, training.TINY.text):
        kernels[tower.width, 3 * tower.width] += 1
    assert kernels <= products, kernels - products
    # The logits and their two gradients alone are float32 products; their precision has to be asked for.
    highest = [one for one in program.values() if "operand_precision={highest,highest}" in one.line]
    assert len(highest) >= 3
    assert {one.dtype for one in highest} == {"f32"}


def test_this_would_see_a_product_without_the_rule_for_its_gradient(tmp_path, monkeypatch):
    def plain(x, *kernels, compute_dtype):
        x, kernel = x.astype(compute_dtype), jnp.concatenate(kernels, axis=1).astype(compute_dtype)
        return jnp.matmul(x, kernel).astype(jnp.float32)

    for module in (transformer, vision, text, clip):
        if hasattr(module, "matmul"):
            monkeypatch.setattr(module, "matmul", plain)
    sums = summed(bfloat16_step(tmp_path))
    assert [dtype for dtype, source, _ in sums if source.opcode == "dot"].count("bf16") >= 11


def test_logits_ask_for_the_highest_precision():
    features = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    scale = {"logit_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    grads = jax.grad(lambda *args: contrastive_loss(*args)[0], argnums=(0, 1, 2))
    products = re.findall(r"stablehlo\.dot_general.*", jax.jit(grads).lower(features, features, scale).as_text())
    assert len(products) >= 3
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []


def test_retrieval_scores_are_float32_products():
    rng = np.random.default_rng(0)
    queries, candidates = (normalize_rows(rng.normal(size=(64, 512))) for _ in range(2))
    exact = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    # Float32 rounds at 6e-8; operands rounded to bfloat16, a TPU's default, would put scores off by about 1e-4.
    np.testing.assert_allclose(Similarity(candidates)(queries), exact, atol=1e-6)
    rounded = np.asarray(jnp.asarray(queries, jnp.bfloat16), np.float64) @ candidates.T
    assert np.abs(rounded - exact).max() > 1e-5
