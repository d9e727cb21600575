"""The vision-language model: loading, MoDA adapters, the CMSA loss, training, checkpoints, encoding."""
