"""Unpacks the bundle that comes on standard input, runs its program, and removes what it unpacked.

The playbooks run this by `python3 -c`. The arguments are those of the program. Standard input is a
JSON object: `files` is the bundle, text by path, and `secrets` is what the program reads. A secret
is never written to a file here.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (the host's Python is what it is)
    sys.exit("error: Python 3.10 or newer is needed; this is " + sys.version.split()[0])
# The program must come to its end when Ansible's connection breaks.
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.umask(0o077)
message = json.load(sys.stdin.buffer)
with tempfile.TemporaryDirectory(prefix="tracker-backup-") as directory:
    for name, text in message["files"].items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    command = [sys.executable, directory + "/host/tracker-backup", *sys.argv[1:]]
    secrets = json.dumps(message["secrets"]).encode()
    done = subprocess.run(command, input=secrets, check=False)
sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)
