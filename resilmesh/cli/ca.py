"""``resilmesh ca STEP``: a certificate authority in a directory. What it does is ``resilmesh.identity.ca``; this is its words.

Exit status: 0 fine, 1 refused (the reason and the remedy are on stderr), 2 wrong words.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilmesh.errors import ResilmeshError
from resilmesh.units import parse_duration

if TYPE_CHECKING:
    from resilmesh.identity.ca import CertificateAuthority, Issued
    from resilmesh.identity.svid import TrustBundle

PASSWORD = "RESILMESH_CA_PASSWORD"  # noqa: S105  # the name of a variable, not a password


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's words."""
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)

    init = _step(steps, "init", "Make an authority.", _init)
    init.add_argument("--trust-domain", required=True, metavar="NAME", help="such as shop.example; it cannot be changed")
    init.add_argument("--encrypt", action="store_true", help=f"encrypt its keys; asks for a password where {PASSWORD} has none")
    _add_password(init)
    init.add_argument("--ttl", type=_seconds, default="1h", metavar="TIME", help="of a certificate where none is asked for (%(default)s)")
    init.add_argument("--max-ttl", type=_seconds, default="24h", metavar="TIME", help="of a certificate at most (%(default)s)")
    init.add_argument("--intermediate-days", type=int, default=365, metavar="DAYS", help="life of the intermediate (%(default)s)")
    init.add_argument("--root-days", type=int, default=3650, metavar="DAYS", help="life of the root (%(default)s)")
    _add_json(init)

    issue = _step(steps, "issue", "Make a certificate: tls.crt, tls.key and ca.crt, swapped in one step.", _issue)
    issue.add_argument("spiffe_id", metavar="SPIFFE-ID", help="such as spiffe://shop.example/ns/prod/sa/web")
    issue.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    issue.add_argument("--ttl", type=_seconds, metavar="TIME", help="such as 10m; by default what init was told")
    issue.add_argument("--dns", action="append", default=[], metavar="NAME", help="a host name for the certificate; may be repeated")
    issue.add_argument("--csr", metavar="FILE", help="sign the key of this request, and write no tls.key; nothing else is taken from it")
    issue.add_argument("--renew", action="store_true", help="stay, and renew at half of the life; Ctrl-C ends it")
    _add_password(issue)
    _add_json(issue)

    bundle = _step(steps, "bundle", "Print the roots that are to be trusted, in PEM.", _bundle)
    bundle.add_argument("--out", metavar="FILE", help="write there, not to stdout")

    listing = _step(steps, "list", "Show the certificates that are good, the roots, and who is revoked.", _list)
    listing.add_argument("--all", action="store_true", help="every certificate that was ever issued")
    _add_json(listing)

    revoke = _step(steps, "revoke", "Revoke a certificate, or all of a workload; it gets no other.", _revoke)
    revoke.add_argument("what", metavar="WHAT", help="a SPIFFE ID, or the serial number of one certificate")
    revoke.add_argument("--lift", action="store_true", help="let the workload have certificates again")
    _add_password(revoke)
    _add_json(revoke)

    rotate = _step(steps, "rotate", "Replace the root, in three steps: announce (no option), activate, retire.", _rotate)
    which = rotate.add_mutually_exclusive_group()
    which.add_argument("--activate", action="store_true", help="sign by the announced root")
    which.add_argument("--retire", action="store_true", help="trust the old root no more")
    which.add_argument("--intermediate", action="store_true", help="replace the intermediate alone, at once")
    rotate.set_defaults(wrong=rotate.error)
    rotate.add_argument("--force", action="store_true", help="activate or retire now, whoever is cut off by it")
    _add_password(rotate)
    _add_json(rotate)


