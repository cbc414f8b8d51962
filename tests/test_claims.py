"""The grammar of claims, the plan of runs, verdicts and the table: against figures worked out by hand."""

import json
import math

import pytest

from ndeflow.claims import cell_of, cells, check, expectations, jobs, judge, run_name
from ndeflow.expressions import parse_bound, parse_metric
from ndeflow.report import BEGIN, END, Result, from_json, insert, merge, to_json, to_markdown

VALUES = {"a": [3.0, 5.0], "plain:a": [1.0, 2.0], "test/nfe@0.7": [20.0, 22.0], "reference/rocket": [0.9, 0.9]}


def value(expression: str, seed: int | None = None) -> float:
    return parse_bound(f">= {expression}").expression.value(lambda metric: VALUES[str(metric)], seed)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0.93", 0.93),
        ("-1e-3", -0.001),
        (".5", 0.5),
        ("1 - 2 - 3", -4.0),
        ("1 + 2 * 3 / 4", 2.5),
        ("(1 + 2) * 3", 9.0),
        ("8 / 4 / 2", 1.0),
        ("- (2 - 5) * 2", 6.0),
        ("2 * - a", -8.0),
        ("a - plain:a", 2.5),
        ("0.5 * test/nfe@0.7", 10.5),
        ("reference/rocket", 0.9),
        ("se(a)", 1.0),
        ("se(a - plain:a)", 0.5),
        ("a - 2 * se( plain:a )", 3.0),
        ("(a / plain:a)", 4.0 / 1.5),
    ],
)
def test_values_on_the_mean_over_seeds(expression, expected):
    assert value(expression) == pytest.approx(expected)


def test_values_at_a_seed():
    assert [value("a / plain:a", seed) for seed in (0, 1)] == [3.0, 2.5]
    assert [value("2 * se(a)", seed) for seed in (0, 1)] == [2.0, 2.0]


def test_a_division_by_zero_meets_no_bound():
    assert math.isnan(value("a / (2 - 2)"))
    (verdict,) = judge({"a": "<= 1 / b"}, {"": [{"a": 1.0, "b": 0.0}]})
    assert verdict.met is False and verdict.note == "not a finite number"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected '>=' or '<=' at column 1 of '', got its end"),
        ("0.9", "expected '>=' or '<=' at column 1 of '0.9', got '0.9'"),
        (">=0.9", "at column 1 of '>=0.9', got '>=0.9'"),
        ("> 0.9", "expected '>=' or '<='"),
        (">= ", "expected a number, a metric without spaces, se(...) or '(' at column 4"),
        (">= 2*a", "a metric without spaces, se(...) or '(' at column 4 of '>= 2*a', got '2*a'"),
        (">= 2 * a-b", "at column 8 of '>= 2 * a-b', got 'a-b'"),
        (">= 2 a", "expected an operator with spaces around it, or the end at column 6"),
        (">= (a + 1", "expected an operator with spaces around it, or ')', at column 10 of '>= (a + 1', got its end"),
        (">= a)", "or the end at column 5"),
        (">= se(2)", "expected a metric inside se(...) at column 7"),
        (">= __import__('os')", "expected an operator with spaces around it, or the end at column 14"),
    ],
)
def test_mistakes_are_shown_where_they_are(text, message):
    with pytest.raises(ValueError) as error:
        parse_bound(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["test/loss", "z/rmse", "plain:test/accuracy@0.7", "a-b.c:x@tanh,16"])
def test_metrics_are_read_as_they_are_written(text):
    assert str(parse_metric(text)) == text


def test_cells_have_one_name():
    assert parse_metric("a@.70,1e0,x") == parse_metric("a@0.7,1,x")
    with pytest.raises(ValueError, match="expected a metric such as"):
        parse_metric("test accuracy")


CONFIG = {
    "data": {"drop": 0.7},
    "versus": {"plain": ["regularizer=none"]},
    "grid": {"data.drop": [0, 0.7]},
    "needs": {"teacher": "big"},
    "expect": {"test/accuracy@0.70": [">= plain:test/accuracy@0.7", "<= 1"]},
}


def test_jobs_cross_cells_variants_and_seeds():
    planned = jobs("vowels", CONFIG, [7, 8])
    assert [(job.cell, job.variant, job.seed) for job in planned] == [
        (cell, variant, seed) for cell in ("0", "0.7") for variant in ("", "plain") for seed in (7, 8)
    ]
    assert planned[-1].overrides == ("data.drop=0.7", "regularizer=none")
    assert {job.recipe for job in planned} == {"vowels"} and planned[0].needs == (("teacher", "big"),)
    assert [job.overrides for job in jobs("plain", {}, [0])] == [()]


