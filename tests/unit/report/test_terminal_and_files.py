"""The terminal and the files on disk."""

import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from builders import RANKS, hostile, low_rank, model, not_finite, results

from deltarank.errors import OutputError
from deltarank.report import terminal_summary, write_report
from refusals import refused


class TestTerminal:
    @pytest.mark.parametrize("width", [80, 100])
    def test_it_fits(self, width):
        for run in (results(), results(model(low_rank)), hostile()):
            assert max(map(len, terminal_summary(run, width=width).splitlines())) <= width

    def test_all_default_ranks_fit_80_columns(self):
        header = next(line for line in terminal_summary(results(), width=80).splitlines() if line.startswith("module"))
        assert ["module", "share", *map(str, RANKS)] == header.split()

    @pytest.mark.parametrize("width", [60, 70, 200])
    def test_no_rank_is_missing_without_a_word(self, width):
        text = terminal_summary(results(), width=width)
        header = next(line for line in text.splitlines() if line.startswith("module")).split()
        missing = [str(rank) for rank in RANKS if str(rank) not in header]
        said = re.search(r"Ranks? ([^;]*) do(es)? not fit into this width;", " ".join(text.split()))
        assert (re.findall(r"\d+", said[1]) if said else []) == missing
        assert bool(missing) == (width == 60) or width == 70

    def test_energy_kept_by_module_and_rank_with_cosine_distance_under_it(self):
        run = results()
        lines = terminal_summary(run).splitlines()
        whole = next(line for line in lines if line.startswith("all matrices")).split()[2:]
        assert [f"{100 * loss.energy_kept:.0f}" for loss in run.totals.losses] == whole[1:]
        cosine = next(line for line in lines if line.startswith("cosine distance")).split()[2:]
        assert [float(x) for x in cosine] == pytest.approx([x.cosine_distance for x in run.totals.losses], rel=0.05)
        assert "Cosine distance 0.3 means that half of the energy is lost." in lines

    def test_the_table_and_the_headline_round_a_share_alike(self):
        """58.501 % is 59 %, and not 58 %, to which 58.50 % would be rounded."""

        def spectrum(module, layer, layers, side):
            kept = 0.58501
            return np.sqrt([kept / 64] * 64 + [(1 - kept) / (side - 64)] * (side - 64))

        text = terminal_summary(results(model(spectrum)))
        table = [line.split() for line in text.splitlines() if line.startswith(("module", "all matrices", "mlp"))]
        of_rank_64 = {row[-len(RANKS) :][RANKS.index(64)] for row in table[1:]}
        assert "keeps 59 % of the change" in text
        assert of_rank_64 == {"59"}

    def test_a_small_loss_is_never_shown_as_none(self):
        assert ">99.9" in terminal_summary(results(model(low_rank)))

    def test_the_sentence_the_verdict_and_what_was_left_out(self):
        text = terminal_summary(results())
        headline = "As a rank-64 LoRA, Bigger-Body-12b keeps 52 % of the change in the measured matrices, which hold\n"
        assert text.startswith(f"{headline}96 % of the whole change.\n")
        assert "Bigger-Body-12b is a full finetune or a merge." in text
        assert "Left out: 4 tensors (0.2 % of the whole change): norms" in text

    def test_plain_text_unless_asked(self):
        assert "\x1b" not in terminal_summary(results())
        assert terminal_summary(results()).isascii()
        assert "\x1b[1m" in terminal_summary(results(), colour=True)

    def test_colour_changes_no_letter(self):
        painted = terminal_summary(results(), colour=True)
        assert terminal_summary(results()) == re.sub(r"\x1b\[\d+m", "", painted)

    def test_a_hostile_name_sends_nothing_to_the_terminal(self):
        run = results(name="a/\x1b]0;owned\x07\x1b[2J\u202e")
        assert not {"\x1b", "\x07", "\u202e"} & set(terminal_summary(run))

    def test_nothing_measured(self):
        text = terminal_summary(results([not_finite(m) for m in model(layers=1)]))
        assert text.startswith("Nothing could be measured.")
        assert "Left out: 7 tensors: NaN or Inf" in text


def png_size(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])


@pytest.mark.usefixtures("drawing")
class TestFiles:
    def test_a_page_and_four_pictures_fit_to_post(self, tmp_path):
        made = write_report([results(model(layers=32))], tmp_path / "run")
        names = ["report.html", "heat-map.png", "loss-by-rank.png", "layers-mlp.png", "layers-attention.png"]
        assert names == [path.name for path in made]
        assert {*names} == {path.name for path in (tmp_path / "run").iterdir()}
        for path in made[1:]:
            width, height = png_size(path)
            assert 1600 <= width <= 2600
            assert 700 <= height <= 2600

    def test_several_runs_share_the_pictures(self, tmp_path):
        made = write_report([results(model(low_rank), name="a/Lora"), results(name="a/Full")], tmp_path)
        assert len(made) == 5
        assert all(png_size(path)[0] >= 900 for path in made[1:])

    def test_it_writes_over_an_earlier_report(self, tmp_path):
        (tmp_path / "report.html").write_text("old")
        write_report([results([])], tmp_path)
        assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")

    def test_no_pictures_of_nothing(self, tmp_path):
        assert [path.name for path in write_report([results([])], tmp_path)] == ["report.html"]

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with refused("output-unwritable", OutputError):
            write_report([results([])], tmp_path / "file")

    def test_a_failed_write_leaves_nothing_that_looks_whole(self, tmp_path):
        (tmp_path / "report.html").mkdir()
        with pytest.raises(OutputError):
            write_report([results([])], tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_importing_the_room_is_light():
    code = (
        "import sys, deltarank.report; "
        "print([m for m in ('torch', 'altair', 'vl_convert', 'jinja2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_page_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, 'tests/unit/report'); "
        "import builders, deltarank.report as r; print(len(r.page_html([builders.results()])) > 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rsplit("/tests/", 1)[0]
    )
    assert done.stdout.strip() == "True"
