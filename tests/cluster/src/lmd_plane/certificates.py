"""Certificates of one plane, made by the `openssl` program, and the kubeconfigs that carry them."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lmd_plane.errors import PlaneError

_DAYS = "30"
_CONFIG = """
[req]
distinguished_name = subject
[subject]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Authority:
    """A certificate authority in a folder: NAME.crt and NAME.key lie there for everything it issued, its own as `ca`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._config = folder / "openssl.cnf"
        if not self.certificate.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._config.write_text(_CONFIG)
            self._request("ca", "/CN=lmd-plane", "authority")

    def issue(self, name: str, subject: str, alternatives: Iterable[str] = ()) -> tuple[Path, Path]:
        """Return certificate and key; `alternatives` are written like `IP:127.0.0.1`."""
        signed = ["-CA", str(self.certificate), "-CAkey", str(self.folder / "ca.key")]
        names = ",".join(alternatives)
        return self._request(name, subject, "leaf", *signed, *(["-addext", f"subjectAltName={names}"] if names else []))

    def key_pair(self, name: str) -> tuple[Path, Path]:
        """Return NAME.key and NAME.pub without a certificate, for signing tokens."""
        private, public = self.folder / f"{name}.key", self.folder / f"{name}.pub"
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(private))
        _openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
        return private, public

    def _request(self, name: str, subject: str, section: str, *extra: str) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out", str(certificate)]
        config = ["-config", str(self._config), "-extensions", section, "-days", _DAYS]
        _openssl("req", "-x509", "-new", *fresh, *config, "-subj", subject, *extra)
        return certificate, key


def kubeconfig(server: str, authority: Path, *, certificate: tuple[Path, Path] | None = None, token: str | None = None) -> str:
    """Return a kubeconfig with everything in it, so that it can be moved."""
    user: dict[str, Any] = {"token": token} if token else {}
    if certificate:
        user |= {"client-certificate-data": _encoded(certificate[0]), "client-key-data": _encoded(certificate[1])}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "plane", "cluster": {"server": server, "certificate-authority-data": _encoded(authority)}}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "plane", "context": {"cluster": "plane", "user": "user"}}],
        "current-context": "plane",
    }
    return yaml.safe_dump(document, sort_keys=False)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PlaneError("openssl is not on PATH: install OpenSSL 3") from error
    except subprocess.CalledProcessError as error:
        raise PlaneError(f"openssl {arguments[0]} failed, OpenSSL 3 is needed:\n{error.stderr.strip()}") from error