def test_values_of_a_grid_become_overrides():
    (job, *_) = jobs("r", {"grid": {"a": [True], "b": [None], "c": ["x"], "d": [1e-4]}}, [0])
    assert job.overrides == ("a=true", "b=null", "c=x", "d=0.0001") and job.cell == "True,None,x,0.0001"


def test_the_cell_of_a_composed_config():
    assert cell_of(CONFIG) == "0.7"
    assert cell_of({**CONFIG, "data": {"drop": 0.2}}) == "" and cell_of({}) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"expect": {"test/accuracy": ">= 1"}},
            "expected test/accuracy of a cell of the grid (@0, @0.7), got 'no cell'",
        ),
        ({"expect": {"a@0.3": ">= 1"}}, "expected a@0.3 of a cell of the grid (@0, @0.7), got '0.3'"),
        ({"expect": {"a@0": ">= other:a@0"}}, "expected other:a@0 of a variant under versus (plain), got 'other'"),
        ({"expect": {"a": 0.9}}, "expected a bound on a such as '>= 0.9', in quotes, got 0.9"),
        ({"expect": {"a@0": ">= plain:a@*"}}, "expected plain:a@* of a cell of the grid"),
        ({"grid": None, "expect": {"a@*": ">= 0"}}, "(none: there is no grid), got '*'"),
        ({"grid": {"data.drop": 0.7}}, "expected lists of values in grid"),
        ({"versus": {"plain": "regularizer=none"}}, "expected a list of overrides in versus.plain"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(change, message):
    with pytest.raises(ValueError) as error:
        check({**CONFIG, **change})
    assert message in str(error.value)


def test_verdicts_on_means_with_paired_spread():
    runs = {"": [{"acc": 0.90}, {"acc": 0.96}], "plain": [{"acc": 0.89}, {"acc": 0.95}]}
    met, not_met = judge({"acc": [">= plain:acc + 0.005", ">= 0.94"]}, runs)
    assert met.met is True and met.seeds == 2 and met.relative and not not_met.relative
    assert met.measured == pytest.approx(0.93) and met.threshold == pytest.approx(0.925)
    assert met.spread == pytest.approx(0.06 / math.sqrt(2)) and met.paired == pytest.approx(0.0, abs=1e-12)
    assert not_met.met is False and not_met.paired == pytest.approx(0.06 / math.sqrt(2))
    assert str(met) == "acc 0.93 >= plain:acc + 0.005 (= 0.925): met"
    assert str(not_met) == "acc 0.93 >= 0.94: NOT met"


def test_a_bound_that_equals_the_mean_is_met():
    assert all(verdict.met for verdict in judge({"a": ["<= 2", ">= 2"]}, {"": [{"a": 1.0}, {"a": 3.0}]}))


def test_a_claim_on_every_cell_is_one_bound_a_cell():
    expect, grid = {"acc@*": ">= plain:acc@* - 2 * se(acc@* - plain:acc@*)"}, {"data.drop": [0, 0.7]}
    check({"expect": expect, "grid": grid, "versus": {"plain": ["x=1"]}})
    runs = {"@0": [{"acc": 0.9}, {"acc": 0.7}], "plain@0": [{"acc": 0.9}, {"acc": 0.9}]}
    near, missing = judge(expect, runs, cells({"grid": grid}))
    assert near.metric == "acc@0" and near.met is True and near.threshold == pytest.approx(0.9 - 2 * 0.1)
    assert near.bound == ">= plain:acc@0 - 2 * se(acc@0 - plain:acc@0)"
    assert missing.metric == "acc@0.7" and missing.met is None and missing.note == "needs @0.7"


@pytest.mark.parametrize(
    ("expect", "note"),
    [
        ({"acc": ">= plain:acc"}, "needs plain"),
        ({"acc@0.7": ">= 0.9"}, "needs @0.7"),
        ({"plain:acc@0.7": ">= 0.9"}, "needs plain@0.7"),
        ({"acc": ">= short:acc"}, "needs the same seeds of all runs"),
        ({"test/acuracy": ">= 0.9"}, "no metric test/acuracy; there is test/accuracy"),
        ({"acc": ">= 0.9 - se(one:acc)"}, "needs the same seeds of all runs"),
    ],
)
def test_what_could_not_be_judged_says_why(expect, note):
    result = {"acc": 0.9, "test/accuracy": 0.9}
    (verdict,) = judge(expect, {"": [result, result], "short": [result], "one": [result], "plain": []})
    assert (verdict.met, verdict.measured, verdict.note) == (None, None, note)
    assert str(verdict).endswith(f": {note}")


def test_one_seed_has_no_spread_and_no_standard_error():
    plain, error = judge({"a": [">= 0", ">= 0 - se(a)"]}, {"": [{"a": 1.0}]})
    assert plain.met is True and plain.spread is None
    assert error.met is None and error.note == "needs at least 2 seeds for se(...)"


def test_a_run_that_diverged_meets_nothing():
    verdicts = judge({"a": [">= 0", "<= 0"]}, {"": [{"a": math.nan}, {"a": 1.0}]})
    assert [verdict.met for verdict in verdicts] == [False, False]


def test_nothing_expected():
    assert expectations(None) == [] and judge({}, {}) == [] and run_name("plain", "0.7") == "plain@0.7"


def results() -> list[Result]:
    runs = {"": [{"acc": 0.9}, {"acc": 0.96}], "plain": [{"acc": 0.89}, {"acc": math.nan}]}
    verdicts = tuple(judge({"acc": [">= 0.9", ">= 0.94"], "plain:acc": "<= 1"}, runs))
    environment = {"torch": "2.13.0", "threads": "1"}
    return [
        Result("vowels", "A | B 2020", "better", (1, 2), verdicts, 1.26, environment, values=runs),
        Result("wind", "C 2021", "calm", skipped="pip install aeon"),
        Result("waves", "D 2022", "high", (1, 2), verdicts, None, environment, failed="1 of 2 trainings failed (nan)"),
    ]


def test_the_table_in_markdown():
    lines = to_markdown(results()).splitlines()
    assert lines[2] == "| vowels | A \\| B 2020 | better | `acc >= 0.9` | 0.93 ± 0.042 | reproduced | 1.3 |"
    assert lines[3] == "|  |  |  | `acc >= 0.94` | 0.93 ± 0.042 | **NOT reproduced** |  |"
    assert lines[4].endswith("| **NOT reproduced**: not a finite number |  |")
    assert lines[5] == "| wind | C 2021 | calm |  |  | skipped: pip install aeon |  |"
    assert "**NOT reproduced**: 1 of 2 trainings failed (nan)" in lines[6]
    assert lines[8].endswith("seeds 1, 2; torch 2.13.0, threads 1.")
    assert all(line.count(" | ") == 6 for line in lines[:7])


def test_a_relative_bound_shows_its_value_and_margin():
    runs = {"": [{"a": 0.90}, {"a": 0.96}], "plain": [{"a": 0.88}, {"a": 0.95}]}
    text = to_markdown([Result("r", "", "", (1, 2), tuple(judge({"a": ">= plain:a"}, runs)))])
    assert "| `a >= plain:a` = 0.915 | 0.93 ± 0.042 (margin +0.015 ± 0.0071) | reproduced |" in text


def test_what_is_reproduced():
    vowels, wind, waves = results()
    assert (vowels.reproduced, wind.reproduced, waves.reproduced) == (False, None, False)
    assert Result("r", "", "", (1,), vowels.verdicts[:1]).reproduced is True


def test_json_is_strict_and_comes_back():
    text = to_json(results())
    assert json.loads(text, parse_constant=pytest.fail)[0]["values"]["plain"][1] == {"acc": None}
    assert to_json(from_json(text)) == text and from_json(text)[0].verdicts[0] == results()[0].verdicts[0]
    assert to_markdown(from_json(text)).splitlines()[2] == to_markdown(results()).splitlines()[2]


def test_results_of_other_recipes_are_kept():
    now = [Result("wind", "", "", (1,), minutes=2.0)]
    assert [(r.recipe, r.minutes) for r in merge(results(), now)] == [("vowels", 1.26), ("waves", None), ("wind", 2.0)]


def test_the_table_goes_between_its_markers_and_can_be_replaced():
    readme = f"# Title\n\n{BEGIN}\nold\n{END}\n\nrest\n"
    once = insert(readme, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nrest\n" and insert(once, "| new |") == once
    with pytest.raises(ValueError, match="add them where the table shall stand"):
        insert("# Title\n", "table")
