"""What one process of a run over several does: data, steps, checkpoints, evaluation; run by test_multi_host.py.

``python tests/multi_host_worker.py --coordinator … RECORDS OUT`` writes ``OUT/process<I>.npz``.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import small_training as training  # noqa: E402 # the lines above find it
from small_models import CAPTIONS, make_config, make_tokenizer  # noqa: E402 # likewise

from plip_jax import api, batching, distributed, sharding  # noqa: E402 # likewise
from plip_jax.data.image import Preprocessing  # noqa: E402 # likewise
from plip_jax.data.pipeline import DataConfig, SourceConfig, make_train_iterator  # noqa: E402 # likewise
from plip_jax.training.checkpoint import CheckpointConfig, Checkpoints, Description  # noqa: E402 # likewise

STEPS, SAVED_STEP = 3, 2
CONFIG = make_config()


def train(records: Path, workdir: Path, mesh: Any, strategy: str) -> dict[str, Any]:
    """Take steps, saving one on the way; the last state comes once from there and once from its checkpoint."""
    data = DataConfig((SourceConfig(str(records)),), global_batch_size=16, image_size=32)
    tokenizer = make_tokenizer()
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = make_train_iterator(data, tokenizer, **processes)
    step = training.make_step(mesh, strategy, CONFIG)
    indices, losses = [], []

    def advance(state, until):
        while int(state.step) < until:
            batch = next(batches)
            indices.append(batch["index"])
            placed = sharding.put_batch(mesh, {name: batch[name] for name in ("image", "tokens")})
            state, result = step(state, placed)
            losses.append(float(result["loss"]))
        return state

    checkpoints = Checkpoints(workdir, CheckpointConfig())
    saved = advance(training.init(mesh, strategy, CONFIG), SAVED_STEP)
    checkpoints.save(saved, Description({}, {}, {}, [], data_state=batches.get_state()), tokenizer.files)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), saved)
    last = advance(saved, STEPS)  # donates what is being written
    checkpoints.close()

    checkpoints = Checkpoints(workdir, CheckpointConfig())
    batches.set_state(checkpoints.describe().data_state)
    restored = advance(checkpoints.restore(target), STEPS)
    checkpoints.close()
    batches.close()
    same = jax.jit(lambda one, other: jax.tree.map(lambda a, b: (a == b).all(), one, other))(last, restored)
    return {
        "state": last,
        "restored_is_same": all(map(bool, jax.tree.leaves(same))),
        "indices": np.stack(indices),
        "losses": np.asarray(losses),
    }


def evaluate(params: Any, mesh: Any) -> dict[str, Any]:
    """Features of 11 images and 5 texts in batches of 4, and how many batches this process put on its devices."""
    encoder = api.Encoder(CONFIG, make_tokenizer(), Preprocessing(image_size=32), batch_size=4, mesh=mesh)
    put, batching.put_batch = batching.put_batch, lambda *args: counted.append(1) or put(*args)
    counted: list[int] = []
    images = list(np.random.default_rng(3).integers(0, 256, (11, 40, 40, 3), dtype=np.uint8))
    features = encoder.encode_images(params, images)
    return {"images": features, "texts": encoder.encode_text(params, [*CAPTIONS, "mucus"]), "batches": len(counted)}


def work(records: Path, out: Path, mesh: Any, strategy: str) -> dict[str, np.ndarray]:
    """All of it, as arrays that are the same on every process but for ``indices``."""
    found = train(records, out / "run", mesh, strategy)
    whole = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    params = whole(lambda tree: tree)(found.pop("state").params)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    arrays = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    return {f"params/{name}": leaf for name, leaf in arrays.items()} | found | evaluate(params, mesh)


def main() -> None:
    parser = argparse.ArgumentParser()
    distributed.add_distributed_flags(parser)
    parser.add_argument("records", type=Path)
    parser.add_argument("out", type=Path)
    flags = parser.parse_args()
    distributed.start_from_flags(flags)
    sharding._SMALLEST_SPLIT = 256  # the tiny network has no array of 2^16
    mesh = sharding.make_mesh()
    mine = jax.process_index()
    asked = {
        "only_the_last_says_yes": bool(sharding.any_process(mine == jax.process_count() - 1)),
        "nobody_says_yes": bool(sharding.any_process(False)),
        "values": sharding.values_of_processes(10 + mine),
        "is_main": distributed.is_main_process(),
        "owners": [device.process_index for device in mesh.devices.flat],
    }
    np.savez(flags.out / f"process{mine}.npz", **asked, **work(flags.records, flags.out, mesh, "fsdp"))


if __name__ == "__main__":
    main()
