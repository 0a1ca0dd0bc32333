"""The command line: one module a verb under `commands/`; nothing is computed here."""

__version__ = "0.1.0"
