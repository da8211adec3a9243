"""What is said while the factors of a calibration are fitted."""

from deltarank.jobs.calibrate.training_notes import TrainingNotes


def notes_of(*looks: tuple[int, float, int]) -> list[str]:
    said: list[str] = []
    notes = TrainingNotes(45, said.append)
    for step, kld, best in looks:
        notes.look(step, kld, best)
    return said


def test_a_look_that_is_the_best_says_the_distance_alone() -> None:
    assert notes_of((0, 0.5, 0), (8, 0.3, 8)) == [
        "Plain extraction: 0.5 nats per token from the finetune, on the documents that choose.",
        "After step 8: 0.3 nats per token from the finetune, on the documents that choose.",
    ]


def test_going_back_is_said_with_the_step() -> None:
    said = notes_of((23, 0.4, 8), (45, 0.35, 8))
    assert said[1] == "That is no nearer than before: back to step 8, with smaller steps."
    assert said[-1] == "That is no nearer than before: step 8 is kept."


def test_the_start_is_plain_extraction() -> None:
    assert notes_of((8, 0.6, 0))[-1] == "That is no nearer than before: back to plain extraction, with smaller steps."
