"""The doctor's page, its processes, and the faults of installed packages: each is made, found and answered."""

import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from packaging.requirements import Requirement
from small_faults import ASKED, of, only, pretend_installed, put_on_path

from plip_jax import doctor
from plip_jax.doctoring import child, optional, packages
from plip_jax.doctoring.child import findings_of
from plip_jax.doctoring.finding import Asked, Finding, guarded, without_private


class TestPackages:
    def test_what_fits_is_no_finding(self):
        assert packages.check_floor(Requirement("numpy>=2.0")) is None

    def test_one_below_its_floor(self):
        finding = packages.check_floor(Requirement("numpy>=999"))
        assert finding is not None
        assert finding.status == "problem"
        assert f"numpy {np.__version__}: plip_jax needs >=999" in finding.what
        assert finding.advice == "pip install --upgrade 'numpy>=999'"

    def test_one_that_is_missing(self):
        finding = packages.check_floor(Requirement("no-such-package[fast]>=1"))
        assert finding == Finding(
            "problem", "no-such-package is not installed", "pip install 'no-such-package[fast]>=1'"
        )

    def test_one_of_an_extra_or_of_another_python_is_not_asked_for(self):
        assert packages.check_floor(Requirement("no-such-package; extra == 'data'")) is None
        assert packages.check_floor(Requirement("no-such-package; python_version < '3'")) is None

    def test_a_nightly_of_the_floor_counts(self, monkeypatch, tmp_path):
        pretend_installed(monkeypatch, tmp_path, "nightly", "1.3.0.dev20260101")
        assert packages.check_floor(Requirement("nightly>=1.2")) is None
        assert packages.check_floor(Requirement("nightly>=1.3")) is not None

    def test_a_jaxlib_that_is_not_of_this_jax(self, monkeypatch, tmp_path):
        pretend_installed(monkeypatch, tmp_path, "jax", "0.9.1", "jaxlib<=0.9.1,>=0.9.1")
        pretend_installed(monkeypatch, tmp_path, "jaxlib", "0.8.0")
        problem = next(one for one in of("problem", packages.find_packages(ASKED)) if "jaxlib" in one.what)
        assert "jax 0.9.1 and jaxlib 0.8.0 do not belong together" in problem.what
        assert problem.advice == "pip install --upgrade 'jax==0.9.1' 'jaxlib==0.9.1'"

    @pytest.mark.parametrize("version", ["0.10.1", "0.4.31"])
    def test_a_cuda_plugin_of_another_jaxlib(self, monkeypatch, tmp_path, version):
        for name in ("jax", "jaxlib"):
            pretend_installed(monkeypatch, tmp_path, name, "0.10.2")
        pretend_installed(monkeypatch, tmp_path, "jax-cuda12-plugin", version)
        problem = only(packages._jax_parts())
        assert problem.status == "problem"
        assert f"jax-cuda12-plugin {version} is not of jaxlib 0.10.2" in problem.what
        assert problem.advice == "pip install --upgrade 'jax[cuda12]==0.10.2'"

    def test_plugins_that_jax_takes(self, monkeypatch, tmp_path):
        """As jaxlib.plugin_support does: the one for ROCm has versions of its own."""
        monkeypatch.setattr(packages, "has_nvidia_driver", lambda: True)
        for name in ("jax", "jaxlib"):
            pretend_installed(monkeypatch, tmp_path, name, "0.10.2")
        pretend_installed(monkeypatch, tmp_path, "jax_cuda12_plugin", "0.10.2.dev20260101")
        pretend_installed(monkeypatch, tmp_path, "jax-rocm7-plugin", "0.9.0")
        assert list(packages._jax_parts()) == []

    def test_one_part_that_fails_takes_no_other_along(self, monkeypatch):
        def fail():
            raise AttributeError("half a package")
            yield

        monkeypatch.setattr(packages, "_jax_parts", fail)
        findings = list(packages.find_packages(ASKED))
        assert [one.what for one in of("warning", findings) if "half a package" in one.what]
        assert "JPEG" in findings[-1].what

    def test_a_gpu_that_jax_has_no_plugin_for(self, monkeypatch):
        monkeypatch.setattr(packages, "has_nvidia_driver", lambda: True)
        warning = next(one for one in of("warning", packages.find_packages(ASKED)) if "NVIDIA" in one.what)
        assert "everything runs on the CPU" in warning.what

    def test_a_page_with_a_problem_ends_with_status_1(self, monkeypatch, tmp_path, capsys):
        pretend_installed(monkeypatch, tmp_path, "optax", "0.0.1")
        monkeypatch.setattr(doctor, "PROBES", {"packages": ""})
        assert doctor.main([]) == 1
        page = capsys.readouterr().out
        assert "  problem  optax 0.0.1: plip_jax needs >=0.2.8\n" in page
        kept = f"'jax=={importlib.metadata.version('jax')}'"  # optax needs a jax, and pip may take another
        assert f"           -> pip install --upgrade 'optax>=0.2.8' {kept}\n" in page
        assert page.endswith("\n1 problem\n")


