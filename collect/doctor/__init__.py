"""What a host has and lacks for recording, the lab and the tests."""
