"""What comes with the package: configs by name, the doctor, a wheel that needs no checkout."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import jaxmethods
from jaxmethods import cli, config, merging, novo, registry
from jaxmethods.installation import doctor, packaged_configs
from jaxmethods.models.hub.folders import HubError, open_folder

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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo"], "unknown command 'demo'; write jaxmethods run demo"),
        (["run"], "run needs a config: jaxmethods run demo"),
        (["evaluate"], "evaluate needs the folder of a run"),
        (["compare"], "compare needs at least one run folder"),
        (["version"], "write jaxmethods --version"),
        (["run", "demo", "--out"], "--out needs a value, a folder"),
        (["run", "--seed", "3", "demo"], "run needs its config before --seed"),
        (["run", "demo.yml"], "the packaged one is run by jaxmethods run commformer/demo"),
        (["-v"], "write jaxmethods --version"),
        (["--verison"], "did you mean '--version'?"),
        (["run", "demo", "seed=3"], "expected --field value, got 'seed=3'; write --seed=3"),
        (["run", "demo", "-seed", "3"], "got '-seed'; write --seed"),
        (["report", "runs"], "runs: not a run folder, but it holds 1, for instance runs/first"),
    ],
)
def test_a_new_users_mistake_is_one_line_that_helps(
    tmp_path, monkeypatch, capsys, arguments, expected
):
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/config.yaml").write_text("method: obd\n")
    monkeypatch.chdir(tmp_path)
    assert expected in told(capsys, *arguments)


def test_a_misspelled_package_is_named_with_the_nearest():
    with pytest.raises(AttributeError, match=r"no attribute 'mergin' \(did you mean 'merging'"):
        _ = jaxmethods.mergin


def test_a_list_of_experts_is_told_how_it_becomes_a_stack():
    base = {"w": np.zeros(2)}
    with pytest.raises(ValueError, match=r"got a list of 2; write merging\.stack_trees\(experts"):
        merging.ties(base, [base, base])


def test_voters_of_no_direction_are_refused():
    with pytest.raises(ValueError, match="voters: expected both, max or min, got 'largest'"):
        novo.select_heads(np.ones((2, 4), int), voters="largest")


def test_a_models_name_is_not_downloaded():
    with pytest.raises(HubError, match="nothing is downloaded, give the folder of a model"):
        open_folder("somebody/some-model")
