"""What is said while the factors of a calibration are fitted."""

from deltarank.jobs.calibrate.training_notes import TrainingNotes


def notes_of(*looks: tuple[int, float], resumed_after: int | None = None) -> list[str]:
    said: list[str] = []
    notes = TrainingNotes(45, said.append)
    notes.look(0, 0.5)
    if resumed_after is not None:
        notes.resume(resumed_after)
    for step, kld in looks:
        notes.look(step, kld)
    return said


def test_going_back_is_said_with_the_step() -> None:
    said = notes_of((8, 0.3), (23, 0.4), (45, 0.35))
    assert said[3] == "That is no nearer than before: back to step 8, with smaller steps."
    assert said[-1] == "That is no nearer than before: step 8 is kept."


def test_the_start_is_plain_extraction() -> None:
    assert notes_of((8, 0.6))[-1] == "That is no nearer than before: back to plain extraction, with smaller steps."


def test_after_a_resume_only_what_is_known_is_said() -> None:
    said = notes_of((23, 0.6), resumed_after=10)
    assert said[1] == "The training goes on after step 10 of 45."
    assert said[-1] == "That is no nearer than before: back to the best step, with smaller steps."
