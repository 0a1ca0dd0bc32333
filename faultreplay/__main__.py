"""`python -m faultreplay`."""

from faultreplay.cli import run

run()
