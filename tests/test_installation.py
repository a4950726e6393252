"""What comes with the package: configs by name, the doctor, a wheel that needs no checkout."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jaxmethods import cli, config, registry
from jaxmethods.installation import doctor, packaged_configs

ROOT = Path(__file__).parents[1]


def told(capsys, *arguments: object) -> str:
    """The one line of an error."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_configs_are_listed_with_what_they_do(capsys):
    assert cli.main(["configs"]) == 0
    printed = capsys.readouterr().out
    files = sorted((ROOT / "configs").glob("*/*.yaml"))
    for file in files:
        line = next(line for line in printed.splitlines() if line.split()[:1] == [
            f"{file.parent.name}/{file.stem}"
        ])  # fmt: skip
        assert len(line.split()) > 3
        assert len(line) < 160
    assert len(packaged_configs.packaged()) == len(files)


def test_every_packaged_config_names_a_method():
    for file in packaged_configs.packaged().values():
        assert config.read_yaml(file)["method"] in registry.METHODS


def test_a_config_is_copied_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs", "copy", "demo"]) == 0
    assert Path("demo.yaml").read_bytes() == (ROOT / "configs/commformer/demo.yaml").read_bytes()
    Path("demo.yaml").write_text("mine")
    assert "demo.yaml: is there already" in told(capsys, "configs", "copy", "commformer/demo")
    assert Path("demo.yaml").read_text() == "mine"
    assert cli.main(["configs", "copy", "obd/quickstart", "--to", "other.yaml"]) == 0
    assert "pendulum" in Path("other.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "quickstart"], "which one? There are interpret/quickstart, kid/quickstart"),
        (["run", "hoper"], "neither a file nor a packaged config (did you mean 'hopper'?)"),
        (["run", "commformer/dem"], "did you mean 'commformer/demo'?"),
        (["run", "configs/obd/hopper.yaml"], "is run by jaxmethods run obd/hopper"),
        (["configs", "demo"], "expected configs copy NAME, got configs demo"),
        (["configs", "copy"], "expected configs copy NAME"),
        (["config"], "unknown command 'config' (did you mean 'configs'?)"),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in told(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_packaged_config_is_run_by_name_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = told(capsys, "run", "demo", "--ppo.clipp", "1")
    assert "config demo: ppo.clipp: unknown field (did you mean 'clip'?)" in wrong
    assert cli.main(["run", "demo", "--help"]) == 0
    assert "environment_steps" in capsys.readouterr().out


def test_the_doctor_finds_this_machine_well(capsys):
    diagnosis = doctor.examine()
    assert diagnosis.healthy
    text = "\n".join(diagnosis.lines)
    assert f"jax {metadata.version('jax')}" in text
    assert "compile check: right" in text
    assert "packaged configs" in text


def test_the_doctor_names_what_an_extra_lacks(monkeypatch):
    def requires(name):
        wanted = ['numpy>=99 ; extra == "new"', 'nowhere ; extra == "absent"', "jax>=0.10"]
        return wanted if name == "jaxmethods" else []

    class Fields:
        def get_all(self, _):
            return ["new", "absent"]

    monkeypatch.setattr(metadata, "requires", requires)
    monkeypatch.setattr(metadata, "metadata", lambda _: Fields())
    absent, new = doctor._extras()
    assert absent.split(maxsplit=1) == [
        "absent", "missing nowhere: pip install 'jaxmethods[absent]'"
    ]  # fmt: skip
    assert f"missing numpy >=99 (found {metadata.version('numpy')})" in new


def test_a_broken_backend_is_a_diagnosis(monkeypatch):
    def devices():
        raise RuntimeError("no backend\nand a long story")

    monkeypatch.setattr("jax.devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    diagnosis = doctor.examine()
    assert not diagnosis.healthy
    assert any("FAILED (no backend); JAX_PLATFORMS is 'cuda'" in line for line in diagnosis.lines)


@pytest.mark.slow
def test_a_wheel_has_the_configs_and_all_modules(tmp_path):
    setuptools = pytest.importorskip("setuptools", "77")
    assert setuptools
    build = "from setuptools.build_meta import build_wheel; build_wheel({!r})"
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "jaxmethods", "configs", "*.toml",
         "setup.py", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("not a checkout")
    for name in filter(lambda name: (ROOT / name).exists(), tracked.stdout.splitlines()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [sys.executable, "-c", build.format(str(tmp_path))], cwd=source, check=True,
        capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    of = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxmethods").rglob("*.py")}
    configs = {f"jaxmethods/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/*/*.yaml")}
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == of | configs | {"jaxmethods/py.typed"}
