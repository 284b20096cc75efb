"""The signature in a record: what it covers, how it is made, and what it grants."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from compresskd.run import FINISHED, Record
from compresskd.targets.paths import Granted
from compresskd.trust.key import NoKey, make_key, read_key
from compresskd.trust.sources import source_digests

_MODEL_FILES = ("model/structure.json", "model/model.ckd")


class Signer:
    """Signs the record of a run of this user's own each time that it is written, in one piece with it.

    Args:
        directory: of the run.
        packages: besides compresskd, whose code the user lets this run execute; may grow while it runs.
        say: tells the user, once, that the run cannot be signed.
    """

    def __init__(self, directory: Path, packages: Collection[str], say: Callable[[str], None]):
        self._directory, self._packages, self._say = directory, packages, say
        self._sources: dict[tuple[str, ...], dict[str, str]] = {}
        self._said = False

    def __call__(self, record: Record) -> dict[str, Any] | None:
        """The packages, the digests of structures and sources, and the HMAC over them and the configuration.

        None where there are no packages, for then nothing needs to be signed, or where there can be no key. Sources
        count as they are at the first call: that is what runs.
        """
        packages = tuple(sorted(set(self._packages) - {"compresskd"}))
        if not packages:
            return None
        if packages not in self._sources:
            self._sources[packages] = source_digests(packages)
        signed = {
            "packages": list(packages),
            "structures": dict(_structures(self._directory, record)),
            "sources": self._sources[packages],
        }
        try:
            return {**signed, "hmac": _hmac(make_key(), record, signed)}
        except NoKey as error:
            if not self._said:
                self._say(
                    f"not signed: {error}; to resume {self._directory}, or to evaluate or export it, write "
                    f"--trust {','.join(packages)}"
                )
            self._said = True
            return None


def granted(directory: Path, record: Record, said: Sequence[str] = ()) -> Granted:
    """The packages besides compresskd whose code a run directory may execute.

    Args:
        directory: of the run.
        record: as read from it.
        said: those that the user names on this command line.

    Returns:
        Those, and where the signature in the record holds, those that it names.
    """
    reason = _fault(directory, record)
    own = () if reason or not record.signature else record.signature["packages"]
    return Granted(tuple(dict.fromkeys((*said, *own))), reason)


def _fault(directory: Path, record: Record) -> str:
    """Why the signature does not hold; empty where it does."""
    signature = record.signature
    if not isinstance(signature, dict) or not signature:
        return "the run is not signed by you"
    signed = {key: signature.get(key) for key in ("packages", "structures", "sources")}
    try:
        expected = _hmac(read_key(), record, signed)
    except NoKey as error:
        return str(error)
    if not hmac.compare_digest(expected.encode(), str(signature.get("hmac")).encode()):
        return "the run is not signed by you, or its record was changed since"
    for entry in record.stages:
        if not set(entry.get("packages", ())) <= {"compresskd", *signature["packages"]}:
            return f"the packages of stage '{entry.get('name')}' were changed since you ran it"
    for name, digest in _structures(directory, record):
        if signature["structures"].get(name) != digest:
            return f"{name} is not as you left it"
    sources = source_digests(signature["packages"])
    changed = [name for name in sources if signature["sources"].get(name) != sources[name]]
    return f"{', '.join(changed)} changed since you ran it" if changed else ""


def _hmac(key: bytes, record: Record, signed: dict[str, Any]) -> str:
    covered = {"config": record.config, **signed}
    text = json.dumps(json.loads(json.dumps(covered)), sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _structures(directory: Path, record: Record) -> Iterator[tuple[str, str]]:
    """Path in the directory and SHA-256 of every file that says what is to be built.

    The final model is one of them as soon as the record says that there is one: a run may be killed between the two.
    """
    kinds = ("checkpoint", "teacher_checkpoint")
    stored = [f"{entry[kind]}/structure.json" for entry in record.stages for kind in kinds if kind in entry]
    for name in (*stored, *(_MODEL_FILES if record.status == FINISHED else ())):
        path = directory / name
        if path.is_file():
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()
