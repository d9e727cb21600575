"""Two processes on the CPU (gloo), started by `accelerate launch`, against one with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sda_features.config import AdapterSettings, BackboneSettings, ProjectionSettings
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients, passes
from sda_features.lvlm.processes import Processes
from tests.lvlm.conftest import PROMPTS, TEXTS, picture
from tests.lvlm.test_gradient_cache import every_term
from tests.lvlm.test_moda import randomise

model, target, micro = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
processes = Processes("cpu")
torch.manual_seed(0)
settings = BackboneSettings.parse(model=model, quantization="none", device="cpu", dtype="float32")
encoder = PromptEncoder(Backbone(settings), AdapterSettings.parse(dropout=0.0), ProjectionSettings())
randomise(encoder)
encoder.train()
mine = processes.share(np.arange(8))
text = [encoder.backbone.text_tokens(TEXTS[i % 3] + f" number {i}") for i in mine]
image = [encoder.backbone.image_tokens(picture(int(i)), PROMPTS) for i in mine]
batches = [
    encoder.backbone.collate(prompts[start : start + micro], modality)
    for modality, prompts in (("text", text), ("image", image))
    for start in range(0, len(mine), micro)
]
result = accumulate_gradients(
    encoder,
    iter(batches * passes(len(batches))),
    len(batches),
    every_term,
    globally=processes.with_everyones,
)
processes.sum_gradients(encoder.trainable().values())
if processes.is_main:
    gradients = {name: value.grad for name, value in encoder.trainable().items()}
    save_file({"loss": result.loss[None], "count": torch.tensor([processes.count]), **gradients}, target)
processes.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("micro", [8, 3])
def test_two_processes_give_the_gradients_of_one(
    tmp_path: Path, tiny_models: dict[str, Path], micro: int
) -> None:
    script = tmp_path / "step.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{SCRIPT}")
    model = str(tiny_models["qwen2_5_vl"])
    # On a CPU `accelerate launch` wants MPI; under --multi_gpu it starts torchrun, and gloo does the rest.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    runs = {"one": [sys.executable], "two": launch}
    for name, start in runs.items():
        done = subprocess.run(
            [*start, str(script), model, str(tmp_path / name), str(micro)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name) for name in runs)
    assert (one.pop("count"), two.pop("count")) == (1, 2)
    np.testing.assert_allclose(two.pop("loss"), one.pop("loss"), rtol=1e-5)
    for name, expected in one.items():
        norm = np.linalg.norm(expected)
        assert norm > 0, f"vacuous: {name} has no gradient"
        assert np.linalg.norm(two[name] - expected) / norm < 1e-4, name
