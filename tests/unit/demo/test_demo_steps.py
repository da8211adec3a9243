"""The progress of a training in a log file."""

from deltarank.demo.steps import StepLines


def test_a_line_at_most_every_few_seconds_and_none_for_the_last_step() -> None:
    now, said = 0.0, list[str]()
    step = StepLines("base", 100, said.append, clock=lambda: now)
    for _ in range(100):
        now += 0.25
        step(2.5)

    assert said == [
        "  base: 20 of 100 steps, loss 2.5, about 20 s left",
        "  base: 40 of 100 steps, loss 2.5, about 15 s left",
        "  base: 60 of 100 steps, loss 2.5, about 10 s left",
        "  base: 80 of 100 steps, loss 2.5, about 5 s left",
    ]
