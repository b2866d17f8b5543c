"""The faults of a machine, its devices, its data and its models: each is made, found and answered."""

import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_faults import ASKED, of, only
from small_models import make_model
from small_records import write_tiles
from small_tissue import encoded, tissue

from plip_jax.convert.hf import write_hf
from plip_jax.doctoring import checkpoint, data, devices, machine
from plip_jax.doctoring.child import findings_of
from plip_jax.doctoring.finding import Asked, Finding
from plip_jax.model import clip


class TestMachine:
    def test_here_something_is_known(self):
        assert of("ok", machine.find_machine(ASKED))

    def test_no_space(self, monkeypatch, tmp_path):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20, free=2**30))
        monkeypatch.chdir(tmp_path)
        warnings = of("warning", machine.find_machine(Asked(data=(str(tmp_path), "/dev/shm", "/no/such/folder"))))
        said = [one.what for one in warnings if "disk" in one.what]
        assert said[0] == "1.0 GiB free on the disk of the current folder"
        if Path("/dev/shm").is_dir() and Path("/dev/shm").stat().st_dev != tmp_path.stat().st_dev:
            assert said[1:] == ["1.0 GiB free on the disk of /dev/shm"]
            assert any(one.what.startswith("/dev/shm holds 64 MiB") and "--shm-size" in one.advice for one in warnings)

    def test_little_memory_and_half_a_core_in_a_container(self, monkeypatch):
        files = {
            "/proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n",
            "/sys/fs/cgroup/memory.max": "3221225472\n",
            "/sys/fs/cgroup/memory.current": "1073741824\n",
            "/sys/fs/cgroup/cpu.max": "50000 100000\n",
        }
        monkeypatch.setattr(machine, "read_text", lambda path: files.get(str(path), ""))
        findings = list(machine.find_machine(ASKED))
        memory = next(one for one in findings if "memory free" in one.what)
        assert memory.status == "warning"
        assert memory.what == "2.0 GiB of memory free, 64.0 GiB in all, of which this container may use 3.0 GiB"
        cores = next(one for one in findings if "cores are seen" in one.what)
        assert "may use 0.5 of them" in cores.what
        assert "num_workers=1" in cores.advice

    def test_few_files(self, monkeypatch):
        resource = pytest.importorskip("resource", reason="Windows has no such limit")
        monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1_048_576))
        note = next(one for one in machine.find_machine(ASKED) if "may open" in one.what)
        assert (note.what[:30], note.advice) == ("a process may open 256 files, ", "ulimit -n 65536")

    @pytest.mark.parametrize(
        ("name", "value", "status", "says"),
        [
            ("JAX_ENABLE_X64", "1", "warning", "twice the memory"),
            ("JAX_ENABLE_X64", "false", "ok", "JAX_ENABLE_X64=false"),
            ("NVIDIA_TF32_OVERRIDE", "1", "warning", "TF32"),
            ("CUDA_VISIBLE_DEVICES", "-1", "warning", "every GPU is hidden"),
            ("CUDA_VISIBLE_DEVICES", "-1,0", "warning", "every GPU is hidden"),
            ("CUDA_VISIBLE_DEVICES", "", "warning", "every GPU is hidden"),
            ("CUDA_VISIBLE_DEVICES", "0,1", "note", "only these GPUs"),
            ("XLA_FLAGS", "--xla_force_host_platform_device_count=8", "note", "for tests"),
            ("XLA_FLAGS", "--xla_dump_to=/home/somebody/dump --xla_a=1", "note", "--xla_dump_to=PATH --xla_a=1:"),
            ("HF_HUB_OFFLINE", "1", "note", "in the cache only"),
        ],
    )
    def test_a_variable_that_changes_what_jax_does(self, monkeypatch, name, value, status, says):
        monkeypatch.setenv(name, value)
        finding = next(one for one in machine.find_machine(ASKED) if name in one.what)
        assert finding.status == status
        assert says in finding.what

    def test_an_empty_variable_is_none(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        assert not [one for one in machine.find_machine(ASKED) if "HF_HUB_OFFLINE" in one.what]

    def test_one_part_that_fails_and_places_that_cannot_be_reached_take_nothing_along(self, monkeypatch, tmp_path):
        def fail():
            raise OSError("no such counter")
            yield

        monkeypatch.setattr(machine, "_cores", fail)
        findings = list(machine.find_machine(Asked(data=("~nosuchuser/x", "x" * 5000, str(tmp_path)))))
        failed = only(one for one in findings if "could not be looked at" in one.what)
        assert failed.what == "the cores could not be looked at: OSError: no such counter"
        assert any("free on the disk of the current folder" in one.what for one in findings)
        assert any("memory" in one.what for one in findings[findings.index(failed) :])

    def test_no_folder_for_temporary_files(self, monkeypatch):
        def refuse():
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(machine.tempfile, "gettempdir", refuse)
        assert "set TMPDIR" in only(of("problem", machine.find_machine(ASKED))).advice

    def test_variables_that_are_not_in_the_table_stay_private(self, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
        assert "hf_abc" not in repr(list(machine.find_machine(ASKED)))

    def test_another_allocator_is_named(self, monkeypatch):
        monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libother.so:/usr/lib/libtcmalloc.so.4")
        assert any("allocated by libtcmalloc.so.4" in one.what for one in machine._allocator())


class TestDevices:
    @pytest.mark.slow
    def test_a_step_on_all_devices_of_this_process(self, monkeypatch):
        """Eight of them, as the other tests have."""
        monkeypatch.setattr(devices, "has_nvidia_driver", lambda: False)
        findings = list(devices.find_devices(ASKED))
        assert [one.status for one in findings] == ["ok"] * 3, findings
        assert findings[0].what == f"cpu: cpu x {jax.device_count()}"
        assert f"finite, on {jax.device_count()} devices" in findings[2].what

    def test_a_step_of_a_network_of_two_products(self, monkeypatch):
        """Loss, optimiser, step and sharding are the library's; the towers, which take seconds to compile, are not."""

        def abstract_params():
            shapes = {"logit_scale": (), "vision": (3, 4), "text": (16, 4)}
            return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}

        towers = SimpleNamespace(
            abstract_params=abstract_params,
            encode_image=lambda params, images: images.mean((1, 2)) @ params["vision"],
            encode_text=lambda params, tokens: tokens.astype(np.float32) @ params["text"],
        )
        monkeypatch.setattr(clip, "build", lambda config: towers)
        finding = only(devices._step())
        assert finding.status == "ok", finding
        assert f"finite, on {jax.device_count()} devices" in finding.what

    @pytest.mark.parametrize(("platforms", "status"), [(None, "warning"), ("cpu", "note")])
    def test_a_gpu_that_is_not_used(self, monkeypatch, platforms, status):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        if platforms:
            monkeypatch.setenv("JAX_PLATFORMS", platforms)
        monkeypatch.setattr(devices, "has_nvidia_driver", lambda: True)
        monkeypatch.setattr(devices, "_precision", lambda: ())
        monkeypatch.setattr(devices, "_step", lambda: ())
        seen, unused = devices.find_devices(ASKED)
        assert seen.status == "ok"
        assert (unused.status, unused.what) == (status, "an NVIDIA driver is here, and jax computes on the CPU")

    def test_a_step_that_raises_is_a_problem(self, monkeypatch):
        def fail():
            raise RuntimeError("ptxas was not found")

        monkeypatch.setattr(devices, "_precision", lambda: ())
        monkeypatch.setattr(devices, "_tiny_training", fail)
        what = "a training step could not be looked at: RuntimeError: ptxas was not found"
        assert only(of("problem", devices.find_devices(ASKED))).what == what

    def test_a_backend_that_jax_does_not_have(self, monkeypatch):
        monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
        problem = only(findings_of("plip_jax.doctoring.devices", ASKED, hangs=""))
        assert problem.status == "problem"
        assert problem.what.startswith("jax cannot start: RuntimeError: Unable to initialize backend 'nonsense'")
        assert problem.advice.startswith("JAX_PLATFORMS names what this jax does not have")

    @pytest.mark.parametrize(
        ("said", "advice"),
        [
            ("The TPU is already in use by process with pid 12", "another process holds the TPU"),
            ("INTERNAL: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected", "no GPU can be seen"),
            ("INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "the CUDA plugin or"),
            (
                "TPU initialization failed",
                "check that this machine has a TPU and that libtpu fits: pip install --upgrade "
                f"'jax[tpu]=={jax.__version__}'",
            ),
            ("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes", "another process holds the GPU's memory"),
            ("nobody has seen this", "JAX_PLATFORMS=cpu works"),
        ],
    )
    def test_a_backend_that_does_not_start(self, monkeypatch, said, advice):
        def refuse():
            raise RuntimeError(said)

        monkeypatch.setattr(jax, "devices", refuse)
        problem = only(devices.find_devices(ASKED))
        assert problem.status == "problem"
        assert said in problem.what
        assert problem.advice.startswith(advice)

    @pytest.mark.parametrize(("always", "status"), [(False, "note"), (True, "problem")])
    def test_products_that_round_their_operands(self, monkeypatch, always, status):
        true_product = jax.numpy.matmul

        def rounding(left, right, precision):
            if always or precision != jax.lax.Precision.HIGHEST:
                left, right = (each.astype("bfloat16").astype("float32") for each in (left, right))
            return true_product(left, right, precision=precision)

        monkeypatch.setattr(jax.numpy, "matmul", rounding)
        assert only(devices._precision()).status == status

    @pytest.mark.parametrize(("loss", "skipped"), [(float("nan"), 0.0), (1.0, 2.0)])
    def test_a_step_that_is_not_finite(self, monkeypatch, loss, skipped):
        def step(state, batch):
            return state, {"loss": np.float32(loss), "skipped_steps": np.float32(skipped)}

        monkeypatch.setattr(devices, "_tiny_training", lambda: (0, step, 0))
        assert only(devices._step()).status == "problem"


class TestData:
    @pytest.fixture
    def records(self, tmp_path):
        return write_tiles(tmp_path / "tiles", count=6, tests=2)

    def test_sound_records(self, records):
        findings = set(data.find_data(Asked(data=(str(records),))))
        train = Finding("ok", f"{records}: 4 records of the split train")
        assert findings == {train, Finding("ok", f"{records}: 2 records of the split test")}

    def test_a_shard_that_is_cut_short(self, records):
        shard = next(records.glob("*train*array_record*"))
        shard.write_bytes(shard.read_bytes()[:-100])
        findings = list(data.find_data(Asked(data=(str(records),))))
        problem = only(of("problem", findings))
        assert shard.name in problem.what
        assert "the manifest says" in problem.what
        assert f"python -m data_prep.verify {records}" in problem.advice
        assert len(of("ok", findings)) == 1  # the other split

    def test_a_manifest_that_is_none(self, records):
        (records / "records.json").write_text("{")
        problem = only(data.find_data(Asked(data=(str(records),))))
        assert problem.status == "problem"
        assert "records.json cannot be read" in problem.what

    def test_a_folder_that_is_not_there_and_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        findings = list(data.find_data(Asked(data=(str(tmp_path / "none"), str(tmp_path / "file")))))
        assert [one.status for one in findings] == ["problem", "problem"]
        assert findings[0].what.endswith("none: expected images, and nothing is there")
        assert "file: expected a folder with images" in findings[1].what
        assert "no image is in it" in findings[1].what

    def test_a_place_that_cannot_be_looked_at_is_a_problem_and_takes_no_other_along(self, monkeypatch, records):
        def refuse(path):
            if path.name == "locked":
                raise PermissionError(13, "Permission denied")
            return is_records_folder(path)

        is_records_folder = data.is_records_folder
        monkeypatch.setattr(data, "is_records_folder", refuse)
        (records.parent / "locked").mkdir()
        places = ("~nosuchuser/x", "x" * 5000, str(records.parent / "locked"), str(records))
        findings = list(data.find_data(Asked(data=places)))
        assert [one.status for one in findings] == ["problem", "problem", "problem", "ok", "ok"]
        assert findings[0].what.startswith("~nosuchuser/x could not be looked at: RuntimeError")
        assert "File name too long" in findings[1].what
        assert "Permission denied" in findings[2].what

    def test_images_that_an_embedding_takes(self, tmp_path):
        """In no class folder; a list of them; a tar."""
        (tmp_path / "flat").mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / "flat" / name).write_bytes(encoded(tissue(1, 32)))
        (tmp_path / "list.txt").write_text("flat/a.png\nflat/b.png\nflat/gone.png\n")
        with tarfile.open(tmp_path / "tiles.tar", "w") as archive:
            archive.add(tmp_path / "flat", "flat")
        flat, listed, packed = data.find_data(
            Asked(data=tuple(str(tmp_path / name) for name in ("flat", "list.txt", "tiles.tar")))
        )
        assert flat == Finding("ok", f"{tmp_path / 'flat'}: 2 images without labels (folder)")
        assert listed.status == "problem"
        assert "gone.png" in listed.what
        assert packed == Finding("ok", f"{tmp_path / 'tiles.tar'}: 2 images without labels (tar)")

    def test_class_folders_whole_damaged_and_with_splits(self, tmp_path):
        for name in ("sound/tumor", "sound/stroma", "damaged/tumor", "splits/train/tumor", "splits/test/tumor"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "a.png").write_bytes(encoded(tissue(1, 32)))
        damaged = tmp_path / "damaged" / "tumor" / "a.png"
        damaged.write_bytes(damaged.read_bytes()[:200])
        sound, broken, test, train = data.find_data(
            Asked(data=tuple(str(tmp_path / name) for name in ("sound", "damaged", "splits")))
        )
        assert (sound.status, sound.what) == ("ok", f"{tmp_path / 'sound'}: 2 images with labels")
        assert broken.status == "problem"
        assert "tumor/a.png" in broken.what
        assert test == Finding("ok", f"{tmp_path / 'splits'} split test: 1 images with labels")
        assert train.status == "ok"

    def test_a_folder_of_nothing(self, tmp_path):
        problem = only(data.find_data(Asked(data=(str(tmp_path),))))
        assert problem.status == "problem"
        assert "no image is in it" in problem.what


class TestCheckpoint:
    def test_a_model_and_its_hash(self, tmp_path):
        model = make_model()
        write_hf(tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)
        finding = only(checkpoint.find_checkpoint(Asked(checkpoint=str(tmp_path))))
        assert finding.status == "ok"
        assert "model.safetensors, 0.1 million parameters" in finding.what
        assert model.weights_hash[:16] in finding.what

    def test_a_model_with_a_number_that_is_none(self, tmp_path):
        model = make_model()
        model.params["vision"]["projection"] = dict(model.params["vision"]["projection"])
        model.params["vision"]["projection"]["kernel"] = np.full_like(
            model.params["vision"]["projection"]["kernel"], np.nan
        )
        write_hf(tmp_path, model.config, model.params, model.tokenizer, model.preprocessing)
        problem = only(of("problem", checkpoint.find_checkpoint(Asked(checkpoint=str(tmp_path)))))
        assert "1 of " in problem.what
        assert "vision/projection/kernel" in problem.what

    def test_nothing_there(self, tmp_path):
        problem = only(checkpoint.find_checkpoint(Asked(checkpoint=str(tmp_path))))
        assert problem.status == "problem"
        assert "found an empty folder" in problem.what

    def test_one_that_cannot_be_looked_at(self):
        problem = only(checkpoint.find_checkpoint(Asked(checkpoint="~nosuchuser/x")))
        assert problem.status == "problem"
        assert "nosuchuser" in problem.what

    def test_none_was_asked_for(self):
        assert list(checkpoint.find_checkpoint(ASKED)) == []