def run(options: argparse.Namespace) -> int:
    """Take one step."""
    try:
        status: int = options.take(options)
        return status
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        print("resilmesh ca needs cryptography: pip install 'resilmesh[identity]'", file=sys.stderr)
    except ResilmeshError as error:
        print(f"resilmesh ca {options.step}: {error}", file=sys.stderr)
    except OSError as error:
        if error.filename is None:  # what is printed finds no reader or no room
            raise
        print(f"resilmesh ca {options.step}: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


# ------------------------------------------------------------------------------------------------ steps


def _init(options: argparse.Namespace) -> int:
    from resilmesh.identity.ca import CertificateAuthority

    authority = CertificateAuthority.create(
        options.directory, options.trust_domain, password=_new_password(options), root_ttl=options.root_days * 86400.0,
        intermediate_ttl=options.intermediate_days * 86400.0, default_ttl=options.ttl, max_ttl=options.max_ttl,
    )
    if options.json:
        _print_json(_overview(authority))
    else:
        keys = "encrypted keys" if authority.state().encrypted else "keys that only this user can read"
        print(f"an authority of {options.trust_domain} in {options.directory}, with {keys}")
        print(f"next: resilmesh ca issue {options.directory} spiffe://{options.trust_domain}/ns/prod/sa/web --out tls")
    return 0


def _issue(options: argparse.Namespace) -> int:
    from resilmesh.identity.renewal import keep_fresh

    authority = _open(options)
    given: list[TrustBundle] = []

    def issue() -> Issued:
        issued = _certify(authority, options)
        given[:] = [issued.bundle]
        _say_issued(issued, options)
        _say_advice(authority)
        return issued

    issued = issue()
    if options.renew:
        keep_fresh(
            issued, issue, lambda: authority.bundle() != given[0], wait=time.sleep, now=time.time, rng=random.random,
            say=lambda words: print(f"resilmesh ca issue: {words}", file=sys.stderr, flush=True),
        )
    return 0


def _bundle(options: argparse.Namespace) -> int:
    pem = _open(options).bundle().pem()
    if options.out is None:
        sys.stdout.write(pem.decode())
    else:
        _replace(Path(options.out), pem)
    return 0


def _list(options: argparse.Namespace) -> int:
    authority = _open(options)
    entries = authority.entries(all=options.all)
    overview = _overview(authority)
    if options.json:
        _print_json(overview | {"certificates": [each._asdict() for each in entries]})
        return 0
    print(f"trust domain {overview['trust_domain']}")
    for each in (*overview["roots"], *overview["intermediates"]):
        print(f"  {each['name']:16} {each['phase']:10} until {each['not_after']}")
    for spiffe_id, since in overview["barred"].items():
        print(f"  revoked since {since}: {spiffe_id}")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if entries:
        print(f"{'SERIAL':40} {'UNTIL':20} {'STATE':8} SPIFFE ID")
    for entry in entries:
        phase = "ended" if entry.not_after < now else "revoked" if entry.revoked else "good"
        print(f"{entry.serial:40} {entry.not_after:20} {phase:8} {entry.spiffe_id}")
    _say_advice(authority)
    return 0


def _revoke(options: argparse.Namespace) -> int:
    authority = _open(options)
    if options.lift:
        spiffe_id = authority.lift(options.what)
        if options.json:
            _print_json({"spiffe_id": spiffe_id, "barred": False, "revoked": []})
        else:
            print(f"{spiffe_id} can have certificates again; what was revoked stays so")
        return 0
    spiffe_id, found = authority.revoke(options.what)
    if options.json:
        _print_json({"spiffe_id": spiffe_id, "barred": True, "revoked": [each.serial for each in found]})
    else:
        print(f"{spiffe_id} gets no certificate any more; {len(found)} revoked, in {options.directory}/crl.pem")
        if found:
            print(f"who does not look at that list accepts them until {max(each.not_after for each in found)}")
    return 0


def _rotate(options: argparse.Namespace) -> int:
    if options.force and not (options.activate or options.retire):
        options.wrong("--force goes with --activate or --retire")
    authority = _open(options)
    if options.activate:
        state = authority.activate_root(force=options.force)
    elif options.retire:
        state = authority.retire_root(force=options.force)
    elif options.intermediate:
        state = authority.renew_intermediate()
    else:
        state = authority.announce_root()
    if options.json:
        _print_json(_overview(authority))
        return 0
    for each in state.trusted:
        print(f"{each.name} is {each.phase}")
    print(f"{state.active.name}, below {state.active.root}, signs")
    _say_advice(authority)
    return 0


# ------------------------------------------------------------------------------------------------ files


def _certify(authority: CertificateAuthority, options: argparse.Namespace) -> Issued:
    """Have a certificate made, and write it."""
    from resilmesh.identity.ca import Issued
    from resilmesh.identity.volume import publish

    files: dict[str, tuple[bytes, int]] = {}
    if options.csr is None:
        identity = authority.issue(options.spiffe_id, ttl=options.ttl, dns=options.dns)
        issued = Issued(identity.svid.chain, identity.bundles[identity.svid.id.trust_domain])
        files["tls.key"] = (identity.svid.key_pem(), 0o600)
    else:
        issued = authority.sign(_read(options.csr), options.spiffe_id, ttl=options.ttl, dns=options.dns)
    files |= {"tls.crt": (issued.chain_pem(), 0o644), "ca.crt": (issued.bundle.pem(), 0o644)}
    publish(options.out, files, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    return issued


def _read(file: str) -> bytes:
    """No more than a request may have, so that a device or a disk image is no trouble."""
    with open(file, "rb") as request:
        return request.read(1 << 16)


def _replace(path: Path, content: bytes) -> None:
    """Write a file that others can read, in one step."""
    number, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(number, "wb") as file:
            file.write(content)
            os.fchmod(number, 0o644)
            file.flush()
            os.fsync(number)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


# ------------------------------------------------------------------------------------------------ words


def _say_issued(issued: Issued, options: argparse.Namespace) -> None:
    from resilmesh.identity.ca_store import to_text
    from resilmesh.identity.svid import dns_names

    leaf, files = issued.leaf, ("tls.crt", "ca.crt") if options.csr else ("tls.crt", "tls.key", "ca.crt")
    seen = {
        "spiffe_id": options.spiffe_id, "serial": f"{leaf.serial_number:x}", "not_before": to_text(leaf.not_valid_before_utc),
        "not_after": to_text(leaf.not_valid_after_utc), "dns": list(dns_names(leaf)),
        "files": [os.path.join(options.out, name) for name in files],
    }
    if options.json:
        # Of many renewals each has a line.
        print(json.dumps(seen, indent=None if options.renew else 2), flush=True)
    else:
        print(f"{options.spiffe_id} until {seen['not_after']}: {', '.join(files)} in {options.out}, serial {seen['serial']}", flush=True)


def _say_advice(authority: CertificateAuthority) -> None:
    for each in authority.advice():
        print(each, file=sys.stderr, flush=True)


def _overview(authority: CertificateAuthority) -> dict[str, Any]:
    """The authority itself: what is trusted, what signs, who is barred."""
    from resilmesh.identity.ca_store import to_text

    def ends(name: str) -> str:
        return to_text(authority.certificate(name).not_valid_after_utc)

    state = authority.state()
    roots = [{"name": each.name, "phase": each.phase, "not_after": ends(each.name)} for each in state.trusted]
    signs = {"name": state.active.name, "phase": "signs", "root": state.active.root, "not_after": ends(state.active.name)}
    return {"trust_domain": state.trust_domain, "roots": roots, "intermediates": [signs], "barred": state.barred}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


# ------------------------------------------------------------------------------------------ the command


def _step(
    steps: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str, take: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    # Unabbreviated, or `--password SECRET` would be taken for `--password-file`.
    parser = steps.add_parser(name, help=line, description=line, allow_abbrev=False)
    parser.add_argument("directory", metavar="DIR", help="the authority's directory")
    parser.set_defaults(take=take)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_password(parser: argparse.ArgumentParser) -> None:
    said = f"its first line is the password of the keys; else {PASSWORD}, else it is asked for"
    parser.add_argument("--password-file", metavar="FILE", help=said)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _open(options: argparse.Namespace) -> CertificateAuthority:
    from resilmesh.identity.ca import CertificateAuthority

    authority = CertificateAuthority.open(options.directory)
    if not authority.state().encrypted or not hasattr(options, "password_file"):
        return authority
    password = _given_password(options)
    if password is None and sys.stdin.isatty():
        password = getpass.getpass(f"password of the keys in {options.directory}: ").encode()
    return CertificateAuthority.open(options.directory, password)


def _given_password(options: argparse.Namespace) -> bytes | None:
    """From a file or the environment. Never a word of the command, which every process of the machine can read."""
    if options.password_file is not None:
        return _read(options.password_file).split(b"\n", 1)[0].rstrip(b"\r")
    return os.environb.get(PASSWORD.encode()) or None


def _new_password(options: argparse.Namespace) -> bytes | None:
    from resilmesh.identity import IdentityError

    password = _given_password(options)
    if password is not None or not options.encrypt:
        return password
    if not sys.stdin.isatty():
        raise IdentityError(f"--encrypt needs a password, and there is no terminal to ask: give {PASSWORD} or --password-file")
    first = getpass.getpass("password for the new keys: ")
    if first != getpass.getpass("once more: "):
        raise IdentityError("the two passwords are not the same")
    return first.encode()
