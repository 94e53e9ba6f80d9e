"""What a study file says: arms of one experiment, seeds, what is measured, and what is predicted."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from tuna_jax.sweeps import registry
from tuna_jax.utils.config_parsing import unknown_key
from tuna_jax.utils.fingerprint import fingerprint


@dataclasses.dataclass(frozen=True)
class Claim:
    """A prediction that a study tests.

    Attributes:
        metric: 'TASK/METRIC'.
        better, worse: the arms of which the first is predicted to have the higher score.
        lower: the better arm is predicted to have the lower score, as of a distance.
        paper: what the paper says, with its numbers.
    """

    metric: str
    better: str
    worse: str
    lower: bool = False
    paper: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms times seeds of one experiment, and their measurement.

    Attributes:
        name: of the study; the title of its report.
        question: what it asks, in a sentence.
        experiment: the experiment that all arms share, as the nested mapping of an experiment file.
        arms: by name, nested overrides of the experiment.
        reference: the arm that the others are compared with.
        seeds: one run per arm and seed. Runs of the same seed see the same batches and noise, so they are compared in
            pairs.
        seed_keys: dotted keys of the experiment that are set to the seed.
        every: interval of evaluations in steps; it divides the steps of every arm.
        tasks: tasks of sweeps by name (`sweeps/registry.py`).
        arm_tasks: for arms that are measured by some of the tasks only, such as models that cannot generate: their
            names.
        settings: one value for each sampling setting that is not the experiment's.
        batch, evaluation_seed: of the evaluation.
        claims: by name.
    """

    name: str
    question: str
    experiment: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    reference: str
    tasks: Mapping[str, Mapping[str, Any]]
    every: int
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seed_keys: tuple[str, ...] = ("seed",)
    arm_tasks: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch: int = 32
    evaluation_seed: int = 7
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything that the study says, as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def hash(self) -> str:
        """Identifies everything that the study says."""
        return fingerprint(self.as_json())

    def steps(self, arm: str) -> int:
        """The last step of an arm's runs."""
        return self.arms[arm].get("steps", self.experiment["steps"])

    def run_values(self, arm: str, seed: int) -> dict[str, Any]:
        """The experiment of one run: the arm's overrides, the seed, and evaluation during training.

        Raises:
            ValueError: an override names a section of the experiment as a value, or a value as a section.
        """
        values = merged(self.experiment, self.arms[arm], f"study.arms.{arm}")
        for key in self.seed_keys:
            *sections, name = key.split(".")
            section = values
            for part in sections:
                section = section[part]
            section[name] = seed
        values["evaluate"] = {
            "every": self.every,
            "tasks": {
                name: dict(self.tasks[name]) for name in self.arm_tasks.get(arm, tuple(self.tasks))
            },
            "settings": {name: (value,) for name, value in self.settings.items()},
            "batch": self.batch,
            "seed": self.evaluation_seed,
            "saved_items": 8,
        }
        return values


def parse(values: Mapping[str, Any]) -> Study:
    """The study of a file's mapping.

    Raises:
        ValueError: an unknown key or task, a missing key, an arm or a metric that a claim names and the study lacks,
            or an interval of evaluations that does not divide the steps.
    """
    fields = {field.name: field for field in dataclasses.fields(Study)}
    for key in values:
        if key not in fields:
            raise ValueError(unknown_key(f"study.{key}", key, sorted(fields)))
    required = ("name", "question", "experiment", "arms", "reference", "tasks", "every")
    missing = [key for key in required if not values.get(key)]
    if missing:
        raise ValueError(f"the study sets no {' and no '.join(f'study.{key}' for key in missing)}")
    claims = {
        name: _claim(f"study.claims.{name}", entry)
        for name, entry in dict(values.get("claims", {})).items()
    }
    study = Study(**{**copy.deepcopy(dict(values)), "claims": claims})
    study = dataclasses.replace(study, seeds=tuple(study.seeds), seed_keys=tuple(study.seed_keys))
    _check(study)
    return study


def _claim(where: str, entry: Any) -> Claim:
    names = [field.name for field in dataclasses.fields(Claim)]
    for key in entry:
        if key not in names:
            raise ValueError(unknown_key(f"{where}.{key}", key, names))
    missing = [name for name in ("metric", "better", "worse") if not entry.get(name)]
    if missing:
        raise ValueError(f"{where} sets no {' and no '.join(missing)}")
    return Claim(**entry)


def _check(study: Study) -> None:
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"study.seeds is {study.seeds}; it must name at least one seed, each once")
    if study.reference not in study.arms:
        raise ValueError(
            f"study.reference is {study.reference!r}; the arms are {', '.join(study.arms)}"
        )
    if "steps" not in study.experiment:
        raise ValueError("study.experiment sets no steps; it must be a whole experiment")
    for key in study.seed_keys:
        section: Any = study.experiment
        for part in key.split("."):
            if not isinstance(section, Mapping) or part not in section:
                raise ValueError(
                    f"study.seed_keys names {key!r}, which study.experiment does not set"
                )
            section = section[part]
    for name, options in study.tasks.items():
        registry.kind_of(name, options)
    for arm, names in study.arm_tasks.items():
        unknown = [name for name in names if name not in study.tasks]
        if arm not in study.arms or unknown or not names:
            raise ValueError(
                f"study.arm_tasks.{arm} is {names}; it must name tasks ({', '.join(study.tasks)}) of one of the arms "
                f"({', '.join(study.arms)})"
            )
    for arm in study.arms:
        study.run_values(arm, study.seeds[0])  # An error names the override that does not fit.
        if study.every < 1 or study.steps(arm) % study.every:
            raise ValueError(
                f"study.every is {study.every}, which must divide the steps of the arm {arm!r} ({study.steps(arm)}), "
                "so that its last step is evaluated"
            )
    for name, claim in study.claims.items():
        for role in ("better", "worse"):
            arm = getattr(claim, role)
            if arm not in study.arms:
                raise ValueError(
                    f"study.claims.{name}.{role} is {arm!r}; the arms are {', '.join(study.arms)}"
                )
        task = claim.metric.partition("/")[0]
        if task not in study.tasks or "/" not in claim.metric:
            raise ValueError(
                f"study.claims.{name}.metric is {claim.metric!r}; it must be TASK/METRIC with one of the tasks "
                f"{', '.join(study.tasks)}"
            )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`base` with nested `changes`; a section of `changes` changes the keys that it names.

    An arm may add a key: the trainer's own check names unknown ones.

    Raises:
        ValueError: a section stands where `base` has a value, or the other way round.
    """
    result = {key: copy.deepcopy(value) for key, value in base.items()}
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = merged(before, value, f"{where}.{key}")
        elif before is not None and isinstance(before, Mapping) != isinstance(value, Mapping):
            kind = "a section" if isinstance(before, Mapping) else "a value"
            raise ValueError(f"{where}.{key} must be {kind}, as in study.experiment")
        else:
            result[key] = copy.deepcopy(value)
    return result


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = "study"
) -> list[str]:
    """Dotted keys in which two mappings differ."""
    keys = dict.fromkeys([*before, *now])
    changed: list[str] = []
    for key in keys:
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changed += differences(one, other, f"{path}.{key}")
        elif one != other:
            changed.append(f"{path}.{key}")
    return changed
