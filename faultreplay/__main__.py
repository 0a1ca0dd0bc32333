"""`python -m faultreplay`."""

from faultreplay.cli.main import run

run()
