"""Set-up of the tests of faults: the stages' files, made once, and the scorecard at the end."""

from pathlib import Path
from typing import NamedTuple

import program
import pytest
import scorecard
import stages


class World(NamedTuple):
    """Files that stages read, and what undisturbed stages wrote, by case."""

    folder: Path
    expected: dict[str, dict[str, bytes]]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Every stage's files, undisturbed."""
    program.warm()
    folder = tmp_path_factory.mktemp("world")
    return World(folder, stages.make_world(folder))


def pytest_sessionfinish(session):
    """Join the rows of all processes, in the one that started them."""
    if program.FULL and not hasattr(session.config, "workerinput"):
        scorecard.join()
