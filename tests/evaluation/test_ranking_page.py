import numpy as np

from segsweep.evaluation.ranking import Contest, ranking
from segsweep.evaluation.ranking_page import ranking_rows, ranking_section


def test_the_best_model_stands_first():
    scores = np.stack([np.full((4, 2, 2), value) for value in (0.3, 0.9, 0.6)])
    found = ranking(Contest(models=("c", "a<", "b"), scores=scores), by="cases")
    rows = ranking_rows(found)
    assert [(row["model"], row["place"]) for row in rows] == [("a<", 1), ("b", 2), ("c", 3)]
    assert [row["rank_cases"] for row in rows] == [1.0, 2.0, 3.0]
    html = ranking_section({"ranking": found})
    assert html.index("a&lt;") < html.index(">b<") < html.index(">c<")
    assert "over 4 cases" in html


def test_models_that_tie_have_no_order_whose_stability_is_told():
    found = ranking(Contest(models=("a", "b"), scores=np.full((2, 4, 2, 2), 0.5)), by="structures")
    html = ranking_section({"ranking": found})
    assert "All models tie" in html and "nan" not in html


def test_one_model_has_no_ranking():
    assert ranking_section({"ranking": {}}) == ""
