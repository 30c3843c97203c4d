"""A real `tensorboard` on loopback, for tests that ask it."""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

TIMEOUT_SECONDS = 120


class TensorBoard:
    """Its address, and what it answers."""

    def __init__(self, address, process):
        self.address = address
        self.process = process
        self.plugin = f"{address}data/plugin/geometry/"
        self.entry = f"{address}data/plugin_entry.html?name=geometry"

    def get(self, route, **query):
        """Give the status and the JSON of a route of the plugin."""
        try:
            with urlopen(f"{self.plugin}{route}?{urlencode(query)}") as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def wait_until_read(self, logdir):
        """Wait for all that a reader in this process finds: it reads while it already answers."""
        from support.geometry_tab import Plugin

        whole = Plugin(logdir)
        expected = whole.request("/runs")[1]["runs"]
        curves = {run["name"]: whole.request("/scalars", run=run["name"])[1] for run in expected}
        end = time.monotonic() + TIMEOUT_SECONDS
        while True:
            runs = self.get("runs")[1]["runs"]
            found = {run["name"]: self.get("scalars", run=run["name"])[1] for run in runs}
            if found == curves:
                return
            assert time.monotonic() < end, f"{len(runs)} of {len(curves)} runs"
            time.sleep(0.1)


@contextmanager
def tensorboard(logdir, log, *, load_fast):
    """Start it for a folder; ``log`` is a file for what it says."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]
    flags = ["--host", "127.0.0.1", "--load_fast", load_fast, "--reload_interval", "1"]
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, *flags], stdout=file, stderr=file)
    try:
        yield TensorBoard(_address(process, log), process.pid)
    finally:
        process.terminate()
        process.wait()


def _address(process, log):
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(r"at (http://127\.0\.0\.1:\d+/)", log.read_text(errors="replace")):
            return match[1]
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard did not start:\n{log.read_text(errors='replace')}")
