"""One step in parts, on several workers or compiled takes the weights where one plain step on the whole batch does."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segsweep.learning import step
from segsweep.learning.batches import Batch, draw
from segsweep.learning.loop import train
from segsweep.learning.precision import make_scaler
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting
from segsweep.learning.stages import Stage

Make = Callable[..., Setting]

# Large rates, so that any other gradient shows; samples of both kinds of draw in every batch.
ONE_STEP = {
    "epochs": 1,
    "iterations": 2,
    "validation_iterations": 0,
    "learning_rate": 0.5,
    "oversampling": "deterministic",
}
# One process loads everything and becomes two.
RANKS = """
import os, sys, torch
from safetensors.torch import save_file
from torch import distributed
sys.path.insert(0, sys.argv[2])
import conftest
import torch._dynamo  # which optimizers load
from segsweep.learning.loop import train
child = os.fork()
rank = 0 if child else 1
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
for number, params in enumerate(eval(sys.argv[3])):
    setting = conftest.make_setting(**params)
    (epoch,) = train(setting)
    found = {**setting.model.state_dict(), "loss": torch.tensor(epoch.metrics["loss"])}
    save_file(found, sys.argv[1] + f".{rank}.{number}")
distributed.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def weights(setting: Setting) -> dict[str, torch.Tensor]:
    (epoch,) = train(setting)
    return {**setting.model.state_dict(), "loss": torch.tensor(epoch.metrics["loss"])}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def whole_batches(setting: Setting, *, parts: int) -> Iterator[Batch]:
    """What so many workers draw together, as one batch a step."""
    for number in range(setting.params.iterations):
        turns = (Turn(seed=setting.seed, step=number, rank=rank, ranks=parts) for rank in range(parts))
        batches = [draw(setting.training, task=setting.task, params=setting.params, turn=turn) for turn in turns]
        joined = {name: torch.cat([vars(batch)[name] for batch in batches]) for name in vars(batches[0])}
        yield Batch(**joined)


def on_whole_batches(setting: Setting, *, parts: int) -> dict[str, torch.Tensor]:
    """One epoch, by one process, without parts."""
    batches, total = whole_batches(setting, parts=parts), torch.zeros(())
    setting = dataclasses.replace(setting, params=dataclasses.replace(setting.params, accumulate=1))
    optimizer = step.make_optimizer(
        "sgd",
        parameters=list(setting.model.parameters()),
        learning_rate=setting.params.learning_rate,
        weight_decay=3e-5,
    )
    scaler = make_scaler("float32", device=setting.device)
    learner = step.make_learner(setting, optimizer=optimizer, scaler=scaler, average=None)
    for number in range(setting.params.iterations):
        total += learner.step(batches, setting=setting, largest_gradient=12.0, progress=0.0, number=number)
    return {**setting.model.state_dict(), "loss": total / setting.params.iterations}


def test_parts_give_the_step_of_one_batch(ball_setting: Make) -> None:
    found = weights(ball_setting(**ONE_STEP, accumulate=3))
    assert_close(found, on_whole_batches(ball_setting(**ONE_STEP, accumulate=3), parts=3))


def test_two_workers_give_the_step_of_the_global_batch(ball_setting: Make, tmp_path: Path) -> None:
    settings = [{**ONE_STEP, "batch_dice": True}, {**ONE_STEP, "accumulate": 2}]
    meeting, here = tmp_path / "meeting", str(Path(__file__).parent)
    command = [sys.executable, "-c", RANKS, str(meeting), here, repr(settings)]
    subprocess.run(command, check=True, timeout=200)
    for number, params in enumerate(settings):
        first, second = (load_file(f"{meeting}.{rank}.{number}") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert_close(first, on_whole_batches(ball_setting(**params), parts=2 * params.get("accumulate", 1)))


def test_every_stage_clips_to_its_own_norm(ball_setting: Make) -> None:
    moved = {}
    for largest in (1e-3, 12.0):
        stage = Stage(name="train", epochs=1, learning_rate=0.5, largest_gradient=largest)
        setting = ball_setting(**{**ONE_STEP, "iterations": 1, "weight_decay": 0.0}, stages=(stage,))
        before = torch.cat([value.detach().flatten().clone() for value in setting.model.parameters()])
        list(train(setting))
        after = torch.cat([value.detach().flatten() for value in setting.model.parameters()])
        moved[largest] = float((after - before).norm()) / (0.5 * (1 + step.MOMENTUM))  # Nesterov's first step
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert moved[12.0] > 1e-2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_steps_about_as_far(ball_setting: Make, precision: str) -> None:
    expected, found = (weights(ball_setting(**ONE_STEP, precision=name)) for name in ("float32", precision))
    assert found["head.weight"].dtype == torch.float32
    assert not torch.equal(found["head.weight"], expected["head.weight"])
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0.05, atol=0.05)


def test_a_step_that_overflows_changes_no_weights_and_scales_less(ball_setting: Make) -> None:
    setting = ball_setting(**ONE_STEP, precision="float16")
    optimizer = step.make_optimizer(
        "adamw", parameters=list(setting.model.parameters()), learning_rate=0.5, weight_decay=3e-5
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    learner = step.make_learner(setting, optimizer=optimizer, scaler=scaler, average=None)
    before = {name: value.clone() for name, value in setting.model.state_dict().items()}
    learner.step(whole_batches(setting, parts=1), setting=setting, largest_gradient=12.0, progress=0.0, number=0)
    assert all(torch.equal(value, before[name]) for name, value in setting.model.state_dict().items())
    assert scaler.get_scale() == 2.0**59


def test_a_compiled_model_steps_alike_and_keeps_its_names(ball_setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, compiler = [], torch.compile

    def compile_quickly(model: torch.nn.Module) -> Callable:
        compiled.append(model)
        return compiler(model, backend="aot_eager")  # its graphs, without waiting for a compiler of C++

    monkeypatch.setattr(torch, "compile", compile_quickly)
    expected = weights(ball_setting(**ONE_STEP))
    assert not compiled
    found = weights(ball_setting(**ONE_STEP, compile=True))
    assert len(compiled) == 1 and list(found) == list(expected)
    assert_close(found, expected)
