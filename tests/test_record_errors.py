"""What a user is told when recording cannot start: one line, the mend, the exit code. No privileges needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultreplay.cli.main import _exit_code
from faultreplay.collect.backends import bcc_loader, tracefs
from faultreplay.collect.recorder import run, spec
from faultreplay.collect.recorder.host import kvm_flavour
from faultreplay.faulttrace.errors import MissingFeature, NoPermission


def _fails(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = _exit_code(["record", *args])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return code, captured.err


def test_without_privileges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "missing_capabilities", lambda: ["CAP_BPF", "CAP_PERFMON"])
    code, said = _fails(capsys, "-o", str(tmp_path / "a.trace"), "--", "true")
    assert (code, said) == (77, "error: recording needs CAP_BPF and CAP_PERFMON: run as root or grant them\n")


def test_nothing_to_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _fails(capsys, "-o", str(tmp_path / "a.trace"))
    assert code == 2
    assert "-p PID" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--probes", "faults,frob"], "'frob'"),
        (["--ring-size", "100000"], "power of two"),
        (["-d", "0"], "duration"),
        (["-d", "soon"], "'soon' is not a duration"),
    ],
)
def test_bad_options(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spec, "missing_capabilities", list)
    code, said = _fails(capsys, "-o", str(tmp_path / "a.trace"), *options, "--", "true")
    assert code == 2
    assert words in said


def test_unknown_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "missing_capabilities", list)
    code, said = _fails(capsys, "-o", str(tmp_path / "a.trace"), "--", "/no/such/program")
    assert code == 2
    assert "'/no/such/program'" in said
    assert not (tmp_path / "a.trace").exists()


def test_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.trace").mkdir()
    code, said = _fails(capsys, "-o", str(tmp_path / "a"), "--", "true")
    assert code == 2
    assert "--force" in said


def test_without_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc_loader, "_PLACES", ())
    monkeypatch.delitem(bcc_loader.sys.modules, "bcc", raising=False)
    with pytest.raises(MissingFeature, match="apt install python3-bpfcc") as error:
        bcc_loader.load_bcc()
    assert error.value.exit_code == 5


def test_an_unrelated_package_named_bcc_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("lattice = True\n")
    monkeypatch.setattr(bcc_loader, "_PLACES", (str(package),))
    monkeypatch.delitem(bcc_loader.sys.modules, "bcc", raising=False)
    with pytest.raises(MissingFeature):
        bcc_loader.load_bcc()


def test_without_headers() -> None:
    if Path("/sys/kernel/kheaders.tar.xz").exists():
        pytest.skip("this kernel carries its own headers")
    with pytest.raises(MissingFeature, match="install-debian"):
        bcc_loader.check_headers("0.0.0-none")


def test_without_tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefs, "ROOTS", (tmp_path,))
    with pytest.raises(MissingFeature, match="mount -t tracefs"):
        tracefs.tracefs_root()


@pytest.mark.parametrize(("module", "flavour"), [("kvm_intel", "vmx"), ("kvm_amd", "svm"), ("kvm_pvm", "pvm")])
def test_kvm_flavour(tmp_path: Path, module: str, flavour: str) -> None:
    (tmp_path / module).mkdir()
    assert kvm_flavour(tmp_path) == flavour
    assert kvm_flavour(tmp_path / module, tmp_path / "no-kvm") == "none"


def test_a_kernel_that_refuses_probes_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "missing_capabilities", list)
    monkeypatch.setattr(spec, "tracefs_root", lambda: tmp_path)
    monkeypatch.setattr(spec, "try_tracepoint", lambda _: "Permission denied")
    with pytest.raises(NoPermission, match=r"refuses to attach .*Permission denied.*paranoid") as caught:
        run.record(spec.RecordSpec(command=("true",)), tmp_path / "a.trace", lambda: True)
    assert caught.value.exit_code == 77
    assert not (tmp_path / "a.trace").exists()
