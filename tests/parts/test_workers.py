"""Parts reach every worker: those of packages by their entry points, those of notebooks and files by value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray.cloudpickle

import imf_core
from imf_core.config import Config
from imf_core.parts.registry import carried
from tune.hosts.node_report import NodeReport, versions_of
from tune.hosts.nodes import refuse_unfit
from tune.space.space import SearchSpace
from tune.trial.trial import TrialSpec, by_value
from tune.trial.worker import Job

FILE = '''
from typing import Annotated
from pydantic import Field
import imf_core
from imf_core.model.scoring import TransE

class Own(imf_core.Section):
    depth: Annotated[int, imf_core.Tunable(low=1, high=4)] = Field(2, ge=1, le=9, description="how deep")

def helper(settings):
    return settings.depth * 10

@imf_core.scorer("filed", settings=Own)
class Filed(TransE):
    """A part of a file."""

    @classmethod
    def of(cls, config, settings):
        made = super().of(config)
        made.depth = helper(settings)
        return made
'''
WORKER = '''
import sys, ray.cloudpickle
spec, fields = ray.cloudpickle.load(sys.stdin.buffer)
from imf_core.parts.registry import install, names
assert "filed" not in names("scorer")
install(spec.parts)
config = spec.configure({"model.scoring": "filed", "model.filed.depth": 3, "train.lr": 0.005})
from imf_core.model.scoring import build_scorer
from tune.trial.worker import Job
print(build_scorer(config.model).depth, config.flat()["model.filed.depth"], [part.name for part in Job(**fields).parts])
assert ray.cloudpickle.dumps(spec)  # a trial sends it on to the workers of its group
'''


@pytest.mark.usefixtures("forgotten")
def test_a_part_of_a_file_travels_with_the_trial(tmp_path: Path) -> None:
    (tmp_path / "filed.py").write_text(FILE)
    imf_core.load_part(str(tmp_path / "filed.py"))
    space = SearchSpace.from_values({
        "model.scoring": {"choices": ["contextual", "filed"]}, "model.filed.depth": {"low": 1, "high": 3},
        "train.lr": {"low": 1e-3, "high": 1e-2},
    }, Config().updated({"model.scoring": "filed"}), ("structure",))
    spec = TrialSpec("data", "folder", space=space, parts=carried())
    for part in spec.parts:
        by_value(part)
    job = Job({}, "data", "folder", parts=spec.parts)
    sent = ray.cloudpickle.dumps((spec, job.to_json()))
    (tmp_path / "filed.py").unlink()
    done = subprocess.run(
        [sys.executable, "-c", WORKER], input=sent, capture_output=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(imf_core.__file__).parents[1]), "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "30 3 ['filed']\n"


def test_the_report_of_a_node_says_what_it_lacks(installed: Path) -> None:
    here = versions_of(["rotate-part"])
    assert here == "rotate-part 1.0"
    assert versions_of(["rotate-part", "no-such-part"]) == "rotate-part 1.0, no-such-part (not installed)"
    facts = dict.fromkeys(("python", "ray", "torch", "version", "code", "data"), "x")
    driver = NodeReport(name="driver", address="", storage="", free=0, parts=here, **facts)
    node = NodeReport(name="worker1", address="10.0.0.11", storage="", free=0, parts="rotate-part (not installed)", **facts)
    with pytest.raises(imf_core.ImfError, match=r"worker1.*parts rotate-part \(not installed\), the driver has rotate-part 1"):
        refuse_unfit(driver, [driver, node])
