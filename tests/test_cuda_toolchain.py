"""What is said where a part of CUDA is missing, and that nothing else runs instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tilewright as tw
from tilewright.explore import cli, doctor
from tilewright.runtime.cuda import toolchain as tc
from tilewright.runtime.cuda.toolchain import TO_COMPILE, TO_RUN, find_toolchain


class FakeDriver:
    """The part of cuda.bindings.driver that is used, with one device."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="count",
    )

    def __init__(self, version: int, capability: tuple[int, int], devices: int = 1) -> None:
        self.version, self.devices = version, devices
        self.attributes = {"major": capability[0], "minor": capability[1], "count": 132}

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, self.version

    def cuInit(self, flags: int) -> tuple[int]:
        return (0 if self.devices else 100,)

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, self.devices

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return 0, index

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        return 0, b"Test GPU\0\0"

    def cuDeviceTotalMem(self, device: int) -> tuple[int, int]:
        return 0, 80 << 30

    def cuDeviceGetAttribute(self, key: str, device: int) -> tuple[int, int]:
        return 0, self.attributes[key]


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes modules importable (an object) or not (an error); all wheels are there otherwise."""

    def change(**modules: Any) -> None:
        library = SimpleNamespace(version=lambda: (13, 0))
        found: dict[str, Any] = {
            "driver": FakeDriver(13000, (9, 0)),
            "nvvm": library,
            "nvjitlink": library,
            "compiler": ModuleType("compiler"),
        } | modules

        def fake_import(name: str) -> Any:
            module = found.get(name.rpartition(".")[2])
            if isinstance(module, BaseException):
                raise module
            return module if module is not None else import_module(name)

        versions = {"numba-cuda": "0.30.4"} | modules.get("versions", {})

        def fake_version(name: str) -> str:
            found_version = versions.get(name, "13.0.1")
            if found_version is None:
                raise PackageNotFoundError(name)
            return str(found_version)

        monkeypatch.setattr(tc, "import_module", fake_import)
        monkeypatch.setattr(tc, "version", fake_version)

    return change


def absent(module: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {module!r}", name=module)


def message(names: tuple[str, ...]) -> str:
    with pytest.raises(tw.DeviceError) as caught:
        find_toolchain().require(names, "run models")
    return str(caught.value)


def test_all_is_there(install: Install) -> None:
    install()
    found = find_toolchain().require(TO_RUN, "run models")
    assert found.gpus[0] == tc.Gpu("Test GPU", (9, 0), 80 << 30, 132)
    assert found.gpus[0].architecture == "sm_90a"


def test_missing_wheels(install: Install) -> None:
    install(driver=absent("cuda"), nvvm=absent("cuda"), nvjitlink=absent("cuda"))
    said = message(TO_RUN)
    for part in ("cuda-bindings", "libnvvm", "nvJitLink"):
        assert f"{part}: cuda is not installed" in said
    assert 'pip install "tilewright[cuda]"' in said
    assert "numba-cuda" not in said


@pytest.mark.parametrize("name, part", [("nvvm", "libnvvm"), ("nvjitlink", "nvJitLink")])
def test_one_missing_library(name: str, part: str, install: Install) -> None:
    install(**{name: RuntimeError("libx.so.4: cannot open shared object file\nmore")})
    said = message(TO_COMPILE)
    assert f"{part}: libx.so.4: cannot open shared object file. Install" in said
    assert said.count("\n") == 1


def test_missing_numba_cuda(install: Install) -> None:
    install(versions={"numba-cuda": None})
    assert "numba-cuda: numba-cuda is not installed" in message(TO_COMPILE)


def test_another_numba_cuda(install: Install) -> None:
    install(versions={"numba-cuda": "0.31.0"})
    assert "numba-cuda: version 0.31.0 is here, 0.30.* is needed" in message(TO_COMPILE)


def test_no_driver(install: Install) -> None:
    class DynamicLibNotFoundError(RuntimeError):
        pass

    def fail() -> None:
        raise DynamicLibNotFoundError("cannot find libcuda.so.1")

    driver: Any = FakeDriver(13000, (9, 0))
    driver.cuDriverGetVersion = fail
    install(driver=driver)
    said = message(TO_RUN)
    assert "driver: its library is not found. Install an NVIDIA driver of release 580" in said
    assert "device: not known without a driver" in said
    assert find_toolchain().has(TO_COMPILE)


def test_old_driver(install: Install) -> None:
    install(driver=FakeDriver(12080, (9, 0)))
    assert "driver: it knows CUDA 12.8, older than 13.0. Install" in message(TO_RUN)


def test_no_device(install: Install) -> None:
    install(driver=FakeDriver(13000, (9, 0), devices=0))
    assert "driver: the driver answers 100" in message(TO_RUN)


def test_old_device(install: Install) -> None:
    install(driver=FakeDriver(13000, (7, 5)))
    said = message(TO_RUN)
    assert "device: Test GPU has compute capability 7.5" in said
    assert "8.0 or newer" in said


@pytest.mark.parametrize(
    "text, capability", [("sm_80", (8, 0, "")), ("sm_90a", (9, 0, "a")), ("sm_120", (12, 0, ""))]
)
def test_architectures(text: str, capability: tuple[int, int, str]) -> None:
    assert tc.capability_of(text) == capability


@pytest.mark.parametrize("text", ["sm_75", "sm_", "90a", "compute_80", "sm_8x"])
def test_wrong_architectures(text: str) -> None:
    with pytest.raises(tw.DeviceError, match="sm_80"):
        tc.capability_of(text)


def test_target_cuda_never_runs_on_the_cpu(install: Install) -> None:
    install(driver=absent("cuda"))
    with pytest.raises(tw.DeviceError, match="CUDA cannot be used to run models"):
        tw.compile(b"", target="cuda")


def test_doctor_says_what_is_missing(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(driver=absent("cuda"))
    assert cli.main(["doctor", "--json"]) == cli.RIGHT
    found = json.loads(capsys.readouterr().out)
    assert found["cuda"]["usable"].startswith("no")
    assert found["cuda"]["compiles"].startswith("no")
    assert found["missing"]["driver"].startswith("not known: cuda is not installed. Install")
    assert found["versions"]["numba"] == version("numba")
    assert "cores" in found["processor"] and "folder" in found["cache"]


def test_doctor_shows_a_device(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install()
    assert cli.main(["doctor"]) == cli.RIGHT
    shown = " ".join(capsys.readouterr().out.split())
    assert "Test GPU, compute capability 9.0, 132 multiprocessors, 80.0 GiB" in shown
    assert "usable yes" in shown and "compiles yes" in shown


def test_doctor_counts_the_cache(tmp_path: Any) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "object").write_bytes(b"x" * (1 << 20))
    found = doctor.diagnose(tw.Options(cache_dir=tmp_path))
    assert found.cache["content"].startswith("1 files, 1.0 MiB")
