"""``resilmesh ca``: its words, what it prints, how it ends, and how a renewal that stays is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from resilmesh import cli
from resilmesh.identity import renewal
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.svid import Svid, TrustBundle

WEB = "spiffe://shop.example/ns/prod/sa/web"
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESILMESH_CA_PASSWORD", raising=False)
    # Nobody is asked.
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)


class Ca:
    """Runs the verb in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str, status: int = 0) -> str:
        done = cli.main(["ca", *words])
        out, self.err = self._capsys.readouterr()
        assert done == status, self.err
        return out

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*words, "--json"))
        return found


@pytest.fixture
def ca(capsys: pytest.CaptureFixture[str]) -> Ca:
    made = Ca(capsys)
    made("init", "ca", "--trust-domain", "shop.example")
    return made


def test_init(capsys: pytest.CaptureFixture[str]) -> None:
    ca = Ca(capsys)
    assert ca("init", "ca", "--trust-domain", "shop.example") == (
        "an authority of shop.example in ca, with keys that only this user can read\n"
        "next: resilmesh ca issue ca spiffe://shop.example/ns/prod/sa/web --out tls\n"
    )
    ca("init", "ca", "--trust-domain", "shop.example", status=1)
    assert "has an authority already; open it, or give another directory" in ca.err
    seen = ca.json("init", "other", "--trust-domain", "other.example", "--root-days", "30", "--intermediate-days", "10")
    assert (seen["trust_domain"], [each["phase"] for each in seen["roots"]]) == ("other.example", ["active"])


def test_issue(ca: Ca) -> None:
    out = ca("issue", "ca", WEB, "--out", "tls", "--dns", "web.svc", "--dns", "web.prod.svc", "--ttl", "10m")
    svid = Svid.from_pem(Path("tls/tls.crt").read_bytes(), Path("tls/tls.key").read_bytes())
    assert (str(svid.id), svid.dns_names[1:]) == (WEB, ("web.svc", "web.prod.svc"))
    assert out == f"{WEB} until {svid.leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}: tls.crt, tls.key, ca.crt in tls, serial " \
        f"{svid.leaf.serial_number:x}\n"
    assert TrustBundle.from_pem("shop.example", Path("tls/ca.crt").read_bytes()) == CertificateAuthority.open("ca").bundle()
    assert Path("tls/tls.key").stat().st_mode & 0o777 == 0o600
    seen = ca.json("issue", "ca", WEB, "--out", "tls")
    assert seen["spiffe_id"] == WEB
    assert seen["serial"] == f"{Svid.from_pem(Path('tls/tls.crt').read_bytes(), Path('tls/tls.key').read_bytes()).leaf.serial_number:x}"
    assert seen["files"] == ["tls/tls.crt", "tls/tls.key", "tls/ca.crt"]


def test_a_request_is_signed(ca: Ca) -> None:
    program = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=admin -keyout own.key -out own.csr"
    subprocess.run(program.split(), check=True, capture_output=True)
    ca("issue", "ca", WEB, "--out", "tls", "--csr", "own.csr")
    svid = Svid.from_pem(Path("tls/tls.crt").read_bytes(), Path("own.key").read_bytes())
    assert svid.leaf.subject == x509.Name([])
    assert not Path("tls/tls.key").exists()
    Path("broken.csr").write_text("nothing")
    ca("issue", "ca", WEB, "--out", "tls", "--csr", "broken.csr", status=1)
    assert ca.err.startswith("resilmesh ca issue: the request is not one PEM block")
    ca("issue", "ca", WEB, "--out", "tls", "--csr", "absent.csr", status=1)
    assert ca.err == "resilmesh ca issue: absent.csr: No such file or directory\n"


@pytest.mark.parametrize(("words", "said"), [
    (("issue", "absent", WEB, "--out", "tls"), "there is no authority in "),
    (("issue", "ca", "spiffe://other.example/web", "--out", "tls"), "not of the trust domain shop.example"),
    (("issue", "ca", WEB, "--out", "tls", "--ttl", "25h"), "a certificate lives from 1m to 1d"),
    (("issue", "ca", WEB, "--out", "tls", "--dns", "*"), "is no host name"),
    (("list", "."), "make one: resilmesh ca init"),
    (("bundle", "."), "make one: resilmesh ca init"),
    (("revoke", "ca", "1234"), "is neither a SPIFFE ID nor the serial number"),
    (("revoke", "ca", WEB, "--lift"), "is not revoked"),
    (("rotate", "ca", "--activate"), "no root is announced; next: resilmesh ca rotate"),
    (("rotate", "ca", "--retire"), "there is no old root to retire"),
    (("init", "new", "--trust-domain", "Shop Example"), "is not of lower-case letters"),
    (("init", "new", "--trust-domain", "shop.example", "--encrypt"), "give RESILMESH_CA_PASSWORD or --password-file"),
    (("init", "new", "--trust-domain", "shop.example", "--root-days", "100000000"), "the lives do not fit"),
])
def test_what_is_refused(ca: Ca, words: tuple[str, ...], said: str) -> None:
    assert ca(*words, status=1) == ""
    assert ca.err.startswith(f"resilmesh ca {words[0]}: ")
    assert said in ca.err


