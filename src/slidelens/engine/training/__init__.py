"""What a training is made of: plan, samples, loop, checkpoints, record."""
