"""What is installed, and what the files beside the code say of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import raptr_jax

ROOT = Path(__file__).resolve().parent.parent
NORMAL = str.maketrans("_", "-")


def read(name: str) -> str:
  return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """What a wheel would contain."""
  folder = tmp_path_factory.mktemp("built")
  command = [sys.executable, "setup.py", "-q"]
  command += ["egg_info", f"--egg-base={folder}", "build_py", "--build-lib"]
  subprocess.run([*command, folder / "lib"], cwd=ROOT, check=True)
  return folder


def test_one_package_is_installed_with_its_files(built):
  library = built / "lib"
  assert [path.name for path in library.iterdir()] == ["raptr_jax"]
  installed = {
    str(path.relative_to(library / "raptr_jax"))
    for path in library.rglob("*")
    if path.is_file()
  }
  assert "py.typed" in installed
  folders = {"gin": ROOT / "gin", "tasks": ROOT / "tasks"}
  folders["scaffold/templates"] = ROOT / "raptr_jax/scaffold/templates"
  for target, folder in folders.items():
    for path in folder.rglob("*.*"):
      if path.suffix in (".gin", ".py", ".txt"):
        assert f"{target}/{path.relative_to(folder)}" in installed
  assert not any(name.startswith("tests/") for name in installed)


def test_one_program_is_installed(built):
  entries = (built / "raptr_jax.egg-info" / "entry_points.txt").read_text()
  assert entries.split() == [
    *("[console_scripts]", "raptr", "=", "raptr_jax.main:main")
  ]


def test_all_files_agree_on_the_version(built):
  version = raptr_jax.__version__
  metadata = (built / "raptr_jax.egg-info" / "PKG-INFO").read_text("utf-8")
  assert f"\nVersion: {version}\n" in metadata
  assert yaml.safe_load(read("CITATION.cff"))["version"] == version
  versions = re.findall(r"^## \[(\d.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
  assert versions[0] == version


def test_all_files_agree_on_the_license(built):
  metadata = (built / "raptr_jax.egg-info" / "PKG-INFO").read_text("utf-8")
  # Older versions of setuptools write `License:`.
  assert re.search(r"^License(-Expression)?: Apache-2.0$", metadata, re.M)
  assert yaml.safe_load(read("CITATION.cff"))["license"] == "Apache-2.0"
  assert "Copyright 2026 The raptr_jax authors" in read("LICENSE")


def test_each_requirement_has_a_tested_version(built):
  """Except those of accelerators, which are not tested."""
  requires = (built / "raptr_jax.egg-info" / "requires.txt").read_text()
  required = {
    line.lower().translate(NORMAL)
    for line in requires.splitlines()
    if line and line[0].isalpha() and "[" not in line
  }
  pins = re.findall(r"^([\w.-]+)==", read("constraints.txt"), re.MULTILINE)
  assert required <= {pin.lower().translate(NORMAL) for pin in pins}
  assert {"sphinx", "pytest", "tensorflow"} <= required


def test_constraints_are_sorted():
  lines = [x for x in read("constraints.txt").splitlines() if "==" in x]
  names = [line.partition("==")[0].lower().translate(NORMAL) for line in lines]
  assert names == sorted(names)


def test_ci_runs_the_checks_on_the_versions_that_are_declared(built):
  workflow = yaml.safe_load(read(".github/workflows/check.yml"))
  job = workflow["jobs"]["check"]
  assert "./scripts/check.sh" in [step.get("run") for step in job["steps"]]
  metadata = (built / "raptr_jax.egg-info" / "PKG-INFO").read_text("utf-8")
  declared = re.findall(r"Python :: (3\.\d+)", metadata)
  assert job["strategy"]["matrix"]["python"] == declared


def test_forms_and_hooks_can_be_read():
  for path in (ROOT / ".github").rglob("*.yml"):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))
  hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
  check = read("scripts/check.sh")
  for hook in hooks:
    program = hook["entry"].partition(" --")[0]
    assert program in check, program