class TestOptional:
    PART = optional.Part("no-such-package", "import seldom_used", "rare things", "rare")

    def find(self, monkeypatch, *parts, asked=ASKED):
        monkeypatch.setattr(optional, "PARTS", parts)
        return list(optional.find_optional(asked))

    def test_one_that_is_not_there(self, monkeypatch):
        finding = only(self.find(monkeypatch, self.PART))
        advice = "pip install -e '.[rare]' in the folder of plip_jax's files, for rare things"
        assert finding == Finding("note", "no-such-package is not installed", advice)

    def test_what_is_told_in_time_where_many_hang(self, monkeypatch, tmp_path):
        put_on_path(monkeypatch, tmp_path, seldom_used="import time; time.sleep(60)")
        monkeypatch.setattr(optional.os, "cpu_count", lambda: 1)
        start = time.perf_counter()
        told = []
        monkeypatch.setattr(optional, "PARTS", (self.PART,) * 5)
        for finding in optional.find_optional(Asked(timeout_seconds=0.9)):
            told.append((finding.what, time.perf_counter() - start))
            assert finding.advice == "try again with a longer --timeout"
        assert [seconds < 0.9 for what, seconds in told] == [True] * 5, told
        assert "no answer in 0.3 s" in told[0][0]
        assert "not tried" in told[4][0]

    def test_one_that_works(self, monkeypatch, tmp_path):
        put_on_path(monkeypatch, tmp_path, seldom_used="")
        assert only(self.find(monkeypatch, self.PART)) == Finding("ok", "no-such-package, for rare things")

    def test_a_torchvision_of_another_torch(self, monkeypatch, tmp_path):
        fails = "raise RuntimeError('operator torchvision::nms does not exist')"
        put_on_path(
            monkeypatch, tmp_path, seldom_used=f"try:\n    {fails}\nexcept RuntimeError:\n    raise ImportError"
        )
        finding = only(self.find(monkeypatch, self.PART))
        assert finding.status == "warning"
        assert "`import seldom_used` fails: ImportError" in finding.what
        assert "install both together" in finding.advice

    def test_one_that_ends_the_process_or_never_comes_back(self, monkeypatch, tmp_path):
        part = dataclasses.replace(self.PART, statement="import hangs")
        put_on_path(monkeypatch, tmp_path, seldom_used="import os; os._exit(3)", hangs="import time; time.sleep(60)")
        findings = self.find(monkeypatch, self.PART, part, asked=Asked(timeout_seconds=4.5))
        assert [one.status for one in findings] == ["warning", "warning"]
        assert "it ended with status 3" in findings[0].what
        assert "no answer in 1.5 s" in findings[1].what

    def test_what_is_of_no_use_without_another_is_passed_over(self, monkeypatch):
        assert self.find(monkeypatch, dataclasses.replace(self.PART, beside="no-such-torch")) == []


