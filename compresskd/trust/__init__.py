"""Whose word lets code run: the command line's, or a signature in the record by a key that only this user has.

A run directory comes from anywhere. What it names of compresskd is judged by its kind and runs; what it names
besides runs only where the user says `--trust PACKAGE`, or where this very user began the run: then the record holds
an HMAC by the key in the user's home, over the configuration, the packages, every structure file and the source of the
user's own code. The directory may be moved; none of these may be changed. This package imports no torch.
"""

from compresskd.trust.signature import Signer, granted
from compresskd.trust.words import HELP, trusted_packages

__all__ = ["HELP", "Signer", "granted", "trusted_packages"]
