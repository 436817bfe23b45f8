"""The report holds what the workdirs hold, by itself, and survives what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from sct_jax.errors import UserError
from sct_jax.report.html import MOST_GRIDS, write_report
from sct_jax.report.runs import read_runs

VOID = {"meta", "img", "br", "path", "circle"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_whole_report_is_well_formed_and_self_contained(make_run, tmp_path):
    out = write_report([make_run("sct"), make_run("ect", "ect", lr=2e-4)], tmp_path / "out" / "report.html")
    page = out.read_text()
    text = " ".join(Balanced(page).text)
    for expected in ("sct", "ect", "1,318,976", "4,000", "0.1734 ± 0.0123", "0.0583", "0123abc", "11,500"):
        assert expected in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_grids_are_thinned_evenly_with_both_ends(make_run, tmp_path):
    page = write_report([make_run(grids=12)], tmp_path / "report.html").read_text()
    steps = re.findall(r"<figcaption>training step ([\d,]+)</figcaption>", page)
    assert len(steps) == 2 * MOST_GRIDS
    assert (steps[0], steps[MOST_GRIDS - 1]) == ("333", "3,996")
    assert len(set(steps)) == MOST_GRIDS


def test_only_differing_fields_are_highlighted(make_run, tmp_path):
    page = write_report([make_run("a"), make_run("b", "ect", lr=2e-4)], tmp_path / "report.html").read_text()
    marked = re.findall(r'<tr class="differs"><td>([^<]*)</td>', page)
    assert marked == ["objective.method", "optimizer.lr"]
    same = write_report([tmp_path / "a", make_run("c")], tmp_path / "same.html").read_text()
    assert "same configuration" in same


def test_the_better_run_is_marked_in_the_right_direction(make_run, tmp_path):
    good, bad = make_run("good"), make_run("bad")
    worse = {"results": [{"sampling_steps": 1, "fd_pca": 0.9, "class_agreement": 0.5}]}
    (bad / "evaluation.json").write_text(json.dumps(worse))
    page = write_report([good, bad], tmp_path / "report.html").read_text()
    row = page.split("<td>good</td>")[1].split("</tr>")[0]
    assert "<td class=best>0.1734 ± 0.0123</td>" in row
    assert "<td class=best>0.996</td>" in row
    assert "best" not in page.split("<td>bad</td>")[1].split("<td>0.9</td>")[1].split("<td>0.5</td>")[0]


def test_the_standard_metrics_are_compared_each_in_its_direction(make_run, tmp_path):
    good, bad = make_run("good"), make_run("bad")
    scores = {"fid": (2.5, 7.25), "kid": (0.001, 0.004), "recall": (0.61, 0.32), "inception_score": (9.5, 8.75)}
    for index, workdir in enumerate((good, bad)):
        row = {"sampling_steps": 1} | {name: pair[index] for name, pair in scores.items()}
        (workdir / "evaluation.json").write_text(json.dumps({"results": [row]}))
    page = write_report([good, bad], tmp_path / "report.html").read_text()
    comparison = page.split("<h2>Comparison</h2>")[1].split("<h2>")[0]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", comparison)
    shown = [head for head in heads if head in ("FID", "Inception Score", "KID", "recall", "precision")]
    assert shown == ["FID", "Inception Score", "KID", "recall"]
    for better, worse in scores.values():
        assert f"<td class=best>{better:g}</td>" in comparison
        assert f"<td class=best>{worse:g}</td>" not in comparison
        assert f"<td>{worse:g}</td>" in comparison


def test_the_curve_of_a_score_below_zero_is_whole(make_run, tmp_path):
    """An unbiased KID may be: a logarithmic axis would leave its points out."""
    workdir = make_run()
    values = (0.004, 0.001, -0.0002)
    lines = [
        json.dumps({"kind": "evaluation", "step": 400 * (index + 1), "sampling_steps": 3, "kid": value})
        for index, value in enumerate(values)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    page = write_report([workdir], tmp_path / "report.html").read_text()
    figure = page.split("<figcaption>KID")[0].rsplit("<figure", 1)[-1] + page.split("<figcaption>KID")[1]
    assert figure.split("</figure>")[0].count("<circle") == len(values)


def test_a_bare_run_gives_a_report_that_says_what_is_missing(make_run, tmp_path):
    workdir = tmp_path / "bare"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"seed": 0}')
    page = write_report([workdir, make_run()], tmp_path / "report.html").read_text()
    Balanced(page)
    for missing in ("No metrics.jsonl", "No sample grids", "No target_variance.json", "No evaluation*.json"):
        assert missing in page
    Balanced(write_report([workdir], tmp_path / "alone.html").read_text())


def test_cut_last_line_is_tolerated_and_damaged_ones_counted(make_run):
    workdir = make_run()
    metrics = workdir / "metrics.jsonl"
    complete = read_runs([workdir])[0]
    metrics.write_text(metrics.read_text() + '{"kind": "train", "st')
    cut = read_runs([workdir])[0]
    assert cut.train == complete.train
    assert cut.notes == complete.notes
    metrics.write_text("garbage\n" + metrics.read_text())
    assert any("1 damaged line" in note for note in read_runs([workdir])[0].notes)


def test_steps_written_twice_by_a_resumed_run_count_once(make_run):
    workdir = make_run()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 100, "loss": 42.0}) + "\n")
    train = read_runs([workdir])[0].train
    steps = [record["step"] for record in train]
    assert steps == sorted(set(steps))
    assert next(record for record in train if record["step"] == 100)["loss"] == 42.0


def test_damaged_side_files_are_noted(make_run, tmp_path):
    workdir = make_run()
    (workdir / "evaluation.json").write_text("{")
    (workdir / "target_variance.json").write_text('{"t": [1], "reference_sizes": [1], "trace": [[1, 2]]}')
    page = write_report([workdir], tmp_path / "report.html").read_text()
    assert "evaluation.json cannot be read" in page
    assert "target_variance.json is not of the expected form" in page


def test_runs_of_one_name_are_told_apart(make_run, tmp_path):
    workdirs = [make_run("sct", folder=tmp_path / "a"), make_run("sct", folder=tmp_path / "b")]
    names = [run.name for run in read_runs(workdirs)]
    assert names == [str(workdir) for workdir in workdirs]


def test_text_from_files_is_escaped(make_run, tmp_path):
    workdir = make_run("a&b")
    (workdir / "config.json").write_text(json.dumps({"note": "<script>alert(1)</script>"}))
    page = write_report([workdir, make_run("c")], tmp_path / "report.html").read_text()
    Balanced(page)
    assert "<script>" not in page
    assert "a&amp;b" in page


def test_mistakes_are_named_and_nothing_is_written(make_run, tmp_path):
    workdir = make_run()
    with pytest.raises(UserError, match=r"elsewhere is not the workdir of a run: it has no config\.json"):
        write_report([workdir, tmp_path / "elsewhere"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="is a folder"):
        write_report([workdir], tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="cannot write"):
        write_report([workdir], tmp_path / "gone" / "report.html")
    with pytest.raises(UserError, match="at least one workdir"):
        write_report([], tmp_path / "report.html")
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        write_report([workdir], tmp_path / "report.html")


def test_the_td_signal_has_its_curves(make_run, tmp_path):
    """Also where a level is missing from a record; a run in float32 has none and shows none."""
    from sct_jax.report.html import write_report

    low, plain = make_run("low"), make_run("plain")
    with (low / "metrics.jsonl").open("a") as file:
        for step, evaluated in ((0, 0.999), (400, 0.7), (800, 0.2)):
            levels = {"td_signal_at_0.5": 0.998, "td_signal_at_1": 0.997}
            means = {"td_signal": 0.998, "td_signal_evaluated": evaluated, "td_signal_tangent": 0.998}
            file.write(json.dumps({"kind": "td_signal", "step": step} | means | levels) + "\n")
    page = write_report([low, plain], tmp_path / "report.html").read_text()
    assert "low: TD signal<" in page
    assert "low: TD signal by noise level" in page
    assert "plain: TD signal" not in page