class TestChildren:
    def test_one_that_hangs_is_ended_with_its_children(self, monkeypatch, tmp_path):
        spawn = f"import subprocess; subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(50)'])"
        says = "from plip_jax.doctoring.child import answer\nfrom plip_jax.doctoring.finding import Finding\n"
        body = "def probe(asked):\n    yield Finding('ok', 'before')\n    import time; time.sleep(50)\nanswer(probe)\n"
        put_on_path(monkeypatch, tmp_path, hangs=f"{spawn}\n{says}{body}")
        start = time.perf_counter()
        findings = findings_of("hangs", Asked(timeout_seconds=2), hangs="do this")
        assert time.perf_counter() - start < 20
        ended = Finding("problem", "no answer in 2 s, so it was ended", "do this")
        assert findings == [Finding("ok", "before"), ended]

    def test_one_that_crashes(self, monkeypatch, tmp_path):
        put_on_path(
            monkeypatch,
            tmp_path,
            crashes="import os, sys; print('the reader', file=sys.stderr, flush=True); os.abort()",
        )
        problem = only(findings_of("crashes", ASKED, hangs=""))
        what = "the process that looked ended with signal 6: the reader"
        assert problem == Finding("problem", what, "python -m crashes shows all that it says")

    def test_one_that_cannot_begin(self, monkeypatch, tmp_path):
        put_on_path(monkeypatch, tmp_path, lacking="import no_such_package")
        problem = only(findings_of("lacking", ASKED, hangs=""))
        assert "status 1: ModuleNotFoundError: No module named 'no_such_package'" in problem.what

    def test_one_that_raises_keeps_what_it_had_found(self):
        def probe(asked):
            yield Finding("ok", "first")
            raise KeyError("second")

        first, failure = guarded(probe(ASKED))
        assert first == Finding("ok", "first")
        assert failure.status == "warning"
        assert "could not be looked at: KeyError: 'second'" in failure.what

    def test_no_folder_for_temporary_files(self, monkeypatch, tmp_path):
        def refuse(*args, **kwargs):
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.setattr(child.tempfile, "TemporaryFile", refuse)
        put_on_path(monkeypatch, tmp_path, says='print(\'plip-jax findings: {"status": "ok", "what": "here"}\')')
        if hasattr(os, "memfd_create"):
            assert findings_of("says", ASKED, hangs="") == [Finding("ok", "here")]
            monkeypatch.delattr(os, "memfd_create")
        problem = only(findings_of("says", ASKED, hangs=""))
        assert problem.status == "problem"
        assert "cannot be started: FileNotFoundError: [Errno 2] No usable temporary directory" in problem.what

    def test_one_that_is_ended_within_a_line(self, monkeypatch):
        output = 'plip-jax findings: {"status": "ok", "what": "first"}\nplip-jax findings: {"status": "pro'
        monkeypatch.setattr(child, "run", lambda command, seconds: child.Ended(None, output, ""))
        first, ended = findings_of("torn", ASKED, hangs="")
        assert first == Finding("ok", "first")
        assert "no answer" in ended.what


