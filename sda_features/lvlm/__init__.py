"""The vision-language model: loading, MoDA adapters, the CMSA loss, training, checkpoints, encoding."""

import logging

# On import, and then at every int8 product, bitsandbytes tells what is slow on a CPU; a user cannot act on it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
