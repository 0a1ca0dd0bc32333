"""What a picture of a trace or a comparison shows, as small frames: nothing here draws."""