class TestPage:
    PAGE: ClassVar = {
        "packages": [Finding("ok", "all is well"), Finding("problem", "one two three four five six", "do this now")],
        "devices": [Finding("note", "a", "b"), Finding("warning", "c")],
    }

    def test_it_is_aligned_and_wrapped(self):
        lines = doctor.as_text(self.PAGE, width=32).splitlines()
        assert lines[1:] == [
            "",
            "packages",
            "  ok       all is well",
            "  problem  one two three four",
            "           five six",
            "           -> do this now",
            "",
            "devices",
            "  note     a",
            "           -> b",
            "  warning  c",
            "",
            "1 problem, 1 warning",
        ]

    def test_colours_change_nothing_but_the_labels(self):
        coloured = doctor.as_text(self.PAGE, width=32, coloured=True)
        assert "  \x1b[31mproblem\x1b[0m  one two" in coloured
        for code in ("\x1b[32m", "\x1b[36m", "\x1b[33m", "\x1b[31m", "\x1b[0m"):
            coloured = coloured.replace(code, "")
        assert coloured == doctor.as_text(self.PAGE, width=32)

    def test_nothing_wrong(self):
        assert doctor.as_text({"machine": [Finding("ok", "fine")]}).endswith("\n\nnothing is wrong")

    def test_what_is_published_names_nobody(self):
        said = (
            "/home/ada/data and /Users/grace/x, /srv/plip/y by lovelace on engine.example.org (engine): "
            "hf_AbCdEfGh1234 at https://lovelace:secret@hub/x, not lovelaces nor /srv/plip-jax"
        )
        public = without_private(said, home="/srv/plip", user="lovelace", host="engine.example.org")
        assert (
            public
            == "~/data and ~/x, ~/y by USER on HOST (HOST): TOKEN at https://hub/x, not lovelaces nor /srv/plip-jax"
        )
        assert without_private("/root of root", home="/", user="root", host="localhost") == "/root of root"

    @pytest.mark.parametrize(
        ("said", "public"),
        [
            ("connect to 10.1.2.3:8476 failed.", "connect to ADDRESS:8476 failed."),
            ("ipv4:192.168.0.7:80, 10.0.0.1.", "ipv4:ADDRESS:80, ADDRESS."),
            ("at [2001:db8::1]:80 and fe80::1%eth0", "at [ADDRESS]:80 and ADDRESS%eth0"),
            ("ipv6:%5B2001:db8::7%5D:80; 2001:db8::1: refused", "ipv6:%5BADDRESS%5D:80; ADDRESS: refused"),
            ("std::bad_alloc at 12:30:45, torchvision::nms", "std::bad_alloc at 12:30:45, torchvision::nms"),
            ("jax 0.10.2, libjpeg-turbo 3.1.4.1", "jax 0.10.2, libjpeg-turbo 3.1.4.1"),
            ("ask ada.l@lab.example.org", "ask EMAIL"),
            ("https://hub/x?token=abcd&rev=1", "https://hub/x?token=SECRET&rev=1"),
            ("WANDB_API_KEY='ab12' password=x, n=1", "WANDB_API_KEY='SECRET' password=SECRET, n=1"),
            ("Authorization: Bearer ab.cd", "Authorization: Bearer SECRET"),
            ("x_hf_AbCdEfGh1234 ghp_abcdefgh12", "x_TOKEN TOKEN"),
            ("/data/lovelace_runs/x, /data/lovelaces", "/data/USER_runs/x, /data/lovelaces"),
        ],
    )
    def test_addresses_secrets_and_names_in_paths(self, said, public):
        assert without_private(said, home="/srv/a", user="lovelace", host="engine") == public

    def test_a_short_name_is_replaced_in_paths_only(self):
        public = without_private("li in /scratch/li/run, /scratch/list", home="/srv/a", user="li", host="engine")
        assert public == "li in /scratch/USER/run, /scratch/list"

    def test_a_terminal_and_a_file_that_lack_a_letter(self, monkeypatch, tmp_path):
        said = "/données/\udcff/図 …"
        monkeypatch.setattr(doctor, "examine", lambda asked: {"data": [Finding("ok", said)]})
        for encoding, line in (
            ("latin-1", "ok       /données/\\udcff/\\u56f3 \\u2026\n"),
            ("utf-8", "ok       /données/\\udcff/図 …\n"),
        ):
            terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
            monkeypatch.setattr(sys, "stdout", terminal)
            assert doctor.main(["--out", str(tmp_path / "page.txt")]) == 0
            assert doctor.main(["--json", "--out", str(tmp_path / "page.json")]) == 0
            terminal.flush()
            text, brace, values = terminal.buffer.getvalue().decode(encoding).partition("{")
            assert line in text
            assert json.loads(brace + values)["findings"][0]["what"] == said
        assert "/données/\\udcff/図 …" in (tmp_path / "page.txt").read_text(encoding="utf-8")
        assert json.loads((tmp_path / "page.json").read_text())["findings"][0]["what"] == said

    def test_the_json_form_is_public_and_complete(self, monkeypatch):
        monkeypatch.setenv("HOME", "/srv/ada")
        monkeypatch.setattr(doctor.socket, "gethostname", lambda: "engine")
        values = json.loads(doctor.as_json({"data": [Finding("problem", "/srv/ada/x of engine", "look")]}))
        assert values["problems"] == 1
        assert values["findings"] == [{"probe": "data", "status": "problem", "what": "~/x of HOST", "advice": "look"}]

    def test_a_file_is_written_whole_and_a_folder_that_is_not_there_is_said(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(doctor, "examine", lambda asked: {"machine": [Finding("ok", "fine")]})
        assert doctor.main(["--json", "--out", str(tmp_path / "page.json")]) == 0
        assert json.loads((tmp_path / "page.json").read_text()) == json.loads(capsys.readouterr().out)
        assert [path.name for path in tmp_path.iterdir()] == ["page.json"]
        assert doctor.main(["--out", str(tmp_path / "none" / "page.txt")]) == 1
        assert doctor.main(["--out", "/"]) == 1
        assert capsys.readouterr().err.count("expected a file that can be written") == 2

    def test_folders_and_models_are_looked_at_only_when_asked_for(self, monkeypatch):
        monkeypatch.setattr(doctor, "findings_of", lambda module, asked, hangs: [])
        assert list(doctor.examine(ASKED)) == ["packages", "optional", "machine", "devices"]
        assert list(doctor.examine(Asked(data=("x",), checkpoint="y"))) == list(doctor.PROBES)

    def test_every_probe_is_a_module_and_every_module_a_probe(self):
        folder = Path(doctor.__file__).with_name("doctoring")
        runnable = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()}
        assert runnable == set(doctor.PROBES)
        assert all(importlib.util.find_spec(f"plip_jax.doctoring.{name}") for name in doctor.PROBES)
