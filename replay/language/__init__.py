"""What a mechanism file and a cost file say: words, checks, distributions, the compiled program."""
