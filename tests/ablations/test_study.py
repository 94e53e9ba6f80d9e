"""What a study file says is checked before anything is trained."""

import pytest

from tests.ablations import studies
from tuna_jax.ablations import study
from tuna_jax.ablations.study import Claim


def test_a_run_is_the_experiment_with_the_arm_and_the_seed() -> None:
    parsed = study.parse(studies.values(settings={"guidance": 2.0}))
    run = parsed.run_values("blue", 2)
    assert run["data"] == {"seed": 2, "size": 96} and run["seed"] == 2 and run["steps"] == 4
    assert run["evaluate"]["every"] == 2 and run["evaluate"]["settings"] == {"guidance": (2.0,)}
    assert run["evaluate"]["tasks"] == studies.VALUES["tasks"]
    assert parsed.experiment["seed"] == 0 and parsed.run_values("red", 0)["data"]["size"] == 64
    assert parsed.claims["blue beats red"] == Claim(
        "name/exact", "blue", "red", paper="61.4 against 61.7"
    )


def test_an_arm_can_have_fewer_tasks() -> None:
    tasks = studies.VALUES["tasks"] | {"where": {"kind": "answer", "question": "where"}}
    parsed = study.parse(studies.values(tasks=tasks, arm_tasks={"red": ("where",)}))
    assert list(parsed.run_values("red", 0)["evaluate"]["tasks"]) == ["where"]
    assert list(parsed.run_values("blue", 0)["evaluate"]["tasks"]) == ["name", "where"]


def test_the_hash_covers_arms_claims_and_seeds() -> None:
    hashes = {
        study.parse(studies.values(**changes)).hash
        for changes in (
            {},
            {"seeds": (0, 1)},
            {"arms": studies.VALUES["arms"] | {"blue": {"data": {"size": 80}}}},
            {"claims": {}},
            {"question": "?"},
        )
    }
    assert len(hashes) == 5
    assert study.parse(studies.values()).hash == study.parse(studies.values(seeds=[0, 1, 2])).hash


def _claim(**changes: object) -> dict[str, object]:
    return {"claims": {"c": {"metric": "name/exact", "better": "blue", "worse": "red"} | changes}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sedes": (0,)}, "study.sedes"),
        ({"arms": {}}, "study.arms"),
        ({"question": ""}, "study.question"),
        ({"reference": "rad"}, "study.reference"),
        ({"tasks": {"name": {"kind": "anwser"}}}, "tasks.name.*'anwser'"),
        ({"seeds": ()}, "study.seeds"),
        ({"seeds": (1, 1)}, "study.seeds"),
        ({"seed_keys": ("data.sede",)}, "data.sede"),
        ({"every": 3}, "study.every"),
        ({"arm_tasks": {"red": ("nane",)}}, "study.arm_tasks.red"),
        ({"arm_tasks": {"rad": ("name",)}}, "study.arm_tasks.rad"),
        ({"arms": {"red": {"steps": 5}}}, "'red'"),
        ({"arms": {"red": {"data": 3}}}, "study.arms.red.data"),
        ({"arms": {"red": {"steps": {"a": 3}}}}, "red"),
        (_claim(better="yellow"), "study.claims.c.better"),
        (_claim(metric="naming/exact"), "study.claims.c.metric"),
        (_claim(metric="name"), "study.claims.c.metric"),
        (_claim(best="red"), "study.claims.c.best"),
        ({"claims": {"c": {"metric": "name/exact"}}}, "study.claims.c"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        study.parse(studies.values(**changes))
