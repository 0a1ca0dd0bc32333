"""One trace under several mechanisms beside what was measured."""