@pytest.mark.parametrize("words", [
    (), ("sign",), ("init", "ca"), ("issue", "ca", WEB), ("issue", "ca", WEB, "--out", "tls", "--ttl", "60"),
    ("rotate", "ca", "--activate", "--retire"), ("issue", "ca", WEB, "--out", "tls", "--password", "x"), ("revoke", "ca"),
    ("rotate", "ca", "--force"), ("rotate", "ca", "--intermediate", "--force"),
])
def test_wrong_words(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ca", *words])
    assert ended.value.code == 2


def test_bundle(ca: Ca) -> None:
    pem = ca("bundle", "ca")
    assert x509.load_pem_x509_certificates(pem.encode()) == list(CertificateAuthority.open("ca").bundle().certificates)
    ca("bundle", "ca", "--out", "roots.pem")
    assert Path("roots.pem").read_text() == pem
    assert Path("roots.pem").stat().st_mode & 0o777 == 0o644
    assert not [name for name in os.listdir() if name.startswith(".roots")]
    ca("bundle", "ca", "--out", "absent/roots.pem", status=1)
    assert ca.err.endswith(": No such file or directory\n")


def test_list_and_revoke(ca: Ca) -> None:
    serial = ca.json("issue", "ca", WEB, "--out", "tls")["serial"]
    lines = ca("list", "ca").splitlines()
    assert lines[0] == "trust domain shop.example"
    assert [line.split()[:2] for line in lines[1:3]] == [["root-1", "active"], ["intermediate-1", "signs"]]
    assert lines[-1].split() == [serial, lines[-1].split()[1], "good", WEB]
    assert ca.json("list", "ca")["certificates"][0]["serial"] == serial

    assert "gets no certificate any more; 1 revoked, in ca/crl.pem" in ca("revoke", "ca", serial)
    assert ca.json("list", "ca")["certificates"] == []
    listed = ca("list", "ca", "--all")
    assert f"revoked  {WEB}" in listed
    assert f": {WEB}" in listed.split("SERIAL")[0]
    ca("issue", "ca", WEB, "--out", "tls", status=1)
    assert "--lift" in ca.err
    assert ca.json("revoke", "ca", WEB) == {"spiffe_id": WEB, "barred": True, "revoked": []}
    assert ca.json("revoke", "ca", WEB, "--lift") == {"spiffe_id": WEB, "barred": False, "revoked": []}
    ca("issue", "ca", WEB, "--out", "tls")


def test_rotate(ca: Ca) -> None:
    ca("issue", "ca", WEB, "--out", "tls")
    assert ca("rotate", "ca") == "root-1 is active\nroot-2 is announced\nintermediate-1, below root-1, signs\n"
    assert "a rotation is under way; next: resilmesh ca rotate " in ca.err
    ca("rotate", "ca", "--activate", status=1)
    assert "activate it then (or now, with --force" in ca.err
    assert [each["phase"] for each in ca.json("rotate", "ca", "--activate", "--force")["roots"]] == ["old", "active"]
    ca("rotate", "ca", "--retire", status=1)
    assert ca("rotate", "ca", "--retire", "--force") == "root-2 is active\nintermediate-2, below root-2, signs\n"
    assert ca.err == ""
    assert ca("rotate", "ca", "--intermediate") == "root-2 is active\nintermediate-3, below root-2, signs\n"


def test_a_password_comes_from_a_file_or_the_environment(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("password").write_text(PASSWORD + "\nnot this\n")
    assert "with encrypted keys" in ca("init", "safe", "--trust-domain", "shop.example", "--password-file", "password")
    ca("issue", "safe", WEB, "--out", "tls", "--password-file", "password")
    ca("issue", "safe", WEB, "--out", "tls", status=1)
    assert "are encrypted, and there is no password" in ca.err
    ca("bundle", "safe")
    monkeypatch.setenv("RESILMESH_CA_PASSWORD", PASSWORD)
    ca("rotate", "safe")
    Path("password").write_text(PASSWORD[::-1])
    ca("issue", "safe", WEB, "--out", "tls", "--password-file", "password", status=1)
    assert "the password is wrong" in ca.err
    assert PASSWORD[::-1] not in ca.err


def test_a_password_is_asked_for(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([PASSWORD, "x" * 20, PASSWORD, PASSWORD, PASSWORD])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    ca("init", "safe", "--trust-domain", "shop.example", "--encrypt", status=1)
    assert "the two passwords are not the same" in ca.err
    ca("init", "safe", "--trust-domain", "shop.example", "--encrypt")
    ca("issue", "safe", WEB, "--out", "tls")
    assert next(answers, None) is None


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(options: object) -> int:
        raise ModuleNotFoundError("No module named 'cryptography'", name="cryptography")

    monkeypatch.setattr("resilmesh.cli.ca._list", absent)
    assert cli.main(["ca", "list", "ca"]) == 1
    assert capsys.readouterr().err == "resilmesh ca needs cryptography: pip install 'resilmesh[identity]'\n"


# ---------------------------------------------------------------------------------------------- renewal


def test_renew_writes_again_and_fetches_a_new_bundle(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_fresh(issued: Any, renew: Callable[[], Any], stale: Callable[[], bool], *, say: Callable[[str], None], **rest: Any) -> None:
        assert not stale()
        CertificateAuthority.open("ca").announce_root()
        assert stale()
        again = renew()
        assert not stale()
        assert again.leaf != issued.leaf
        say("the renewal failed: no")

    monkeypatch.setattr(renewal, "keep_fresh", keep_fresh)
    first, second = map(json.loads, ca("issue", "ca", WEB, "--out", "tls", "--renew", "--json").splitlines())
    assert first["serial"] != second["serial"]
    assert len(x509.load_pem_x509_certificates(Path("tls/ca.crt").read_bytes())) == 2
    assert "resilmesh ca issue: the renewal failed: no\n" in ca.err


def test_ctrl_c_ends_a_renewal(ca: Ca) -> None:
    words = [sys.executable, "-m", "resilmesh", "ca", "issue", "ca", WEB, "--out", "tls", "--renew"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(WEB)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")
    Svid.from_pem(Path("tls/tls.crt").read_bytes(), Path("tls/tls.key").read_bytes())
