"""What a training step will need, read from the compiled program, without the hardware."""
