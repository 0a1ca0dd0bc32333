"""A recording and its replays as tracks of slices, and the file that Perfetto opens."""
