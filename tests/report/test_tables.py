import json

import pytest

from sda_features.report.tables import (
    Row,
    Score,
    ScoreTable,
    differences_table,
    is_significant,
    is_significant_over_seeds,
    places,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.3, 0.2], [None, 1, 2]),
        ([0.3, 0.3, 0.2, 0.1], [1, 1, 2, None]),
        ([0.3, 0.2, 0.2], [1, 2, 2]),
        ([None, 0.2, 0.1], [None, 1, 2]),
        ([0.2, 0.2], [None, None]),
        ([0.2], [None]),
        ([None, None], [None, None]),
        ([], []),
    ],
)
def test_places_of_the_best_and_the_second_best(values, expected):
    assert places(values) == expected


def test_significance_is_below_five_percent():
    assert [is_significant(p) for p in (None, 0.05, 0.0499, 0.0)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("p", "won", "pairs", "star"),
    [
        *((0.001, 9, 9, True), (0.001, 0, 9, True), (0.001, 8, 9, False), (0.06, 9, 9, False)),
        *((0.04, 1, 1, True), (None, 9, 9, False)),
    ],
)
def test_a_star_needs_users_and_seeds(p, won, pairs, star):
    assert is_significant_over_seeds(p, won, pairs) is star


TABLE = ScoreTable(
    title="ranking full, 100% of users",
    labels=("model", "features"),
    columns=(("overall", "H@10"), ("overall", "N@10"), ("tail", "H@10")),
    rows=(
        Row(("sasrec", "id"), (Score(0.1), Score(0.25, 0.01, 2), Score(None))),
        Row(
            ("sasrec", "sda_2"),
            (Score(0.2, 0.002, 1, True, 0.01), Score(0.5, None, 1), Score(-0.125, percent=True)),
        ),
        Row(("vbpr", "id"), (Score(0.3), Score(0.3), Score(0.3))),
    ),
    note="p < 0.05, ±, Δ",
)


def cells_of(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_marks_best_second_and_significant():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "**ranking full, 100% of users**"
    cells = cells_of(TABLE.markdown())
    assert cells[0] == ["model", "features", "overall H@10", "overall N@10", "tail H@10"]
    assert cells[2] == ["sasrec", "id", "0.1000", "<u>0.2500</u> ±0.0100", "-"]
    assert cells[3] == ["sasrec", "sda_2", r"**0.2000**\* ±0.0020", "**0.5000**", "-12.50%"]
    assert lines[-1] == "p < 0.05, ±, Δ"


def test_latex_is_escaped_and_its_lines_have_as_many_cells_as_columns():
    lines = TABLE.latex().splitlines()
    assert r"\caption{ranking full, 100\% of users. p $<$ 0.05, $\pm$, $\Delta$}" in lines
    assert r"\begin{tabular}{llrrr}" in lines
    assert r" &  & \multicolumn{2}{c}{overall} & \multicolumn{1}{c}{tail} \\" in lines
    assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}" in lines
    assert r"sasrec & id & 0.1000 & \underline{0.2500} {\tiny $\pm$0.0100} & - \\" in lines
    assert r" & sda\_2 & \textbf{0.2000}$^{*}$ {\tiny $\pm$0.0020} & \textbf{0.5000} & -12.50\% \\" in lines
    assert lines.count(r"\midrule") == 2  # a block for each model
    body = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert [line.count("&") for line in body] == [4] * 4
    assert [line for line in lines if line.startswith(r"\end")] == [r"\end{tabular}", r"\end{table}"]
    assert TABLE.latex().isascii()


def test_json_holds_every_score():
    content = json.loads(json.dumps(TABLE.json()))
    assert content["title"] == TABLE.title
    assert [(row["model"], row["features"]) for row in content["rows"]] == [row.labels for row in TABLE.rows]
    assert content["rows"][1]["scores"]["overall H@10"] == {
        "value": 0.2,
        "spread": 0.002,
        "place": 1,
        "significant": True,
        "p_value": 0.01,
    }
    assert content["rows"][0]["scores"]["tail H@10"]["value"] is None


def test_differences_show_interval_and_p_value():
    row = {"metric": "ndcg@10/full/all", "users": 1234, "ours": 0.2, "theirs": 0.15}
    found = {**row, "difference": 0.05, "low": 0.01, "high": 0.09, "p_value": 0.004, "model": "vbpr"}
    found |= {"won": 9, "pairs": 9}
    torn = found | {"won": 8}
    nobody = dict.fromkeys(found) | {"metric": "ndcg@10/full/tail", "users": 0, "model": "vbpr"}
    cells = cells_of(differences_table([found, torn, nobody], ("sda", "id"), ("model",)))
    columns = "model|metric|users|sda|id|difference|95% interval|p (paired t)|seeds won"
    assert cells[0] == columns.split("|")
    assert cells[2][1:] == [
        *("ndcg@10/full/all", "1,234", "0.2000", "0.1500", "+0.0500"),
        *("+0.0100 to +0.0900", r"0.004\*", "9 of 9"),
    ]
    assert cells[3][-2:] == ["0.004", "8 of 9"]
    assert cells[4] == ["vbpr", "ndcg@10/full/tail", "0", *["-"] * 6]
