"""A host with other libraries is named, and so is a library out of bounds."""

from packaging.requirements import Requirement

from tuna_jax.diagnostics import versions
from tuna_jax.diagnostics.finding import FAIL, PASS

NAMES = ["process 0 (a)", "process 1 (b)", "process 2 (c)"]


def test_this_environment_fits_the_requirements():
    required = versions.requirements()
    assert {"jax", "flax", "grain", "numpy"} <= {each.name for each in required}
    found = versions.installed([each.name for each in required])
    finding = versions.requirement_finding(found, required)
    assert finding.result == PASS, finding.measured
    assert f"jax {found['jax']}" in finding.measured


def test_a_library_that_is_old_missing_or_unlike_its_pair_fails():
    found = versions.installed(["jax"]) | {"grain": "0.1.0", "flax": "", "jaxlib": "0.9.0"}
    required = [Requirement("grain>=0.2.16,<0.3"), Requirement("flax>=0.12"), Requirement("jax")]
    finding = versions.requirement_finding(found, required)
    assert finding.result == FAIL and "constraints.txt" in finding.mend
    wrong = finding.measured.splitlines()[-3:]
    assert wrong[0].startswith("grain 0.1.0") and "0.2.16" in wrong[0]
    assert wrong[1].startswith("flax is missing") and "jaxlib 0.9.0" in wrong[2]


def test_another_version_than_compat_knows_is_said_and_no_failure():
    found = versions.installed(["grain"]) | {"grain": "0.2.99"}
    finding = versions.requirement_finding(found, [])
    assert finding.result == PASS
    assert f"grain {versions.WRITTEN_AGAINST['grain']}" in finding.measured


def test_hosts_that_differ_in_libraries_or_code_are_named():
    facts = {"libraries": {"jax": "0.10.2", "grain": "0.2.18"}, "code": {"flow.py": "a"}}
    other = {"libraries": {"jax": "0.10.1"}, "code": {"flow.py": "b"}}
    assert versions.difference_finding([facts] * 3, NAMES).result == PASS
    finding = versions.difference_finding([facts, facts, other], NAMES)
    assert finding.result == FAIL and "process 1" not in finding.measured
    for text in (
        "process 2 (c)",
        "jax (0.10.1; process 0: 0.10.2)",
        "grain (missing;",
        "flow.py (b;",
    ):
        assert text in finding.measured
