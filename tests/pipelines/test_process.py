import gc
import subprocess
import sys
import weakref

import pytest

from pipelines import process


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def usual():
    """What other tests are to find again."""
    yield
    gc.unfreeze()
    process.collect_as_usual()


def made(count: int) -> list[weakref.ref[Cycle]]:
    return [weakref.ref(Cycle()) for _ in range(count)]


def test_while_importing_nothing_is_looked_through():
    process.collect_rarely()
    gc.collect()
    assert all(each() for each in made(10_000))


def test_while_training_a_cycle_that_nobody_holds_is_found_soon():
    process.collect_as_usual()
    assert made(10_000)[0]() is None


def test_what_was_there_stays_and_what_comes_later_is_never_frozen():
    gc.unfreeze()
    process.collect_as_usual()
    frozen = gc.get_freeze_count()
    later = Cycle()
    process.collect_as_usual()
    found = weakref.ref(later)
    del later
    gc.collect()
    assert frozen > 0
    assert found() is None


def test_a_command_imports_without_one_whole_collection():
    program = (
        "import gc, sys\n"
        "whole = []\n"
        "gc.callbacks.append(lambda phase, info: whole.append(1) if info['generation'] == 2 and phase == 'stop' else None)\n"
        "from pipelines.command import run\n"
        "def body(screen):\n"
        "    before = len(whole)\n"
        "    import torch\n"
        "    return {'whole': len(whole) - before}\n"
        "run(body, as_json=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert '"whole": 0' in done.stdout
